"""`malmm up` and `malmm down`, and a deployment run as a user runs it, in a folder with pretend stages."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound

from tests.flows.conftest import ROOT, Pretend

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Folder(Pretend):
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
            timeout=600,
        )
        return done.returncode, done.stdout

    def run(self, **parameters) -> tuple[int, object, dict]:
        """Run the deployment to its end: exit status of the command, the flow run, its task runs by stage."""
        given = [f"--param={name}={json.dumps(value)}" for name, value in parameters.items()]
        code, said = self("prefect", "deployment", "run", "pretend/local", "--watch", *given)
        with self.client() as client:
            runs = client.read_flow_runs()
            run = max(runs, key=lambda run: run.created)
            assert str(run.id) in said, said
            tasks = [task for task in client.read_task_runs() if task.flow_run_id == run.id]
        return code, run, {task.name.split()[0]: task for task in tasks}

    def client(self) -> SyncPrefectClient:
        return SyncPrefectClient(f"http://127.0.0.1:{self.port}/api")

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = Folder(tmp_path_factory.mktemp("up"))
    code, said = folder("flows", "up", f"--port={folder.port}")
    try:
        assert code == 0 and f"http://127.0.0.1:{folder.port}" in said, said
        yield folder
    finally:
        folder("flows", "down")


def test_a_deployment_runs_and_shows_what_it_did(folder):
    code, run, tasks = folder.run()
    assert code == 0 and run.state.name == "Completed"
    report = tasks["evaluate"].name.split()[1]
    assert run.name == f"pretend {report[:8]}"
    assert {task.state.name for task in tasks.values()} == {"Completed"}
    assert tasks["ingest"].state.message.endswith(": 1 done") and set(tasks["ingest"].tags) == {"ingest", "pretend"}
    with folder.client() as client:
        shown = {a["key"]: a for a in client.request("POST", "/artifacts/filter", json={}).json()}
    assert shown["pretend-metrics"]["type"] == "table" and shown["pretend-report"]["type"] == "markdown"
    assert "](data:image/png;base64," in shown["pretend-report"]["data"]
    assert [key for key in shown if key.startswith("ingest-")] and report in shown["pretend-lineage"]["data"]

    code, run, tasks = folder.run()
    assert code == 0 and {task.state.name for task in tasks.values()} == {"Cached"}
    assert tasks["evaluate"].state.message == f"report {report}: 1 done; it was there"


def test_a_failure_is_told_in_the_state(folder):
    folder.behave("embed_imagebind", "end(65, 'picture.jpg is broken')")
    code, run, tasks = folder.run(force=["embed_imagebind"])
    told = "embed_imagebind: Example: picture.jpg is broken (exit code 65)"
    assert code != 0 and run.state.message.endswith(told)
    assert tasks["embed_imagebind"].state.message == told and "finetune" not in tasks
    folder.behave("embed_imagebind", "")

    code, run, tasks = folder.run(overrides=["finetune.lrr=1"])
    assert code != 0 and run.name == "pretend" and "finetune.lrr: no such field" in run.state.message and not tasks
    code, said = folder("prefect", "deployment", "run", "pretend/local", "--param", 'stages=["train"]')
    assert code != 0 and "train" in said


def test_up_again_mends_what_is_missing(folder):
    code, said = folder("flows", "up", f"--port={folder.port + 1}")
    assert code != 0 and "malmm down" in said
    server, worker = folder.pid("server"), folder.pid("worker")
    os.kill(worker, 9)
    with folder.client() as client:
        client.delete_global_concurrency_limit_by_name("gpu")
    code, said = folder("flows", "up")
    assert code == 0 and "is up" in said and folder.pid("server") == server and folder.pid("worker") != worker
    with folder.client() as client:
        assert client.read_global_concurrency_limit_by_name("gpu").limit >= 1
        assert client.read_work_pool("malmm").type == "process"
        assert client.read_automations_by_name("Runs without a sign of life")[0].enabled
        with pytest.raises(ObjectNotFound):
            client.read_global_concurrency_limit_by_name("gpuu")


def test_what_is_in_the_way_is_named(folder, tmp_path):
    code, said = folder("flows", "up", PREFECT_API_URL="http://127.0.0.1:1/api")
    assert code != 0 and "PREFECT_API_URL" in said and "unset" in said
    other = Folder(tmp_path)
    code, said = other("flows", "up", f"--port={folder.port}")
    assert code != 0 and f"port {folder.port}" in said and "Traceback" not in said
    (tmp_path / "prefect.yaml").unlink()
    code, said = other("flows", "up")
    assert code != 0 and "no prefect.yaml" in said


def test_down_ends_everything_and_keeps_the_database(folder):
    folder.behave("finetune", "(here / 'pid').write_text(str(os.getpid())); time.sleep(600)")
    code, said = folder("prefect", "deployment", "run", "pretend/local", "--param", 'force=["finetune"]')
    assert code == 0, said
    stage = folder.folder / "envs" / "finetune" / "bin" / "pid"
    end = time.monotonic() + 120
    while not (stage.exists() and stage.read_text()):
        assert time.monotonic() < end, (folder.folder / ".malmm" / "worker.log").read_text()[-3000:]
        time.sleep(0.2)
    assert len(folder.processes()) >= 3  # server, worker, flow run
    code, said = folder("flows", "down")
    assert code == 0 and "worker stopped" in said and "server stopped" in said
    assert not Path(f"/proc/{stage.read_text()}").exists() and folder.processes() == []
    assert not (folder.folder / "prefect.toml").exists()
    assert "failed to retrieve flow" not in (folder.folder / ".malmm" / "worker.log").read_text()  # for its hooks
    with sqlite3.connect(folder.folder / ".malmm" / "prefect.db") as database:
        states = dict(database.execute("select state_type, count(*) from flow_run group by 1").fetchall())
    assert states["CANCELLED"] == 1 and set(states) <= {"CANCELLED", "COMPLETED", "FAILED"}, states
    code, said = folder("flows", "down")
    assert code == 0 and "nothing" in said
