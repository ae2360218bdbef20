"""Commands that look: into videos, at what a model makes of one, and into a store."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import Overrides, StoreUrl, known

artifacts = typer.Typer(no_args_is_help=True, help="Browse what stages have made.")
export = typer.Typer(no_args_is_help=True, help="Write artifacts in other programs' layouts.")

PipelineConfig = Annotated[Path, typer.Option("--config", help="the YAML of a pipeline over videos")]
CheckpointKey = Annotated[
    str, typer.Option("--checkpoint", help="first digits of a checkpoint's key; else the pipeline's newest")
]


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

    known([kind] if kind else [], KINDS)
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

    known([layout], ["malmm"])
    place = Store(store)
    artifact = find(place, key, "frames")
    given = ["--store", place.url, "--key", artifact.key, "--to", str(to.absolute()), "--layout", layout]
    raise typer.Exit(command("extract_frames", "stages.extract_frames", "export", *given))
