"""What the contract does for every stage: one run an artifact, parts that know of each other, no orphan for long."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from flows import environments
from flows.config import load
from flows.plan import Step, plan
from flows.runners import ROOT
from flows.runners.mounts import as_the_owner
from stages.contract import Request, making, open_draft
from stages.events import Events
from stages.job import FORCED, Job, Part
from storage import Draft, Ledger, Store
from storage.artifacts import MANIFEST, folder_of
from tests.flows.pretend import Pretend

# A stage that has set everything up, and then is where no signal is heard.
DEAF = """
import signal, time
from stages import contract
contract.GRACE = 0.2
contract._follow_parent()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("begun", flush=True)
time.sleep(1000)
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {"MALMM_PARENT": str(os.getpid())},
                         stdout=subprocess.PIPE, text=True, start_new_session=True)
assert child.stdout.readline() == "begun\\n"
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def ingest(tmp_path) -> Step:
    """The first step of a small pipeline, to be run by the real stage."""
    return plan(load(Pretend(tmp_path).config))["ingest"]


def start(step: Step) -> subprocess.Popen:
    command = [str(environments.python(step.stage)), "-m", f"stages.{step.stage}", "run", "-"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process.stdin:
        process.stdin.write(step.request.model_dump_json())
    return process


def job_of(step: Step, part: Part | None = None) -> Job:
    request = step.request.model_copy(update={"part": part})
    return Job(request, step.config, Store(request.store), step.key, {}, Events(open(os.devnull, "w")))


def test_a_second_run_of_the_same_waits_and_takes_what_the_first_has_made(ingest):
    store, folder = Store(ingest.request.store), folder_of(ingest.kind, ingest.key)
    first = start(ingest)
    assert first.wait(600) == 0 and json.loads(first.stdout.readlines()[-1])["reused"] is False
    manifest = store.read_bytes(f"{folder}/{MANIFEST}")
    store.delete(f"{folder}/{MANIFEST}")
    with making(store, ingest.kind, ingest.key, print):
        second = start(ingest)
        said = json.loads(second.stdout.readline())
        assert said["message"] == f"another run is making samples {ingest.key[:12]}: this one waits for it"
        assert second.poll() is None
        store.write_bytes(f"{folder}/{MANIFEST}", manifest)
    assert second.wait(600) == 0 and json.loads(second.stdout.readlines()[-1])["reused"] is True


def test_a_run_that_waits_can_be_stopped(ingest):
    with making(Store(ingest.request.store), ingest.kind, ingest.key, print):
        waiting = start(ingest)
        assert "another run" in waiting.stdout.readline()
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(600) == 130


def test_a_part_reads_the_ledgers_that_may_hold_its_items_and_no_others(ingest):
    partial = Draft(Store(ingest.request.store), ingest.kind, ingest.key).partial
    for name, item in (("ledger", "a"), ("ledger-0-of-2", "b"), ("ledger-0-of-3", "c")):
        ledger = Ledger()
        ledger.done(item)
        partial.write_table(f"{name}.parquet", ledger.table())
    partial.write_bytes("ledger-1-of-3.parquet", b"what this part must not read")
    job = job_of(ingest, Part(number=0, of=3))
    assert all(job.ledger.finished(item) for item in "abc") and not job.ledger.finished("d")
    with pytest.raises(Exception, match="[Pp]arquet"):
        job_of(ingest)


def test_a_try_that_ends_early_keeps_what_the_one_before_it_did(ingest):
    before = Ledger()
    before.done("a", 1.5)
    before.failed("b", ValueError("is broken"))
    before.failed("c", ValueError("is broken"))
    partial = Draft(Store(ingest.request.store), ingest.kind, ingest.key).partial
    partial.write_table("ledger.parquet", before.table())
    job = job_of(ingest)
    job.ledger.done("c")
    job.keep_ledger()
    kept = {row["id"]: (row["status"], row["attempts"]) for row in partial.read_table("ledger.parquet").to_pylist()}
    assert kept == {"a": ("done", 1), "b": ("failed", 1), "c": ("done", 2)}
    assert job.ledger.table()["id"].to_pylist() == ["c"]  # what is published is what this try has seen


def test_what_was_begun_by_force_stays_so_for_the_tries_that_follow(ingest):
    store, draft = Store(ingest.request.store), Draft(Store(ingest.request.store), ingest.kind, ingest.key)
    draft.publish(Ledger(), {"counts": {"failed": 0}})
    assert not job_of(ingest).forced
    open_draft(ingest.request.model_copy(update={"force": True}), store, ingest.kind, ingest.key)
    assert draft.partial.list() == [FORCED] and job_of(ingest).forced
    open_draft(ingest.request, store, ingest.kind, ingest.key)
    assert job_of(ingest).forced
    draft.publish(Ledger(), {})
    assert not job_of(ingest).forced


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which only root can")
@pytest.mark.parametrize("there", ["", "artifacts/samples", "artifacts/samples/1/partial"])
def test_what_root_makes_for_a_container_is_the_container_s(tmp_path, there):
    (tmp_path / "store" / there).mkdir(parents=True)
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
        os.chown(path, 10001, 10001)
    store = Store(tmp_path / "store")
    request = Request(stage="ingest", config={}, store=store.url, force=True)
    with as_the_owner(store, folder_of("samples", "1")):
        open_draft(request, store, "samples", "1")
    made = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    assert len(made) == 6 and {path.stat().st_uid for path in made} == {10001}


@pytest.mark.skipif(sys.platform != "linux", reason="signals at a parent's death are Linux's")
def test_an_orphan_that_hears_no_signal_is_killed():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, DEAF], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    orphan = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 600
    while _runs(orphan):
        assert time.monotonic() < end, "the orphan lives on"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
