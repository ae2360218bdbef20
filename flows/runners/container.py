"""The container runner: a stage in its image, by Docker's or Podman's API, with nothing of this machine but its inputs.

No network, no capabilities, a read-only root, an ordinary user. The store is mounted for writing, what the config names
for reading, each at its own path. The request goes in by standard input, events come out by standard output. The
container is removed however this ends: by `run` itself, the process beside it, or the next runner on this machine.
"""

import contextlib
import os
import signal
import socket as sockets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.images import Image
from docker.types import DeviceRequest, LogConfig
from docker.utils.socket import STDERR, frames_iter
from requests import RequestException

from flows.config import STAGES
from flows.runners.labels import flow_run
from flows.runners.mounts import Unfit, check_readable, mounts, paths_of, prepare_store
from flows.runners.output import LAST, Event, error, event_of, lines, log
from flows.runners.process import BROKEN, OFFLINE, TIMED_OUT, Deadline, code_of, died
from flows.runners.reaper import OWNER, lifeline, owner, reap, remove
from flows.runners.settings import ContainerSettings, Needs
from stages.contract import Request, WrongConfig
from storage import Store

PATIENCE = 300  # seconds for an answer of the engine: one that builds images answers late
ORDINARY = "10001:10001"  # the user of the images, for an orchestrator that is root
CREDENTIALS = ("AWS_", "FSSPEC_")  # variables that a remote store is reached with
CREDENTIAL_FILES = ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")  # those of them that name a file
TAIL = 1 << 16  # bytes kept of standard error, of which the last lines are told


@dataclass(frozen=True)
class ContainerRunner:
    """Runs a stage in a container of this machine's engine."""

    settings: ContainerSettings = field(default_factory=ContainerSettings)
    needs: Needs = field(default_factory=Needs)
    grace_seconds: float = 15.0

    def run(self, request: Request, on_event: Callable[[Event], None]) -> int:
        url = ""
        try:
            url = engine(self.settings.socket)
            with contextlib.closing(DockerClient(base_url=url, timeout=PATIENCE)) as client:
                for name in reap(client):
                    on_event(log(f"removed container {name}, whose owner had been killed"))
                return self._run(client, url, request, on_event)
        except Unfit as unfit:
            on_event(error("Unfit", str(unfit)))
            return WrongConfig.exit_code
        except (DockerException, RequestException, ConnectionError) as failure:
            on_event(error("EngineFailed", f"container engine {url}: {failure}"))
            return TIMED_OUT

    def _run(self, client: DockerClient, url: str, request: Request, on_event: Callable[[Event], None]) -> int:
        image = self._image(client, request.stage)
        on_event(log(f"image {image.tags[0] if image.tags else request.stage} is {image.id}"))
        container = client.containers.create(image.id, ["run", "-"], **self.options(request))
        said, state, finished = bytearray(), None, False
        deadline = Deadline(None, lambda: None)
        try:
            with lifeline(url, container.id), _attached(container) as socket:
                container.start()
                deadline = Deadline(self.needs.timeout, lambda: container.stop(timeout=int(self.grace_seconds)))
                threading.Thread(target=_hand_over, args=(socket, request), daemon=True).start()
                for line in lines(_standard_output(socket, said)):
                    event = event_of(line)
                    finished = finished or event["event"] in LAST
                    on_event(event)
                state = _end_of(container)
        finally:
            deadline.cancel()
            if state is None:  # the flow was cancelled, or the callback broke: the stage may put its ledger down
                with contextlib.suppress(DockerException, RequestException):
                    container.stop(timeout=int(self.grace_seconds))
            remove(client, container.id)
        code = code_of(state["ExitCode"])
        if deadline.passed and code != 0:
            on_event(deadline.error())
            return TIMED_OUT
        last_words = "\n".join(said.decode(errors="replace").splitlines()[-40:])
        if not finished:
            cause = died(code, last_words) + self._of_memory(request.stage, state) * (code == -signal.SIGKILL)
            on_event(error("Died", cause))
            return code or BROKEN
        if code == BROKEN:
            on_event(log(last_words, "error"))
        return code

    def options(self, request: Request) -> dict[str, Any]:
        """What the container is made with. Makes the store's folder, where there is none. Raises Unfit."""
        store, needs = Store(request.store).local, self.needs
        user = self.settings.user or (f"{os.getuid()}:{os.getgid()}" if os.getuid() else ORDINARY)
        paths = paths_of(STAGES[request.stage].model_validate(request.config))
        reach = {} if store else {name: value for name, value in os.environ.items() if name.startswith(CREDENTIALS)}
        paths |= {Path(reach[name]).absolute(): False for name in CREDENTIAL_FILES if name in reach}
        paths = {path: writes for path, writes in paths.items() if path.exists()}
        written = [path for path, writes in paths.items() if writes]
        check_readable(paths, *_numbers(user))
        threads = {name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"}
        variables = OFFLINE | {"HOME": "/tmp"} | threads | needs.variables() | reach
        if store is not None:
            prepare_store(store, *_numbers(user))
            written.append(store)
        memory = int(needs.memory_gib * 2**30) if needs.memory_gib else None
        return {
            "mounts": mounts(paths, written),
            "network_mode": "none" if store else None,
            "user": user,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": True,
            "tmpfs": {"/tmp": "mode=1777"},
            "environment": variables,
            "mem_limit": memory,
            "memswap_limit": memory,
            "nano_cpus": int(needs.cpus * 1e9) if needs.cpus else None,
            "device_requests": [DeviceRequest(count=needs.gpus, capabilities=[["gpu"]])] if needs.gpus else None,
            "shm_size": "1g",  # NCCL's, between GPUs; it costs what is used of it
            "stdin_open": True,
            "log_config": LogConfig(type="none"),  # the events go to us; the engine need not keep them
            "labels": {
                OWNER: owner(),
                "malmm.run": flow_run(),
                "malmm.stage": request.stage,
                "malmm.label": request.label,
            },
        }

    def _image(self, client: DockerClient, stage: str) -> Image:
        name = self.settings.images.get(stage, f"malmm-{stage}")
        try:
            return client.images.get(name)
        except ImageNotFound:
            raise Unfit(
                f"there is no image {name} here, and none is fetched on the way: `malmm images build {stage}` builds "
                f"malmm-{stage}; one that runner.container.images names must be pulled before"
            ) from None

    def _of_memory(self, stage: str, state: dict[str, Any]) -> str:
        """What is said besides of a stage that was killed; Podman does not always know whether for its memory."""
        limit, sure = self.needs.memory_gib, state.get("OOMKilled")
        allowed = f"the {limit:g} GiB that runner.stages.{stage}.memory_gib allows" if limit else "the machine has"
        return f"; {'' if sure else 'perhaps '}it took more memory than {allowed}: give it more, or smaller batches"


def engine(socket: str | None) -> str:
    """The URL of the engine's API: the one given, DOCKER_HOST, or a socket that is there. Raises Unfit."""
    if url := socket or os.environ.get("DOCKER_HOST"):
        return url
    own = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"), "podman/podman.sock")
    for path in (Path("/var/run/docker.sock"), Path("/run/podman/podman.sock"), own):
        if path.exists():
            return f"unix://{path}"
    raise Unfit(
        "no container engine: start Docker, or `podman system service --time=0 unix:///run/podman/podman.sock`, or "
        "name its socket by runner.container.socket or DOCKER_HOST"
    )


@contextlib.contextmanager
def _attached(container: Container) -> Iterator[sockets.socket]:
    """A connection to the container's standard streams; of one that has not started, so that no line is lost."""
    with container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}) as raw:
        socket = getattr(raw, "_sock", raw)
        socket.settimeout(None)
        yield socket


def _hand_over(socket: sockets.socket, request: Request) -> None:
    """In a thread of its own: a stage may fill its output before it reads."""
    with contextlib.suppress(OSError):  # it died before it read: its last words tell
        socket.sendall(request.model_dump_json().encode())
        socket.shutdown(sockets.SHUT_WR)


def _standard_output(socket: sockets.socket, said: bytearray) -> Iterator[bytes]:
    """The pieces of standard output as they come; the end of standard error is kept in `said`."""
    for stream, piece in frames_iter(socket, tty=False):
        if stream == STDERR:
            said += piece
            del said[:-TAIL]
        else:
            yield piece


def _end_of(container: Container) -> dict[str, Any]:
    """The state a container ended in; one that somebody removed was killed."""
    try:
        container.wait(timeout=None)
        container.reload()
    except NotFound:
        return {"ExitCode": 128 + signal.SIGKILL}
    return container.attrs["State"]


def _numbers(user: str) -> tuple[int, int]:
    try:
        uid, gid = user.split(":")
        return int(uid), int(gid)
    except ValueError:
        raise Unfit(f"runner.container.user {user!r}: write it as uid:gid, in numbers") from None
