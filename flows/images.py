"""The images of envs/<stage>/Dockerfile, built by podman, docker or buildah.

malmm images build [STAGE ...] [--base IMAGE] [--engine docker]
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flows.environments import REPO, EnvironmentFailed, find_links

ENGINES = ("podman", "docker", "buildah")


def build(stages: Iterable[str], base: str | None, engine: str | None, log: Callable[[str], None]) -> None:
    """Build the images malmm-<stage>, and log their ids. Raises EnvironmentFailed naming what failed."""
    engine = engine or next(filter(shutil.which, ENGINES), None)
    if engine is None or not shutil.which(engine):
        raise EnvironmentFailed(f"{engine or ' or '.join(ENGINES)} is not installed, and it builds the images")
    own = ["--layers"] if engine == "buildah" else []  # the others keep layers without being told
    for stage in stages:
        started = time.monotonic()
        log(f"image malmm-{stage}: building with {engine}")
        with tempfile.TemporaryDirectory() as folder:
            id_file = Path(folder, "id")
            arguments = [engine, *command(stage, base, os.environ), *own, "--iidfile", str(id_file), "."]
            done = subprocess.run(
                arguments,
                cwd=REPO,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode:
                said = "\n".join(done.stdout.strip().splitlines()[-15:])
                raise EnvironmentFailed(f"image malmm-{stage}: `{' '.join(arguments)}` failed:\n{said}")
            made = id_file.read_text().strip()
        log(f"image malmm-{stage}: {made} after {time.monotonic() - started:.0f} s")


def command(stage: str, base: str | None, variables: Mapping[str, str]) -> list[str]:
    """What any of the engines is told, without the folder. `variables` name other builds of packages and the authority.

    Raises EnvironmentFailed when they name more than one folder of packages: a build takes one.
    """
    arguments = ["build", "-f", f"envs/{stage}/Dockerfile", "-t", f"malmm-{stage}"]
    if base:
        arguments += ["--build-arg", f"BASE_IMAGE={base}"]
    links = find_links(variables)
    folders = [link for link in links if Path(link).is_dir()]
    if len(folders) > 1:
        raise EnvironmentFailed(f"UV_FIND_LINKS names several folders, {', '.join(folders)}: a build takes one")
    if folders:
        arguments += ["--build-context", f"wheels={Path(folders[0]).absolute()}"]
    if links:
        inside = ["/wheels" if link in folders else link for link in links]
        arguments += ["--build-arg", f"UV_FIND_LINKS={','.join(inside)}"]
    if authority := variables.get("PIP_CERT") or variables.get("SSL_CERT_FILE"):
        arguments += ["--secret", f"id=ca,src={authority}"]
    return arguments
