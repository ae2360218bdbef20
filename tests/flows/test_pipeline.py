"""The DAG through Prefect: retries by exit code, what was made is not made again, Ctrl-C leaves no process."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from flows.config import STAGES, ConfigError, load
from flows.parts import delays
from flows.pipeline import pipeline
from flows.plan import plan
from flows.progress import Progress
from flows.runners import StageFailed
from stages.contract import BadInput, making
from storage import Draft, MissingArtifact, Store
from storage.artifacts import MANIFEST
from tests.flows.laptop import Laptop
from tests.flows.pretend import ROOT

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def at_once(monkeypatch):
    """Retries without the seconds before them."""
    monkeypatch.setattr("flows.pipeline.delays", lambda retries: [0] * retries)


def task_runs(laptop) -> dict[str, str]:
    """Stage -> name of the state of its task, of the newest flow run."""
    return {stage: task.state.name for stage, task in laptop.newest()[1].items()}


def artifacts(laptop) -> set[str]:
    """The keys of what the newest flow run shows."""
    run, _ = laptop.newest()
    of_this_run = {"artifacts": {"flow_run_id": {"any_": [str(run.id)]}}}
    with laptop.client() as client:
        return {a["key"] for a in client.request("POST", "/artifacts/filter", json=of_this_run).json()}


def test_the_second_run_executes_nothing(laptop, pretend):
    first = pipeline(str(pretend.config))
    assert task_runs(laptop) == dict.fromkeys(("ingest", "embed_imagebind", "finetune", "evaluate"), "Completed")
    assert {"pretend-metrics", "pretend-lineage", f"ingest-{first['samples'][:12]}"} <= artifacts(laptop)
    assert pipeline(str(pretend.config)) == first
    assert task_runs(laptop) == {
        "ingest": "Cached",
        "embed_imagebind": "Cached",
        "finetune": "Cached",
        "evaluate": "Cached",
    }
    assert [pretend.tries(stage) for stage in ("ingest", "finetune", "evaluate")] == [1, 1, 1]
    pipeline(str(pretend.config), force=["evaluate"])
    assert (pretend.tries("finetune"), pretend.tries("evaluate")) == (1, 2)


def test_what_may_pass_later_is_tried_again(pretend, at_once):
    pretend.behave("ingest", "if attempt == 1: end(75, 'the disk was full')")
    pretend.behave("finetune", "if attempt == 1: os.kill(os.getpid(), 9)")
    pipeline(str(pretend.config))
    assert (pretend.tries("ingest"), pretend.tries("finetune")) == (2, 2)


def test_a_retry_of_what_is_made_again_by_force_takes_up_what_the_try_before_it_left(pretend, at_once):
    first = pipeline(str(pretend.config))
    pretend.behave(
        "ingest",
        """
from stages.contract import open_draft
from storage import is_published
store, key = Store(request.store), key_of(record_of(config, request.inputs, request.sources, request.only))
half = Draft(store, config.KIND, key).partial
if attempt == 2:
    os.kill(os.getpid(), 9)  # before it has begun
if attempt == 3 and request.force and is_published(store, config.KIND, key):
    open_draft(request, store, config.KIND, key)
    half.write_bytes("half", b"done")
    end(75, "the disk was full")
if request.force or not half.exists("half"):
    end(65, "the half that was done is gone")
""",
    )
    assert pipeline(str(pretend.config), force=["ingest"]) == first
    assert pretend.tries("ingest") == 4


def test_a_run_beside_another_waits_without_its_places_and_takes_what_that_one_makes(pretend, monkeypatch):
    first = pipeline(str(pretend.config))
    step = plan(load(pretend.config))["ingest"]
    store, draft = Store(step.request.store), Draft(Store(step.request.store), step.kind, step.key)
    manifest = draft.read_bytes(MANIFEST)
    draft.delete(MANIFEST)
    held, told = threading.Event(), threading.Event()
    monkeypatch.setattr(Progress, "say", lambda self, message, level="info": told.set())
    pretend.behave("ingest", "end(65, 'it is there')")

    def make() -> None:
        with making(store, step.kind, step.key, print):
            held.set()
            assert told.wait(600)
            draft.write_bytes(MANIFEST, manifest)

    with ThreadPoolExecutor(1) as beside:
        made = beside.submit(make)
        assert held.wait(600)
        assert pipeline(str(pretend.config)) == first
        made.result()


def test_videos_have_one_stage_more_and_a_given_checkpoint_one_less(laptop, pretend):
    pretend.over_video()
    first = pipeline(str(pretend.config))
    assert list(first) == ["samples", "frames", "features", "checkpoint", "report"]
    assert task_runs(laptop)["extract_frames"] == "Completed"
    given = pipeline(str(pretend.config), [f"checkpoint='{first['checkpoint'][:16]}'"])
    assert "checkpoint" not in given and given["report"] == first["report"]
    assert task_runs(laptop)["evaluate"] == "Cached" and pretend.tries("finetune") == 1


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


def test_input_that_cannot_be_read_fails_the_run_before_its_first_stage(laptop, pretend):
    (pretend.folder / "val.json").write_text("{bad")
    with pytest.raises(BadInput, match="val.json is not JSON"):
        pipeline(str(pretend.config))
    run, _ = laptop.newest()
    assert run.state.name == "Failed" and "val.json is not JSON" in run.state.message


def test_retries_are_further_and_further_apart():
    assert delays(4) == [10, 30, 90, 270]


def test_ctrl_c_ends_the_stage_and_the_next_run_takes_up(laptop, pretend):
    """The run that is stopped has a server beside it; the next one finds that of `malmm up`."""
    home = pretend.folder / "prefect"
    home.mkdir()
    with sqlite3.connect(laptop.folder / ".malmm" / "prefect.db") as made, sqlite3.connect(home / "prefect.db") as copy:
        made.backup(copy)  # Prefect takes ten seconds to make one
    pretend.behave("finetune", "(here / 'pid').write_text(str(os.getpid())); time.sleep(6000 if attempt == 1 else 0)")
    command = [sys.executable, "-m", "flows", "run", str(pretend.config)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PREFECT_HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        pid_file = pretend.folder / "envs" / "finetune" / "bin" / "pid"
        end = time.monotonic() + 600
        while not (pid_file.exists() and pid_file.read_text()):
            assert process.poll() is None and time.monotonic() < end, process.stderr.read()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=600)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and "stopped" in said and "Traceback" not in said, said[-3000:]
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    done = malmm("run", str(pretend.config), on=laptop)
    assert "bleu_1" in done.stdout and "report.md" in done.stdout
    assert (pretend.tries("ingest"), pretend.tries("finetune")) == (1, 2)


@pytest.mark.slow
def test_the_smoke_flow(laptop, smoke_store):
    """Real stages on tiny data, the whole DAG twice."""
    done = malmm("smoke", "--store", str(smoke_store), on=laptop)
    assert done.stderr.count("is there, 0 items executed") == 4
    assert "mrr" in json.loads(done.stdout)["scores"]


def malmm(*arguments: str, on: Laptop) -> subprocess.CompletedProcess:
    """Run a command to its good end on the server of a laptop."""
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": f"{on.url}/api"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
