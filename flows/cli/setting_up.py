"""Commands that ready a machine: environments, images, weights, and whether all is well."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import Overrides, known

env = typer.Typer(no_args_is_help=True, help="Make the stages' environments.")
images = typer.Typer(no_args_is_help=True, help="Build the stages' container images.")


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

    environments.lock(stages or environments.LOCKED, upgrade=upgrade)


@images.command("build")
def images_build(
    stages: Annotated[list[str], typer.Argument(help="all and the orchestrator's, if none is named")] = [],
    base: Annotated[
        str | None, typer.Option(help="an image with Python 3.11 and its venv module; else the official one, by digest")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="docker, podman or buildah; else the one that runs here")] = None,
) -> None:
    """Build the images malmm-<stage> from envs/<stage>/Dockerfile."""
    from flows import environments
    from flows import images as dockerfiles

    known(stages, environments.STAGES)
    known([engine] if engine else [], dockerfiles.ENGINES)
    dockerfiles.build(stages or environments.STAGES, base, engine, typer.echo)


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


def weights(
    name: Annotated[str, typer.Argument(help="imagebind_huge")] = "imagebind_huge",
    url: Annotated[str | None, typer.Option(help="fetch from here instead")] = None,
    sha256: Annotated[str | None, typer.Option(help="the digest it must have")] = None,
    to: Annotated[Path | None, typer.Option(help="where to put it")] = None,
) -> None:
    """Fetch ImageBind's weights (CC-BY-NC-SA 4.0, yours to accept), resume, and verify their digest."""
    from flows import weights

    typer.echo(weights.get(name, url, sha256, to))
