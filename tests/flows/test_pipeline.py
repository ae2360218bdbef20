"""The DAG through Prefect: retries by exit code, what was made is not made again, Ctrl-C leaves no process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.testing.utilities import prefect_test_harness

from flows.config import STAGES, ConfigError
from flows.pipeline import pipeline
from flows.runners import StageFailed
from stages.contract import BadInput
from storage import MissingArtifact
from tests.flows.conftest import ROOT


@pytest.fixture(scope="module", autouse=True)
def server():
    with prefect_test_harness(server_startup_timeout=400):
        yield


def task_runs() -> dict[str, str]:
    """Task name -> name of its state, of the newest run of each."""
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(limit=100)
    newest = sorted((run for run in runs if run.start_time), key=lambda run: run.start_time)
    return {run.name.split()[0]: run.state.name for run in newest}


def artifacts() -> set[str]:
    with get_client(sync_client=True) as client:
        return {a["key"] for a in client._client.post("/artifacts/filter", json={}).json()}


def test_the_second_run_executes_nothing(pretend):
    first = pipeline(str(pretend.config))
    assert task_runs() == dict.fromkeys(("ingest", "embed_imagebind", "finetune", "evaluate"), "Completed")
    assert {"pretend-metrics", "pretend-lineage", f"ingest-{first['samples'][:12]}"} <= artifacts()
    assert pipeline(str(pretend.config)) == first
    assert task_runs() == {
        "ingest": "Cached",
        "embed_imagebind": "Cached",
        "finetune": "Cached",
        "evaluate": "Cached",
    }
    assert [pretend.tries(stage) for stage in ("ingest", "finetune", "evaluate")] == [1, 1, 1]
    pipeline(str(pretend.config), force=["evaluate"])
    assert (pretend.tries("finetune"), pretend.tries("evaluate")) == (1, 2)


def test_what_may_pass_later_is_tried_again(pretend):
    pretend.behave("ingest", "if attempt == 1: end(75, 'the disk was full')")
    pretend.behave("finetune", "if attempt == 1: os.kill(os.getpid(), 9)")
    pipeline(str(pretend.config))
    assert (pretend.tries("ingest"), pretend.tries("finetune")) == (2, 2)


def test_videos_have_one_stage_more_and_a_given_checkpoint_one_less(pretend):
    pretend.over_video()
    first = pipeline(str(pretend.config))
    assert list(first) == ["samples", "frames", "features", "checkpoint", "report"]
    assert task_runs()["extract_frames"] == "Completed"
    given = pipeline(str(pretend.config), [f"checkpoint='{first['checkpoint'][:16]}'"])
    assert "checkpoint" not in given and given["report"] == first["report"]
    assert task_runs()["evaluate"] == "Cached" and pretend.tries("finetune") == 1


def test_only_the_stages_named_run(pretend):
    with pytest.raises(MissingArtifact, match="evaluate reads samples .* run ingest first"):
        pipeline(str(pretend.config), stages=["evaluate"])
    with pytest.raises(ConfigError, match="no stage extract_frames: it has ingest, "):
        pipeline(str(pretend.config), stages=["ingest", "extract_frames"])
    assert set(pipeline(str(pretend.config), stages=["ingest", "embed_imagebind"])) == {"samples", "features"}
    assert set(pipeline(str(pretend.config), stages=["embed_imagebind"])) == {"features"}
    assert [pretend.tries(stage) for stage in STAGES] == [1, 0, 1, 0, 0]


def test_a_stage_waits_for_its_places_among_the_gpus(pretend):
    overrides = ["runner.gpu_limit=cards", "runner.stages.ingest.gpus=2"]
    with pytest.raises(StageFailed, match="ingest: runner.gpu_limit: Prefect has no 2 places of cards .* gcl create"):
        pipeline(str(pretend.config), overrides, stages=["ingest"])
    assert pretend.tries("ingest") == 0
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("cards", 2)
        pipeline(str(pretend.config), overrides, stages=["ingest"])
        assert client.read_global_concurrency_limit_by_name("cards").active_slots == 0
    assert pretend.tries("ingest") == 1


def test_failed_items_are_tried_again_on_demand(pretend):
    pretend.behave("ingest", "failing = attempt == 1")
    pipeline(str(pretend.config))
    pipeline(str(pretend.config))
    assert (pretend.tries("ingest"), pretend.tries("embed_imagebind")) == (1, 1)
    pipeline(str(pretend.config), retry_failed=True)
    assert (pretend.tries("ingest"), pretend.tries("embed_imagebind")) == (2, 1)
    pipeline(str(pretend.config), retry_failed=True)
    assert pretend.tries("ingest") == 2


@pytest.mark.parametrize("code", [65, 78, 70])
def test_what_cannot_pass_is_not_tried_again_and_the_cause_is_told(pretend, code):
    pretend.behave("embed_imagebind", f"end({code}, 'picture.jpg is broken')")
    with pytest.raises(StageFailed, match="picture.jpg is broken") as failed:
        pipeline(str(pretend.config))
    assert failed.value.code == code and pretend.tries("embed_imagebind") == 1 and pretend.tries("finetune") == 0


def test_input_that_cannot_be_read_fails_the_run_before_its_first_stage(pretend):
    (pretend.folder / "val.json").write_text("{bad")
    with pytest.raises(BadInput, match="val.json is not JSON"):
        pipeline(str(pretend.config))
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)[0]
    assert run.state.name == "Failed" and "val.json is not JSON" in run.state.message


def test_ctrl_c_ends_the_stage_and_the_next_run_takes_up(pretend):
    pretend.behave("finetune", "(here / 'pid').write_text(str(os.getpid())); time.sleep(600 if attempt == 1 else 0)")
    command = [sys.executable, "-m", "flows", "run", str(pretend.config)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    pid_file = pretend.folder / "envs" / "finetune" / "bin" / "pid"
    end = time.monotonic() + 600
    while not (pid_file.exists() and pid_file.read_text()):
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 130 and "stopped" in said and "Traceback" not in said, said[-3000:]
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bleu_1" in done.stdout and "report.md" in done.stdout
    assert (pretend.tries("ingest"), pretend.tries("finetune")) == (1, 2)


@pytest.mark.slow
def test_the_smoke_flow(tmp_path, monkeypatch):
    """Real stages on tiny data, the whole DAG twice."""
    monkeypatch.delenv("MALMM_ENVS", raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "flows", "smoke", "--store", str(tmp_path / "store")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["seconds"]["second"] < result["seconds"]["first"] / 4 and "mrr" in result["scores"]
