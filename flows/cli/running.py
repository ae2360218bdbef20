"""Commands that run: a pipeline, one of its stages, the demo and the smoke flow; and how a pipeline stands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.common import Config, Overrides, StoreUrl, fail, known, load
from flows.cli.server import start_prefect

RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="try the items again that failed before, and only those")
]


def run(
    config: Config,
    set: Overrides = [],
    force: Annotated[
        list[str],
        typer.Option(metavar="STAGE", help="make this stage's artifact again though it is there"),
    ] = [],
    retry_failed: RetryFailed = False,
) -> None:
    """Run a whole pipeline through Prefect; what is there already is not made again."""
    from flows.config import STAGES

    known(force, STAGES)
    load(config, set)  # a wrong config must not cost the start of a server
    start_prefect()
    from flows.pipeline import pipeline

    keys = pipeline(str(config), list(set), force=list(force), retry_failed=retry_failed)
    _show_report(config, set, keys)


def status(config: Config, set: Overrides = []) -> None:
    """Say how each stage stands - fresh, stale and why, failed, begun, missing - and run nothing."""
    from flows.config import store_url
    from flows.plan import plan, statuses
    from flows.table import counted
    from storage import Store

    pipeline = load(config, set)
    for status in statuses(plan(pipeline).values(), Store(store_url(pipeline))):
        typer.echo(
            f"{status.step.stage:16s} {status.state:8s} {status.step.key[:12]}  {counted(status.counts) or '-'}"
            f"{'  ' + status.why if status.why else ''}"
        )
        for warning in status.warnings:
            typer.echo(f"{'':16s} warning  {warning}")


def stage(
    name: Annotated[str, typer.Argument(help="ingest, extract_frames, embed_imagebind, finetune or evaluate")],
    config: Annotated[Path, typer.Option(help="the pipeline's YAML")],
    set: Overrides = [],
    force: Annotated[bool, typer.Option(help="make the artifact again though it is there")] = False,
    only: Annotated[
        list[str],
        typer.Option(metavar="ITEM", help="work on this item alone, into an artifact of its own"),
    ] = [],
    retry_failed: RetryFailed = False,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="do part I (from 0) of N, publishing nothing; run without --part at the end",
        ),
    ] = "",
    request: Annotated[
        bool, typer.Option("--request", help="print the stage's request as JSON, for torchrun, and run nothing")
    ] = False,
) -> None:
    """Run one stage by hand, without Prefect, on the artifacts its config leads to."""
    from flows.by_hand import make
    from flows.config import STAGES
    from flows.plan import chosen, plan
    from flows.runners import runner_of
    from storage import Artifact, Store

    known([name], STAGES)
    pipeline = load(config, set)
    steps = plan(pipeline, None, {name: tuple(only)}, [name] if force else [], retry_failed)
    step = chosen(steps, [name])[name]
    if part:
        step = replace(step, request=_part_of(step.request, part))
    if request:
        typer.echo(step.request.model_dump_json(indent=2))
        return
    make(step, runner_of(pipeline.runner, name))
    if not part:
        store = Store(step.request.store)
        typer.echo(f"{store.url}/{Artifact(store, step.kind, step.key).folder}")


def demo(
    store: Annotated[Path, typer.Option(help="folder of the demo's store")] = Path("demo-store"),
    imagebind_weights: Annotated[
        Path | None,
        typer.Option(
            help="imagebind_huge.pth; without it ImageBind's architecture at tiny size with fixed random weights"
        ),
    ] = None,
    set: Overrides = [],
) -> None:
    """Run the whole pipeline on real photographs, then on real clips, with a small real language model, on the CPU."""
    from flows import demo, environments

    environments.sync(("ingest", "extract_frames", "embed_imagebind", "finetune", "evaluate", "demo"))
    for config, overrides in demo.prepare(store, imagebind_weights):
        run(config, [*overrides, *set], [])


def smoke(store: StoreUrl = "smoke-store", set: Overrides = []) -> None:
    """Run the CI smoke flow: tiny generated data, the whole DAG twice, the second time executing nothing."""
    start_prefect()
    from flows.smoke import smoke

    typer.echo(json.dumps(smoke(store, list(set)), indent=2))


def _part_of(request: Any, text: str) -> Any:
    from flows.config import STAGES
    from stages.contract import Part

    number, _, of = text.partition("/")
    if not STAGES[request.stage].SPLITS or request.force or request.retry_failed:
        splitting = ", ".join(name for name, config in STAGES.items() if config.SPLITS)
        fail(f"--part is for {splitting}, without --force and --retry-failed", 2)
    try:
        return request.model_copy(update={"part": Part(number=int(number), of=int(of))})
    except ValueError:
        fail(f"--part {text}: write it as 0/4, 1/4, 2/4, 3/4", 2)


def _show_report(config: Path, overrides: list[str], keys: dict[str, str]) -> None:
    """Print the scores and where the report lies."""
    from flows.config import store_url
    from flows.table import scores
    from storage import Artifact, Store

    store = Store(store_url(load(config, overrides)))
    report = Artifact(store, "report", keys["report"])
    typer.echo(scores(report.read_json("metrics.json")))
    typer.echo(f"\nreport: {store.url.removeprefix('file://')}/{report.folder}/report.md")
