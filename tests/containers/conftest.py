"""An engine to test with: the one that runs here, else Podman serving a socket of its own; else a skip says why."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from flows.runners import ROOT, container
from flows.runners.container import ContainerRunner
from flows.runners.mounts import Unfit
from flows.runners.settings import ContainerSettings, Needs
from stages.contract import Request

# What the Dockerfiles are built on, where MALMM_BASE_IMAGE names nothing else.
BASE = (
    os.environ.get("MALMM_BASE_IMAGE")
    or re.search(r"^ARG BASE_IMAGE=(.*)", (ROOT / "envs/ingest/Dockerfile").read_text(), re.MULTILINE)[1]
)
HINT = "MALMM_BASE_IMAGE names another image; CONTAINERS_CONF=tests/containers/containers.conf may help Podman"
STAGE = "localhost/malmm-test-stage"
# Does what the annotation file says, which is a program: of a stage, the runner sees no more than this.
PROGRAM = """\
import json, os, sys, time
request = json.loads(sys.stdin.read())
def log(**about): print(json.dumps({"event": "log", "message": "", **about}), flush=True)
exec(open(request["config"]["annotations"]["train"]).read())
"""


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Iterator[str]:
    """The URL of a container engine's API that works."""
    with contextlib.ExitStack() as stack:
        try:
            url = container.engine(None)
        except Unfit:
            url = stack.enter_context(_podman(tmp_path_factory.mktemp("podman")))
        try:
            client = stack.enter_context(contextlib.closing(docker.DockerClient(base_url=url)))
        except docker.errors.DockerException as error:
            pytest.skip(f"no container engine answers at {url}: {error}")
        try:
            client.containers.run(BASE, ["python3", "--version"], network_mode="none", remove=True)
        except docker.errors.DockerException as error:
            pytest.skip(f"a trial run of {BASE} failed ({HINT}): {str(error)[:200]}")
        yield url


@contextlib.contextmanager
def _podman(folder: Path) -> Iterator[str]:
    url = f"unix://{folder}/podman.sock"
    try:
        info = subprocess.run(["podman", "info"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no container engine: neither a socket of Docker's nor podman")
    if info.returncode:
        pytest.skip(f"podman info failed: {info.stderr[-300:]}")
    command = ["podman", "system", "service", "--time=0", url]
    service = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)  # conmon leaves files where it starts
    try:
        until = time.monotonic() + 120
        while not (folder / "podman.sock").exists() and time.monotonic() < until:
            time.sleep(0.05)
        yield url
    finally:
        service.terminate()
        service.wait()


class Containers:
    """Runs programs as the stage `ingest`, each in a container."""

    def __init__(self, folder: Path, url: str, client: docker.DockerClient):
        self.folder, self.url, self.client = folder, url, client
        self.store, self.images = folder / "store", folder / "images"
        self.images.mkdir()
        (self.images / "one.jpg").write_bytes(b"a picture")
        self.events: list[dict] = []

    def request(self, program: str) -> Request:
        (self.folder / "program.py").write_text(program)
        config = {"images": str(self.images), "annotations": {"train": str(self.folder / "program.py")}}
        return Request(stage="ingest", config=config, store=str(self.store), label="test")

    def run(self, program: str, image: str = STAGE, on_event=None, **needs) -> int:
        settings = ContainerSettings(socket=self.url, images={"ingest": image})
        runner = ContainerRunner(settings, Needs(**needs), grace_seconds=1)
        return runner.run(self.request(program), on_event or self.events.append)

    @property
    def said(self) -> str:
        """All messages of the last runs."""
        return "\n".join(event.get("message", "") for event in self.events)

    def left(self) -> list:
        """The containers that are there and belong to malmm."""
        return self.client.api.containers(all=True, filters={"label": "malmm.owner"})


@pytest.fixture(scope="session")
def stage_image(engine, tmp_path_factory) -> None:
    """An image whose entry point is PROGRAM."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "stage.py").write_text(PROGRAM)
    (folder / "Dockerfile").write_text(
        'ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY stage.py /stage.py\nUSER 10001\nENTRYPOINT ["python3", "/stage.py"]\n'
    )
    with contextlib.closing(docker.DockerClient(base_url=engine)) as client:
        client.images.build(path=str(folder), tag=STAGE, buildargs={"BASE_IMAGE": BASE}, rm=True)


@pytest.fixture
def containers(engine, stage_image, tmp_path) -> Iterator[Containers]:
    with contextlib.closing(docker.DockerClient(base_url=engine)) as client:
        yield Containers(tmp_path, engine, client)
