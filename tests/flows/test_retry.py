"""Failed items: published with the rest, tried again by --retry-failed alone, and what follows is made again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages.contract import Request, nothing_to_do
from storage import Artifact, Store, is_current, published

ROOT = Path(__file__).resolve().parent.parent.parent

# Two stages of a contract's making: `first` has three items, of which those in <folder>/bad fail; `second` copies it.
STAGE = """
import sys
from pathlib import Path
from typing import ClassVar
from stages.contract import BadInput, Job, StageConfig, main

class First(StageConfig):
    \"\"\"Items that may fail.\"\"\"
    STAGE: ClassVar[str] = "ingest"
    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "samples"
    most: int = 3

class Second(StageConfig):
    \"\"\"Reads the first.\"\"\"
    STAGE: ClassVar[str] = "embed_imagebind"
    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "features"
    INPUTS: ClassVar[tuple[str, ...]] = ("samples",)

bad = Path(sys.argv[1])

def first(job: Job) -> None:
    there = job.draft.list()
    failures = 0
    for item in "abc":
        if f"{item}.txt" in there:
            job.ledger.reused(item)
        elif item in job.failed_before:
            job.ledger.still(item)
            failures += 1
        elif item in bad.read_text():
            job.item_failed(item, BadInput("is bad"))
            failures += 1
        else:
            job.draft.write_bytes(f"{item}.txt", item.encode())
            job.ledger.done(item)
    if failures > job.config.most:
        raise BadInput(f"{failures} failed")

def second(job: Job) -> None:
    names = [n for n in job.inputs["samples"].list() if n.endswith(".txt")]
    job.draft.write_json("names.json", names)
    job.ledger.done("all")

if sys.argv[2] == "first":
    main(First, first, ["run", "-"])
else:
    main(Second, second, ["run", "-"])
"""


class Stages:
    def __init__(self, folder: Path):
        self.folder, self.bad, self.store = folder, folder / "bad", Store(folder / "store")
        self.bad.write_text("b")

    def run(self, which: str, **request) -> tuple[int, dict]:
        """Exit code and last event."""
        stage = {"first": "ingest", "second": "embed_imagebind"}[which]
        given = {"stage": stage, "config": {}, "store": self.store.url} | request
        done = subprocess.run(
            [sys.executable, "-c", STAGE, str(self.bad), which],
            cwd=ROOT,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
        )
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    def rows(self, key: str) -> dict[str, tuple]:
        return {
            r["id"]: (r["status"], r["attempts"]) for r in Artifact(self.store, "samples", key).ledger().to_pylist()
        }


@pytest.fixture
def stages(tmp_path) -> Stages:
    return Stages(tmp_path)


def test_failed_items_alone_are_tried_again_and_what_follows_is_stale(stages):
    code, event = stages.run("first")
    key = event["key"]
    assert code == 0 and stages.rows(key) == {"a": ("done", 1), "b": ("failed", 1), "c": ("done", 1)}
    code, event = stages.run("second", inputs={"samples": key})
    features = event["key"]
    assert Artifact(stages.store, "features", features).read_json("names.json") == ["a.txt", "c.txt"]

    stages.bad.write_text("")
    assert stages.run("first")[1]["reused"]  # nobody asked to try again
    assert is_current(stages.store, "features", features)
    assert not stages.run("first", retry_failed=True)[1]["reused"]
    assert stages.rows(key) == {"a": ("reused", 1), "b": ("done", 2), "c": ("reused", 1)}
    assert stages.run("first", retry_failed=True)[1]["reused"]  # nothing has failed any more

    assert not is_current(stages.store, "features", features)
    request = Request(stage="embed_imagebind", config={}, inputs={"samples": key}, store=stages.store.url)
    assert not nothing_to_do(request, stages.store, "features", features)
    assert not stages.run("second", inputs={"samples": key})[1]["reused"]
    assert Artifact(stages.store, "features", features).read_json("names.json") == ["a.txt", "b.txt", "c.txt"]
    assert is_current(stages.store, "features", features)


def test_a_retry_that_changes_nothing_leaves_what_follows_fresh(stages):
    key = stages.run("first")[1]["key"]
    features = stages.run("second", inputs={"samples": key})[1]["key"]
    assert not stages.run("first", retry_failed=True)[1]["reused"] and stages.rows(key)["b"] == ("failed", 2)
    assert is_current(stages.store, "features", features)


def test_a_failure_is_told_again_without_being_tried_again(stages):
    code, _ = stages.run("first", config={"most": 0})
    assert code == 65 and not published(stages.store, "samples")
    stages.bad.write_text("")
    code, event = stages.run("first", config={"most": 0})
    assert code == 65 and "1 failed" in event["message"]
    code, event = stages.run("first", config={"most": 0}, retry_failed=True)
    assert code == 0 and stages.rows(event["key"])["b"] == ("done", 2)
