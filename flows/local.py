"""`malmm up` and `malmm down`: what a laptop needs of Prefect, for the folder in which they are called.

A server on SQLite that nothing outside reaches, a work pool with its worker, the deployments of prefect.yaml. State,
database and logs lie in .malmm/; prefect.toml hands the server's address to every `prefect` and `malmm` command here.
Each process holds a lock on its file in .malmm/ for as long as it lives, so no other process is taken for it.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

POOL = "malmm"
GPU_LIMIT = "gpu"
PORT = 4200
STATE, SETTINGS, DEPLOYMENTS = Path(".malmm"), Path("prefect.toml"), Path("prefect.yaml")
HEARTBEAT_SECONDS, SILENT_SECONDS = 30, 90
START_SECONDS = 400  # a cold database on a busy machine
STOP_SECONDS = 45  # a stage is given 15 to end, and its flow reports it
# Prefect's settings for every server of ours: the one of `malmm up`, and the one beside a run where none is up.
EVERYWHERE: dict[str, object] = {
    "server.analytics_enabled": False,
    "server.database.timeout": 60,
    "client.max_retries": 10,
}


class LocalFailed(Exception):
    """Prefect could not be started or stopped here; the message says why and what to do."""


def up(port: int | None = None, say: Callable[[str], None] = print) -> str:
    """Start what is not running and deploy prefect.yaml's `local` deployments; return the UI's address.

    port: of the server, on 127.0.0.1; None: the one that is up, else 4200. Raises LocalFailed.
    """
    if not DEPLOYMENTS.exists():
        raise LocalFailed(f"no {DEPLOYMENTS} in {Path.cwd()}: run `malmm up` in the repository")
    STATE.mkdir(exist_ok=True)
    serving = running("server")
    url = address() if serving else f"http://127.0.0.1:{port or PORT}"
    if serving and port not in (None, urlsplit(url).port):
        raise LocalFailed(f"the server is up at {url}: `malmm down` first, to have it on port {port}")
    if not serving:
        _needs_free(port or PORT)
    if (other := os.environ.get("PREFECT_API_URL", f"{url}/api")) != f"{url}/api":
        raise LocalFailed(f"PREFECT_API_URL is {other}, and would keep commands from the server here: unset it")
    SETTINGS.write_text(settings(url))
    if not serving:
        say(f"Prefect's server starts at {url}")
        _start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port or PORT))
    _wait_until_healthy(url)
    _furnish(f"{url}/api")
    if not running("worker"):
        say(f"a worker starts for the pool {POOL}")
        _start("worker", "worker", "start", "--pool", POOL, "--name", "local")
    _deploy()
    if not running("worker"):
        raise LocalFailed(f"the worker ended at once:\n{_last_words('worker')}")
    return url


def down(say: Callable[[str], None] = print) -> None:
    """End the worker with the runs and stages it has, then the server. The database stays."""
    up = [name for name in ("worker", "server") if running(name)]
    if len(up) == 2 and SETTINGS.exists():
        _cancel_runs(f"{address()}/api")
    for name in up:
        _end(name)
        say(f"{name} stopped")
    SETTINGS.unlink(missing_ok=True)
    if not up:
        say(f"nothing is up in {Path.cwd()}")


def running(name: str) -> bool:
    """Whether the process called `name` ("server", "worker") lives: then its file in .malmm/ is locked."""
    try:
        with _file(name).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def pid(name: str) -> int:
    """The id of the process, which leads a session of its own."""
    return int(_file(name).read_text())


def address() -> str:
    """Where the server is, as prefect.toml has it. Raises LocalFailed where there is no such file."""
    import tomllib

    try:
        return tomllib.loads(SETTINGS.read_text())["api"]["url"].removesuffix("/api")
    except FileNotFoundError:
        raise LocalFailed(f"a server is up here, but {SETTINGS} is gone: `malmm down`, then `malmm up`") from None


def settings(url: str) -> str:
    """prefect.toml. What stands in the environment goes before it, a user's profile comes after it."""
    home = STATE.absolute()
    values = EVERYWHERE | {
        "home": str(home),
        "profiles_path": str(home / "profiles.toml"),
        "api.url": f"{url}/api",
        "flows.heartbeat_frequency": HEARTBEAT_SECONDS,
        "worker.query_seconds": 2,
    }
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    about = "# Written by `malmm up`, removed by `malmm down`: what every Prefect command in this folder goes by."
    return "\n".join([about, *lines, ""])


def gpus() -> int:
    """How many NVIDIA GPUs this machine has."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _furnish(api: str) -> None:
    """What the server must hold, made or mended: the pool, the GPU limit, the watch over runs that fell silent."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.workers.process import ProcessWorker

    beat, ends = "prefect.flow-run.heartbeat", ("Completed", "Failed", "Cancelled", "Crashed")
    watch = AutomationCore(
        name="Runs without a sign of life",
        description=f"A run that has sent no heartbeat for {SILENT_SECONDS} s becomes Crashed.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={beat},
            expect={beat, *(f"prefect.flow-run.{end}" for end in ends)},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no sign of life for {SILENT_SECONDS} s: its process or its machine is gone. The next run "
                "takes up what was finished",
            )
        ],
    )
    with SyncPrefectClient(api) as client:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True)
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, max(1, gpus()))
        if not client.read_automations_by_name(watch.name):
            client.create_automation(watch)


def _deploy() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "local"],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LocalFailed(f"`prefect deploy --name local` failed:\n{done.stdout[-2000:]}")


def _start(name: str, *arguments: str) -> None:
    """Start `prefect ARGUMENTS` in a session of its own, with its output in .malmm/<name>.log."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's `&` ignores it, and a worker ends by it
    with _file(name).open("a+") as file, (STATE / f"{name}.log").open("a") as log:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[file.fileno()],  # the lock is the open file's: it lasts until the process ends
            start_new_session=True,
        )
        file.truncate(0)
        file.write(str(process.pid))


def _environment() -> dict[str, str]:
    # A flow's hooks are run by a script in a folder of Prefect's that has a storage.py: it must not hide our storage.
    return os.environ | {"DO_NOT_TRACK": "1", "PWD": os.getcwd(), "PYTHONSAFEPATH": "1"}


def _wait_until_healthy(url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while running("server"):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/api/health", timeout=10):
            return
        if time.monotonic() > end:
            raise LocalFailed(
                f"{url} gave no answer for {START_SECONDS} s; {STATE}/server.log:\n{_last_words('server')}"
            )
        time.sleep(0.2)
    raise LocalFailed(f"Prefect's server ended at once; {STATE}/server.log:\n{_last_words('server')}")


def _needs_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LocalFailed(
                f"port {port} of 127.0.0.1 is taken ({error.strerror}): `malmm up --port` takes another"
            ) from None


def _cancel_runs(api: str) -> None:
    """Cancel what the worker runs, and wait for it: a worker that stops kills its runs, and then none says so."""
    import httpx
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.states import Cancelling

    under_way = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    of_ours = WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
    end = time.monotonic() + STOP_SECONDS
    # A server that gives no answer must not keep itself up.
    with contextlib.suppress(httpx.HTTPError), SyncPrefectClient(api) as client:
        for run in client.read_flow_runs(work_pool_filter=of_ours, flow_run_filter=under_way):
            client.set_flow_run_state(run.id, Cancelling(message="by `malmm down`"))
        while client.read_flow_runs(work_pool_filter=of_ours, flow_run_filter=under_way) and time.monotonic() < end:
            time.sleep(0.5)


def _end(name: str) -> None:
    leader = pid(name)
    os.killpg(leader, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    while _group_lives(leader) and time.monotonic() < end:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _group_lives(leader: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(leader, os.WNOHANG)  # it is our own child where one process calls up and down
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def _file(name: str) -> Path:
    return STATE / f"{name}.pid"


def _last_words(name: str) -> str:
    return "\n".join((STATE / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
