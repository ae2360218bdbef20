"""A laptop after `malmm up`: server, worker and deployment in a folder of their own; and what a user sees there."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling

from flows.pipeline import pipeline
from tests.flows.conftest import ROOT
from tests.flows.conftest import pretend as pretend  # a fixture

PATIENCE = 300.0  # seconds; shared machines lose minutes to their neighbours
DEPLOYMENTS = """\
deployments:
  - name: local
    entrypoint: flows.pipeline.pipeline
    work_pool: {name: malmm}
    pull:
      - prefect.deployments.steps.set_working_directory: {directory: "{{ $PWD }}"}
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
"""


def wait_for(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds something."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Laptop:
    """A folder in which `malmm up` was called."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "prefect.yaml").write_text(DEPLOYMENTS)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"

    def malmm(self, *arguments: str) -> None:
        environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
        subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=self.folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
            check=True,
            timeout=2 * PATIENCE,
        )

    def up(self) -> None:
        """Start what is not running."""
        self.malmm("up", "--port", str(self.port))

    def kill(self, name: str) -> None:
        """Kill the session of "server" or "worker"."""
        os.killpg(int((self.folder / ".malmm" / f"{name}.pid").read_text()), signal.SIGKILL)

    def begin(self, config: Path, stages: Sequence[str] = ()) -> UUID:
        """Start a run of the deployment, as the UI does; of these stages, or all."""
        with SyncPrefectClient(self.api) as client:
            deployment = client.read_deployment_by_name("malmm/local")
            return client.create_flow_run_from_deployment(
                deployment.id,
                parameters={"config": str(config), "stages": stages},
                job_variables={"env": {"MALMM_ENVS": os.environ["MALMM_ENVS"]}},
            ).id

    def run(self, config: Path, stages: Sequence[str], *overrides: str) -> UUID:
        """Run these stages to their end in this process, as `malmm run` does."""
        return pipeline(str(config), overrides, stages, return_state=True).state_details.flow_run_id

    def cancel(self, run: UUID) -> None:
        """Ask what the UI's button asks."""
        with SyncPrefectClient(self.api) as client:
            client.set_flow_run_state(run, Cancelling())

    def state(self, run: UUID) -> tuple[str, str]:
        """Name and message of the state of a run."""
        state = self._read(run).state
        return state.name, state.message or ""

    def has_ended(self, run: UUID) -> bool:
        return self._read(run).state.is_final()

    def end(self, run: UUID) -> tuple[str, str]:
        """Name and message of the state that a run ends in."""
        wait_for(lambda: self.has_ended(run))
        return self.state(run)

    def tasks(self, run: UUID) -> dict[str, TaskRun]:
        """The tasks of a run, by the name of their stage."""
        with SyncPrefectClient(self.api) as client:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        return {task.name.split()[0]: task for task in found}

    def _read(self, run: UUID) -> FlowRun:
        with SyncPrefectClient(self.api) as client:
            return client.read_flow_run(run)


@pytest.fixture
def laptop(laptop_up: Laptop) -> Iterator[Laptop]:
    with temporary_settings({PREFECT_API_URL: laptop_up.api, PREFECT_CLIENT_MAX_RETRIES: 10}):
        yield laptop_up


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the seconds before them."""
    monkeypatch.setattr("flows.pipeline.delays", lambda retries: [0] * retries)
