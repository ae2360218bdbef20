"""Keys are known before anything runs, and status names what changed."""

import pytest

from flows import plan as planning
from flows.config import load, store_url
from flows.plan import plan, statuses
from flows.runners import ProcessRunner
from storage import Artifact, Draft, Ledger, Store
from storage.digests import Digests


def steps(pretend, *overrides):
    return plan(load(pretend.config, overrides), Digests(pretend.folder / "memory.sqlite"))


def states(pretend, *overrides):
    settings = load(pretend.config, overrides)
    return {s.step.stage: s for s in statuses(steps(pretend, *overrides).values(), Store(store_url(settings)))}


def run_all(pretend):
    for step in steps(pretend).values():
        assert ProcessRunner().run(step.request, lambda event: None) == 0


@pytest.mark.parametrize(
    "override, changed",
    [
        ("evaluate.beams=2", {"evaluate"}),
        ("finetune.lr=0.5", {"finetune", "evaluate"}),
        ("embed_imagebind.seed=3", {"embed_imagebind", "finetune", "evaluate"}),
        ("finetune.checkpoint_every=7", set()),
        ("device=cpu", set()),
    ],
)
def test_a_field_changes_the_keys_of_its_stage_and_of_what_follows(pretend, override, changed):
    before, after = steps(pretend), steps(pretend, override)
    assert {stage for stage in before if before[stage].key != after[stage].key} == changed


def test_bytes_change_keys_and_names_do_not(pretend):
    before = steps(pretend)
    (pretend.folder / "llm").rename(pretend.folder / "elsewhere")
    assert steps(pretend, f"llm={pretend.folder}/elsewhere")["finetune"].key == before["finetune"].key
    image = pretend.folder / "images" / "VisualDialog_val2018_000000000001.jpg"
    image.write_bytes(b"another picture")
    (pretend.folder / "elsewhere").rename(pretend.folder / "llm")
    assert steps(pretend)["ingest"].key != before["ingest"].key


def test_status_tells_missing_fresh_stale_and_failed(pretend):
    assert {s.state for s in states(pretend).values()} == {"missing"}
    run_all(pretend)
    fresh = states(pretend)
    assert {s.state for s in fresh.values()} == {"fresh"} and fresh["ingest"].counts["done"] == 1
    stale = states(pretend, "finetune.lr=0.5")
    assert stale["embed_imagebind"].state == "fresh"
    assert (stale["finetune"].state, stale["finetune"].why) == ("stale", "lr 0.001 -> 0.5")
    assert stale["evaluate"].why.startswith("inputs.checkpoint ")
    failing = steps(pretend, "finetune.lr=0.7")["finetune"]
    partial = Draft(Store(pretend.store), failing.kind, failing.key).partial
    partial.write_json("failure.json", {"error": "BadInput", "message": "no answer", "counts": {"failed": 2}})
    failed = states(pretend, "finetune.lr=0.7")["finetune"]
    assert (failed.state, failed.why, failed.counts) == ("failed", "BadInput: no answer", {"failed": 2})


def test_sources_that_changed_without_a_new_version_are_warned_of(pretend, monkeypatch):
    run_all(pretend)
    monkeypatch.setattr(planning, "code_digest", lambda config: "other")
    assert "VERSION is still" in states(pretend)["ingest"].warnings[0]


def test_a_published_artifact_says_what_it_is_made_of(pretend):
    run_all(pretend)
    step = steps(pretend)["evaluate"]
    record = Artifact(Store(pretend.store), step.kind, step.key).manifest["record"]
    assert record == step.record and record["inputs"]["checkpoint"] == steps(pretend)["finetune"].key


def test_a_stage_that_was_begun_is_no_failure(pretend):
    step = steps(pretend)["ingest"]
    Draft(Store(pretend.store), step.kind, step.key).partial.write_table("ledger.parquet", Ledger().table())
    assert states(pretend)["ingest"].state == "begun"
