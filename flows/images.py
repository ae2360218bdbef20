"""The images of envs/<stage>/Dockerfile, built by docker, podman or buildah.

malmm images build [STAGE ...] [--base IMAGE] [--engine docker]
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from docker import DockerClient
from docker.errors import DockerException

from flows.environments import REPO, EnvironmentFailed, find_links
from flows.runners import container
from flows.runners.mounts import Unfit

ENGINES = ("podman", "docker", "buildah")


def build(stages: Iterable[str], base: str | None, engine: str | None, log: Callable[[str], None]) -> None:
    """Build the images malmm-<stage>, and log their ids. Raises EnvironmentFailed naming what failed."""
    engine = engine or usual()
    if engine is None or not shutil.which(engine):
        raise EnvironmentFailed(f"{engine or ' or '.join(ENGINES)} is not installed, and it builds the images")
    program, own = [engine], []
    if engine == "docker":
        program, own = ["docker", "buildx"], ["--load"]  # `docker build` is another builder, depending on its version
        if subprocess.run([*program, "version"], capture_output=True, check=False).returncode:
            raise EnvironmentFailed(
                "docker builds images with its plugin buildx, which is not installed: install docker-buildx-plugin "
                "(of Docker's packages) or docker-buildx (of Debian's and Ubuntu's)"
            )
    elif engine == "buildah":
        own = ["--layers"]  # the others keep layers without being told
    for stage in stages:
        started = time.monotonic()
        log(f"image malmm-{stage}: building with {engine}")
        with tempfile.TemporaryDirectory() as folder:
            id_file = Path(folder, "id")
            arguments = [*program, *command(stage, base, os.environ), *own, "--iidfile", str(id_file), "."]
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


def usual() -> str | None:
    """The engine whose images the container runner finds: Docker where it serves, else one that is installed."""
    with contextlib.suppress(Unfit, DockerException):
        with contextlib.closing(DockerClient(container.engine(None))) as client:
            serving = {component["Name"] for component in client.version()["Components"]}
        if "Podman Engine" not in serving and shutil.which("docker"):  # Podman may serve at Docker's socket
            return "docker"
    return next(filter(shutil.which, ENGINES), None)


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
