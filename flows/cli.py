"""The `malmm` command. Heavy imports wait inside the commands, so that `--help` and `status` are quick."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="An offline feature pipeline for memory-augmented multimodal models (MA-LMM with ImageBind).",
)
artifacts = typer.Typer(no_args_is_help=True, help="Browse what stages have made.")
env = typer.Typer(no_args_is_help=True, help="Make the stages' environments.")
images = typer.Typer(no_args_is_help=True, help="Build the stages' container images.")
export = typer.Typer(no_args_is_help=True, help="Write artifacts in other programs' layouts.")
app.add_typer(artifacts, name="artifacts")
app.add_typer(export, name="export")
app.add_typer(env, name="env")
app.add_typer(images, name="images")

Config = Annotated[Path, typer.Argument(help="a pipeline's YAML, as in configs/")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="lay a value over the config: --set finetune.epochs=2")
]
PipelineConfig = Annotated[Path, typer.Option("--config", help="the YAML of a pipeline over videos")]
CheckpointKey = Annotated[
    str, typer.Option("--checkpoint", help="first digits of a checkpoint's key; else the pipeline's newest")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="try the items again that failed before, and only those")
]
StoreUrl = Annotated[str, typer.Option("--store", help="folder or fsspec URL of the store")]


@app.command()
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

    _known(force, STAGES)
    _load(config, set)  # a wrong config must not cost the start of a server
    _start_prefect()
    from flows.pipeline import pipeline

    keys = pipeline(str(config), list(set), force=list(force), retry_failed=retry_failed)
    _show_report(config, set, keys)


@app.command()
def status(config: Config, set: Overrides = []) -> None:
    """Say how each stage stands - fresh, stale and why, failed, begun, missing - and run nothing."""
    from flows.config import store_url
    from flows.plan import plan, statuses
    from flows.table import counted
    from storage import Store

    pipeline = _load(config, set)
    for status in statuses(plan(pipeline).values(), Store(store_url(pipeline))):
        typer.echo(
            f"{status.step.stage:16s} {status.state:8s} {status.step.key[:12]}  {counted(status.counts) or '-'}"
            f"{'  ' + status.why if status.why else ''}"
        )
        for warning in status.warnings:
            typer.echo(f"{'':16s} warning  {warning}")


@app.command()
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

    _known([name], STAGES)
    pipeline = _load(config, set)
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


@app.command()
def probe(
    files: Annotated[list[Path], typer.Argument(help="video files")],
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object a line, with the time of each frame")
    ] = False,
) -> None:
    """Say which frames of videos would be taken, what they are encoded in, and what is wrong with them."""
    from flows.by_hand import command

    raise typer.Exit(
        command("extract_frames", "stages.extract_frames", "probe", *["--json"] * as_json, *map(str, files))
    )


@export.command("frames")
def export_frames(
    key: Annotated[str, typer.Argument(help="the first digits of a frames artifact's key")],
    to: Annotated[Path, typer.Option(help="the folder to write into")],
    store: StoreUrl = "store",
    layout: Annotated[
        str, typer.Option(help="malmm: <video>/frame000001.jpg ..., as MA-LMM's own code reads frames")
    ] = "malmm",
) -> None:
    """Write the frames of an artifact as files, for other programs."""
    from flows.by_hand import command
    from storage import Store, find

    _known([layout], ["malmm"])
    place = Store(store)
    artifact = find(place, key, "frames")
    given = ["--store", place.url, "--key", artifact.key, "--to", str(to.absolute()), "--layout", layout]
    raise typer.Exit(command("extract_frames", "stages.extract_frames", "export", *given))


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(help="a video file")],
    question: Annotated[str, typer.Argument(help="what to ask about it")],
    config: PipelineConfig,
    set: Overrides = [],
    checkpoint: CheckpointKey = "",
) -> None:
    """Answer a question about a video from the shell, and say which moments the memory kept."""
    from flows.ask import about

    raise typer.Exit(about("ask", video, question, config, set, checkpoint, Path()))


@app.command()
def memory(
    video: Annotated[Path, typer.Argument(help="a video file")],
    config: PipelineConfig,
    question: Annotated[str, typer.Option(help="the question that the Q-Former reads beside the frames")] = (
        "what does the video describe?"
    ),
    to: Annotated[Path, typer.Option(help="folder for the pictures")] = Path(),
    set: Overrides = [],
    checkpoint: CheckpointKey = "",
) -> None:
    """Draw which frames of a video the memory bank merged over time, as PNG and HTML."""
    from flows.ask import about

    raise typer.Exit(about("memory", video, question, config, set, checkpoint, to))


@artifacts.command("ls")
def artifacts_ls(store: StoreUrl = "store", kind: Annotated[str, typer.Option(help="only this kind")] = "") -> None:
    """List the artifacts of a store, newest first."""
    from flows.table import counted
    from storage import Store, published
    from storage.artifacts import KINDS

    _known([kind] if kind else [], KINDS)
    for artifact in (a for k in KINDS if kind in ("", k) for a in published(Store(store), k)):
        about = artifact.manifest
        size = sum(file["bytes"] for file in about["files"].values())
        typer.echo(
            f"{artifact.kind:10s} {artifact.key[:12]}  {about['created'][:19]}  {size / 1e6:9.2f} MB  "
            f"{about['label']:16s} {counted(about['counts'])}"
        )


@artifacts.command("show")
def artifacts_show(
    key: Annotated[str, typer.Argument(help="the first digits of its key")],
    store: StoreUrl = "store",
    verify: Annotated[bool, typer.Option(help="hash every file against the manifest")] = False,
) -> None:
    """Show an artifact's manifest, and with --verify whether its bytes are what it says."""
    from storage import Store, find

    artifact = find(Store(store), key)
    if verify:
        artifact.verify()
        typer.echo("every file is what the manifest says", err=True)
    typer.echo(json.dumps(artifact.manifest, indent=2, ensure_ascii=False))


@artifacts.command("gc")
def artifacts_gc(
    store: StoreUrl = "store",
    delete: Annotated[bool, typer.Option(help="remove them; without it they are only listed")] = False,
) -> None:
    """List what killed runs left in the feature banks: shards that no index part names."""
    from storage import Store
    from storage.features import orphans

    place = Store(store)
    for name in orphans(place):
        typer.echo(f"{'deleted' if delete else 'orphan '}  {place.size(name) / 1e6:9.2f} MB  {name}")
        if delete:
            place.delete(name)


@env.command("sync")
def env_sync(
    stages: Annotated[list[str], typer.Argument(help="all, if none is named")] = [],
    force: Annotated[bool, typer.Option(help="make them again though they are current")] = False,
) -> None:
    """Make the environments as their locks say; nothing happens where nothing changed."""
    from flows import environments

    if not environments.sync(stages or environments.NAMES, force=force):
        typer.echo("every environment is current")


@env.command("lock")
def env_lock(
    stages: Annotated[list[str], typer.Argument(help="all, if none is named")] = [],
    upgrade: Annotated[bool, typer.Option(help="take the newest versions that fit")] = False,
) -> None:
    """Compile envs/<stage>/requirements.in into the locked requirements.txt."""
    from flows import environments

    environments.lock(stages or (*environments.STAGES, "testing"), upgrade=upgrade)


@images.command("build")
def images_build(
    stages: Annotated[list[str], typer.Argument(help="all and the orchestrator's, if none is named")] = [],
    base: Annotated[
        str | None, typer.Option(help="an image with Python 3.11 and its venv module; else the official one, by digest")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="podman, docker or buildah; else the first that is here")] = None,
) -> None:
    """Build the images malmm-<stage> from envs/<stage>/Dockerfile."""
    from flows import environments
    from flows import images as dockerfiles

    _known(stages, environments.STAGES)
    _known([engine] if engine else [], dockerfiles.ENGINES)
    dockerfiles.build(stages or environments.STAGES, base, engine, typer.echo)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option(help="check the weights this config names as well")] = None,
    set: Overrides = [],
) -> None:
    """Check the machine and every environment; each failure comes with the command that mends it."""
    from flows import doctor

    files = {}
    if config is not None:
        from flows.config import STAGES, read

        values, _ = read(config, set)
        files = {f"{s}.{f}": Path(values[s][f]) for s in STAGES for f in ("weights", "llm") if values.get(s, {}).get(f)}
    raise typer.Exit(doctor.run(files=files))


@app.command()
def weights(
    name: Annotated[str, typer.Argument(help="imagebind_huge")] = "imagebind_huge",
    url: Annotated[str | None, typer.Option(help="fetch from here instead")] = None,
    sha256: Annotated[str | None, typer.Option(help="the digest it must have")] = None,
    to: Annotated[Path | None, typer.Option(help="where to put it")] = None,
) -> None:
    """Fetch ImageBind's weights (CC-BY-NC-SA 4.0, yours to accept), resume, and verify their digest."""
    from flows import weights

    typer.echo(weights.get(name, url, sha256, to))


@app.command()
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


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="of the server, on 127.0.0.1; else 4200")] = None,
) -> None:
    """Start Prefect on this machine - server, worker, deployments - for the folder it is called in."""
    from flows import local

    url = local.up(port, typer.echo)
    typer.echo(
        f"Prefect is up: {url}\n  prefect deployment run 'visdial/local' --watch    runs a pipeline; so does the UI\n"
        "  malmm down                                        stops it all; the database stays"
    )


@app.command()
def down() -> None:
    """Stop what `malmm up` started, and the runs it had; the next run takes up what was finished."""
    from flows import local

    local.down(typer.echo)


@app.command()
def smoke(store: StoreUrl = "smoke-store", set: Overrides = []) -> None:
    """Run the CI smoke flow: tiny generated data, the whole DAG twice, the second time executing nothing."""
    _start_prefect()
    from flows.smoke import smoke

    typer.echo(json.dumps(smoke(store, list(set)), indent=2))


def main() -> None:
    """The entry point: errors made for people come as one message and an exit code, without a traceback."""
    from flows.config import ConfigError
    from flows.environments import EnvironmentFailed
    from flows.local import LocalFailed
    from flows.runners import StageFailed
    from flows.weights import WeightsFailed
    from stages.errors import StageError
    from storage import StorageError

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end children as Ctrl-C does
    try:
        code = app(standalone_mode=False)  # the value of typer.Exit; 130 after Ctrl-C
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except ConfigError as error:
        _fail(str(error), 78)
    except StageFailed as failure:
        _fail(str(failure), failure.code)
    except StageError as error:
        _fail(str(error), error.exit_code)
    except (StorageError, EnvironmentFailed, LocalFailed, WeightsFailed, FileNotFoundError) as error:
        _fail(str(error), 65)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of the command line's own
            raise
        _fail(error.format_message(), 2)
    if code == 130:
        print("stopped; the next run takes up what was finished", file=sys.stderr)
    sys.exit(code)


def _load(config: Path, overrides: list[str]) -> Any:
    from flows.config import load

    return load(config, overrides)


def _known(names: list[str], known: Any) -> None:
    if wrong := [name for name in names if name not in known]:
        _fail(f"{', '.join(wrong)}: no such thing; there are {', '.join(known)}", 2)


def _part_of(request: Any, text: str) -> Any:
    from flows.config import STAGES
    from stages.contract import Part

    number, _, of = text.partition("/")
    if not STAGES[request.stage].SPLITS or request.force or request.retry_failed:
        splitting = ", ".join(name for name, config in STAGES.items() if config.SPLITS)
        _fail(f"--part is for {splitting}, without --force and --retry-failed", 2)
    try:
        return request.model_copy(update={"part": Part(number=int(number), of=int(of))})
    except ValueError:
        _fail(f"--part {text}: write it as 0/4, 1/4, 2/4, 3/4", 2)


def _start_prefect() -> None:
    """Prefect as a laptop needs it: nothing reaches outside, and its own lines leave the terminal to ours."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "400",  # a cold database takes half a minute or more
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_CLIENT_MAX_RETRIES": "10",
    }.items():
        os.environ.setdefault(name, value)
    from prefect.client.orchestration import get_client

    # Where neither prefect.toml nor PREFECT_API_URL names a server, Prefect starts one beside us. Ctrl-C goes to the
    # whole terminal group: a server that inherits a blocked SIGINT lives on to be told how the run ended, and is ended
    # by Prefect with us.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with get_client(sync_client=True) as client:
            silent = client.api_healthcheck()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if silent:
        _fail(f"Prefect's server at {client.api_url} gives no answer ({silent}): `malmm up` starts it", 75)


def _show_report(config: Path, overrides: list[str], keys: dict[str, str]) -> None:
    """Print the scores and where the report lies."""
    from flows.config import store_url
    from flows.table import scores
    from storage import Artifact, Store

    store = Store(store_url(_load(config, overrides)))
    report = Artifact(store, "report", keys["report"])
    typer.echo(scores(report.read_json("metrics.json")))
    typer.echo(f"\nreport: {store.url.removeprefix('file://')}/{report.folder}/report.md")


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(code)
