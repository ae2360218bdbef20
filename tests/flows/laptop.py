"""A laptop after `malmm up`: server, worker and deployment of a folder with pretended stages."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.sorting import FlowRunSort

from tests.flows.pretend import ROOT, Pretend

PATIENCE = 600  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Laptop(Pretend):
    """A folder as the repository is one for `malmm up`: prefect.yaml and configs/ with one pipeline."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        (folder / "configs").mkdir()
        self.config = self.config.rename(folder / "configs" / "pretend.yaml")
        deployed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
        visdial = next(d for d in deployed if (d["entrypoint"], d["name"]) == ("flows.deployments.visdial", "local"))
        mine = visdial | {"entrypoint": "flows.deployments.pretend", "parameters": {"config": "configs/pretend.yaml"}}
        (folder / "prefect.yaml").write_text(yaml.safe_dump({"deployments": [mine]}))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = kept | {"MALMM_ENVS": str(folder / "envs"), "MALMM_CACHE": str(folder / "cache")}

    def __call__(self, *command: str, **environment: str) -> tuple[int, str]:
        """Run `python -m COMMAND` in the folder. Returns exit status and all that it said."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout

    def is_up(self) -> bool:
        return (self.folder / "prefect.toml").exists()

    def client(self) -> SyncPrefectClient:
        return SyncPrefectClient(f"{self.url}/api")

    def begin(self, **parameters) -> FlowRun:
        """Start a run of the deployment, as the UI does."""
        with self.client() as client:
            deployment = client.read_deployment_by_name("pretend/local")
            return client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def run(self, **parameters) -> tuple[FlowRun, dict[str, TaskRun]]:
        """Run the deployment to its end: the flow run, its task runs by stage."""
        begun, end = self.begin(**parameters), time.monotonic() + PATIENCE
        with self.client() as client:
            while not client.read_flow_run(begun.id).state.is_final():
                assert time.monotonic() < end, self.log()
                time.sleep(0.2)
        return self.newest()

    def newest(self) -> tuple[FlowRun, dict[str, TaskRun]]:
        """The flow run that was made last, its task runs by stage."""
        with self.client() as client:
            (run,) = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
            tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        return run, {task.name.split()[0]: task for task in tasks}

    def log(self) -> str:
        """What the worker said last."""
        return (self.folder / ".malmm" / "worker.log").read_text()[-3000:]

    def pid(self, name: str) -> int:
        return int((self.folder / ".malmm" / f"{name}.pid").read_text())

    def processes(self) -> list[str]:
        """Command lines of what runs in the folder, or below a process that does."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if Path(os.readlink(process / "cwd")).is_relative_to(self.folder):
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended, or is another user's
        return found
