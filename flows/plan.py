"""What a pipeline would run: each stage with its request and key, all known before anything starts.

A key is made of config, outside bytes, library versions and the inputs' keys, so a whole pipeline's keys
follow from its config; and what is stale, and why, is seen without running anything.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.config import ConfigError, Pipeline, store_url
from stages.config import StageConfig
from stages.contract import FAILURE, Request
from stages.identity import code_digest, record_of
from storage import Artifact, MissingArtifact, Store, differences, find, is_current, is_published, key_of, published
from storage.artifacts import PARTIAL, folder_of
from storage.digests import Digests


@dataclass(frozen=True)
class Step:
    """One stage to run: `key` names the artifact it will make, `record` is what the key is a hash of."""

    config: StageConfig
    request: Request
    record: dict[str, Any]
    key: str

    @property
    def stage(self) -> str:
        return self.config.STAGE

    @property
    def kind(self) -> str:
        return self.config.KIND


@dataclass(frozen=True)
class Status:
    """How a step stands: fresh, stale, failed, begun or missing; `why` in words; `counts` of items by status."""

    step: Step
    state: str
    why: str
    counts: dict[str, int]
    warnings: tuple[str, ...] = ()


def plan(
    pipeline: Pipeline,
    digests: Digests | None = None,
    only: dict[str, tuple[str, ...]] | None = None,
    force: Iterable[str] = (),
    retry_failed: bool = False,
) -> dict[str, Step]:
    """The steps of a pipeline by stage name, in order. `only` and `force`: stage -> items, stages.

    Hashes outside files that it has not seen. Raises FileNotFoundError naming the field whose file is gone,
    MissingArtifact when the pipeline's checkpoint is not in the store.
    """
    digests = digests or Digests()
    keys: dict[str, str] = {}
    if pipeline.checkpoint:
        keys["checkpoint"] = find(Store(store_url(pipeline)), pipeline.checkpoint, "checkpoint").key
    steps = {}
    for config in pipeline.stages():
        inputs = {kind: keys[kind] for kind in (*config.INPUTS, *config.OPTIONAL) if kind in keys}
        sources = config.sources(digests)
        items = (only or {}).get(config.STAGE, ())
        record = record_of(config, inputs, sources, items)
        keys[config.KIND] = key_of(record)
        request = Request(
            stage=config.STAGE,
            config=config.model_dump(mode="json"),
            inputs=inputs,
            store=store_url(pipeline),
            sources=sources,
            only=items,
            force=config.STAGE in force,
            retry_failed=retry_failed,
            label=pipeline.name,
        )
        steps[config.STAGE] = Step(config, request, record, keys[config.KIND])
    return steps


def chosen(steps: Mapping[str, Step], stages: Sequence[str]) -> dict[str, Step]:
    """The steps of the stages named, or all where none is.

    Raises ConfigError when the pipeline has no such stage, MissingArtifact when one would lack what it reads.
    """
    if absent := [stage for stage in stages if stage not in steps]:
        raise ConfigError(f"this pipeline has no stage {', '.join(absent)}: it has {', '.join(steps)}")
    wanted = {name: step for name, step in steps.items() if not stages or name in stages}
    makers = {step.kind: step.stage for step in steps.values()}
    for step in wanted.values():
        for kind, key in step.request.inputs.items():
            if makers.get(kind) not in wanted and not is_published(Store(step.request.store), kind, key):
                raise MissingArtifact(
                    f"{step.stage} reads {kind} {key[:12]}, which is not there: run {makers[kind]} first, or as well"
                )
    return wanted


def statuses(steps: Iterable[Step], store: Store) -> list[Status]:
    """How each step stands. Reads manifests only; executes nothing."""
    return [_status(step, store) for step in steps]


def _status(step: Step, store: Store) -> Status:
    if is_current(store, step.kind, step.key):
        manifest = Artifact(store, step.kind, step.key).manifest
        changed = manifest["code"] != code_digest(step.config)
        warnings = (
            (
                f"its sources changed since this artifact was made, but {type(step.config).__name__}.VERSION is "
                f"still {step.config.VERSION}",
            )
            if changed
            else ()
        )
        return Status(step, "fresh", "", manifest["counts"], warnings)
    if is_published(store, step.kind, step.key):
        return Status(step, "stale", "failed items of an input have been tried again since", {})
    partial = f"{folder_of(step.kind, step.key)}/{PARTIAL}"
    if store.exists(f"{partial}/{FAILURE}"):
        failure = json.loads(store.read_bytes(f"{partial}/{FAILURE}"))
        return Status(step, "failed", f"{failure['error']}: {failure['message']}", failure["counts"])
    if store.exists(partial):
        return Status(step, "begun", "the next run takes up what is finished", {})
    if others := [a for a in published(store, step.kind) if a.manifest["stage"] == step.stage]:
        # The nearest earlier artifact tells what changed; of equally near ones, the newest of this pipeline.
        gaps = [
            (differences(a.manifest["record"], step.record), a.manifest["label"] != step.request.label) for a in others
        ]
        nearest = min(gaps, key=lambda gap: (gap[1], len(gap[0])))[0]
        return Status(step, "stale", "; ".join(_say(name, *pair) for name, pair in nearest.items()), {})
    return Status(step, "missing", "never run", {})


def _say(name: str, before: Any, after: Any) -> str:
    """One changed field: values in full, digests and keys by their first digits."""

    def short(value: Any) -> str:
        return value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)

    return f"{name.removeprefix('config.')} {short(before)} -> {short(after)}"
