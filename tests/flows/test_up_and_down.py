"""`malmm up` and `malmm down`, and a deployment run as a user runs it, in a folder with pretended stages."""

import os
import sqlite3
import time
from pathlib import Path

import pytest
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from tests.flows.laptop import PATIENCE, Laptop

pytestmark = pytest.mark.slow


def test_a_deployment_runs_and_shows_what_it_did(laptop):
    code, said = laptop("prefect", "deployment", "run", "pretend/local", "--watch")
    run, tasks = laptop.newest()
    assert code == 0 and str(run.id) in said and run.state.name == "Completed", said
    report = tasks["evaluate"].name.split()[1]
    assert run.name == f"pretend {report[:8]}"
    assert {task.state.name for task in tasks.values()} == {"Completed"}
    assert tasks["ingest"].state.message.endswith(": 1 done") and set(tasks["ingest"].tags) == {"ingest", "pretend"}
    of_this_run = {"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}
    with laptop.client() as client:
        shown = {a["key"]: a for a in client.request("POST", "/artifacts/filter", json=of_this_run).json()}
    assert shown["pretend-metrics"]["type"] == "table" and shown["pretend-report"]["type"] == "markdown"
    assert "](data:image/png;base64," in shown["pretend-report"]["data"]
    assert [key for key in shown if key.startswith("ingest-")] and report in shown["pretend-lineage"]["data"]

    run, tasks = laptop.run()
    assert run.state.name == "Completed" and {task.state.name for task in tasks.values()} == {"Cached"}
    assert tasks["evaluate"].state.message == f"report {report}: 1 done; it was there"


def test_a_failure_is_told_in_the_state(laptop):
    laptop.behave("embed_imagebind", "end(65, 'picture.jpg is broken')")
    run, tasks = laptop.run(force=["embed_imagebind"])
    told = "embed_imagebind: Example: picture.jpg is broken (exit code 65)"
    assert run.state.name == "Failed" and run.state.message.endswith(told)
    assert tasks["embed_imagebind"].state.message == told and "finetune" not in tasks
    laptop.behave("embed_imagebind", "")

    run, tasks = laptop.run(overrides=["finetune.lrr=1"])
    assert run.name == "pretend" and "finetune.lrr: no such field" in run.state.message and not tasks
    with pytest.raises(PrefectHTTPStatusError, match="train"):
        laptop.begin(stages=["train"])


def test_up_again_mends_what_is_missing(laptop):
    code, said = laptop("flows", "up", f"--port={laptop.port + 1}")
    assert code != 0 and "malmm down" in said
    server, worker = laptop.pid("server"), laptop.pid("worker")
    os.kill(worker, 9)
    with laptop.client() as client:
        client.delete_global_concurrency_limit_by_name("gpu")
    code, said = laptop("flows", "up")
    assert code == 0 and "is up" in said and laptop.pid("server") == server and laptop.pid("worker") != worker
    with laptop.client() as client:
        assert client.read_global_concurrency_limit_by_name("gpu").limit >= 1
        assert client.read_work_pool("malmm").type == "process"
        assert client.read_automations_by_name("Runs without a sign of life")[0].enabled
        with pytest.raises(ObjectNotFound):
            client.read_global_concurrency_limit_by_name("gpuu")


def test_what_is_in_the_way_is_named(laptop, tmp_path):
    code, said = laptop("flows", "up", PREFECT_API_URL="http://127.0.0.1:1/api")
    assert code != 0 and "PREFECT_API_URL" in said and "unset" in said
    other = Laptop(tmp_path)
    code, said = other("flows", "up", f"--port={laptop.port}")
    assert code != 0 and f"port {laptop.port}" in said and "Traceback" not in said
    (tmp_path / "prefect.yaml").unlink()
    code, said = other("flows", "up")
    assert code != 0 and "no prefect.yaml" in said


def test_down_ends_everything_and_keeps_the_database(laptop):
    laptop.behave("finetune", "(here / 'pid').write_text(str(os.getpid())); time.sleep(6000)")
    run = laptop.begin(force=["finetune"])
    stage = laptop.folder / "envs" / "finetune" / "bin" / "pid"
    end = time.monotonic() + PATIENCE
    while not (stage.exists() and stage.read_text()):
        assert time.monotonic() < end, laptop.log()
        time.sleep(0.2)
    assert len(laptop.processes()) >= 3  # server, worker, flow run
    code, said = laptop("flows", "down")
    assert code == 0 and "worker stopped" in said and "server stopped" in said
    assert not Path(f"/proc/{stage.read_text()}").exists() and laptop.processes() == []
    assert not laptop.is_up()
    assert "failed to retrieve flow" not in (laptop.folder / ".malmm" / "worker.log").read_text()  # for its hooks
    with sqlite3.connect(laptop.folder / ".malmm" / "prefect.db") as database:
        states = dict(database.execute("select replace(id, '-', ''), state_type from flow_run").fetchall())
    assert states[run.id.hex] == "CANCELLED" and set(states.values()) <= {"CANCELLED", "COMPLETED", "FAILED"}, states
    code, said = laptop("flows", "down")
    assert code == 0 and "nothing" in said
