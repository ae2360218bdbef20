"""`malmm ask` and `malmm memory`: one video through the same stages, then a command of evaluate's environment.

Both take a pipeline's config for its settings, and in place of its annotations one question about one video.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.by_hand import command, make
from flows.config import ConfigError, Pipeline, read, store_url, validated
from flows.plan import plan
from flows.runners import runner_of
from storage import Artifact, MissingArtifact, Store, find, published


def about(
    program: str, video: Path, question: str, config: Path, overrides: Sequence[str], checkpoint: str, to: Path
) -> int:
    """Run ingest, extract_frames and embed_imagebind on the video, then `stages.evaluate.<program>` on what they made.

    checkpoint: first digits of its key; empty: the config's, or the newest that this pipeline made.
    Returns the exit code. Raises ConfigError, MissingArtifact, FileNotFoundError; StageFailed when a stage fails.
    """
    if not video.is_file():
        raise FileNotFoundError(f"no video file {video}")
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "question.json"
        asked.write_text(json.dumps([{"video": video.name, "question": question}]))
        settings = one_video(config, overrides, video, asked)
        store = Store(store_url(settings))
        trained = checkpoint_of(settings, store, checkpoint or settings.checkpoint or "")
        made = trained.manifest
        print(f"checkpoint {trained.key[:12]} of {made['created'][:16]}: {made.get('steps', 0)} steps", file=sys.stderr)
        steps = plan(settings.model_copy(update={"checkpoint": trained.key}))
        keys = {"checkpoint": trained.key}
        for name in ("ingest", "extract_frames", "embed_imagebind"):
            make(steps[name], runner_of(settings.runner, name))
            keys[steps[name].kind] = steps[name].key
    request = {
        "store": store_url(settings),
        **keys,
        "video": video.name,
        "question": question,
        "to": str(to.absolute()),
        "config": settings.evaluate.model_dump(mode="json"),
    }
    return command("evaluate", f"stages.evaluate.{program}", "-", stdin=json.dumps(request))


def one_video(config: Path, overrides: Sequence[str], video: Path, asked: Path) -> Pipeline:
    """The pipeline's settings, with `asked` (format: questions) in place of its annotations."""
    values, lines = read(config, overrides)
    if "extract_frames" not in values:
        raise ConfigError(f"{config} is a pipeline over images: take one with a section extract_frames")
    root = str(video.absolute().parent)
    values["ingest"] = {"format": "questions", "annotations": {"test": str(asked)}, "videos": root}
    for stage in ("extract_frames", "embed_imagebind"):
        values[stage] = (values.get(stage) or {}) | {"videos": root}
    settings = validated(values, lines, config)
    problems = [p for stage in settings.stages() if stage.STAGE != "finetune" for p in stage.problems()]
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def checkpoint_of(settings: Pipeline, store: Store, prefix: str) -> Artifact:
    """The checkpoint named, or the newest of this pipeline. Raises MissingArtifact."""
    if prefix:
        return find(store, prefix, "checkpoint")
    for artifact in published(store, "checkpoint"):
        if artifact.manifest["label"] == settings.name:
            return artifact
    raise MissingArtifact(
        f"{store.url} has no checkpoint of pipeline {settings.name}: run `malmm run` on its config first, or name one "
        "with --checkpoint"
    )
