"""The whole pipeline with its store on S3: real stages, each in its own environment, and the keys that a disk gets."""

import json

import pytest
from prefect.states import Failed

from flows.config import load
from flows.parts import worth_retrying
from flows.plan import plan, statuses
from flows.runners import ProcessRunner
from flows.smoke import CONFIG, generate
from storage import Artifact, MissingArtifact, Store
from storage.errors import StoreRefused, StoreUnreachable
from tests.s3_server import SECRET


def run(step) -> None:
    events: list = []
    assert ProcessRunner().run(step.request, events.append) == 0, json.dumps(events[-3:], indent=1)
    assert SECRET not in json.dumps(events)


def test_a_store_out_of_reach_is_tried_again_and_one_that_refuses_is_not():
    states = [Failed(data=error("the store")) for error in (StoreUnreachable, StoreRefused, MissingArtifact)]
    assert [worth_retrying(None, None, state) for state in states] == [True, False, False]


@pytest.mark.slow
def test_real_stages_from_generated_dialogues_to_a_report(s3, tmp_path):
    overrides = generate(tmp_path)
    on_disk, steps = plan(load(CONFIG, overrides)), plan(load(CONFIG, [*overrides, f"store={s3.url}"]))
    assert [step.key for step in steps.values()] == [step.key for step in on_disk.values()]
    for step in steps.values():
        run(step)
    assert [status.state for status in statuses(steps.values(), s3)] == ["fresh"] * len(steps)
    report = Artifact(s3, "report", steps["evaluate"].key)
    assert report.read_json("metrics.json")["trained"]["mrr"]["n"] == 20
    for step in steps.values():
        artifact = Artifact(s3, step.kind, step.key)
        artifact.verify()
        assert not artifact.exists("partial") and SECRET not in json.dumps(artifact.manifest)
    run(on_disk["ingest"])
    made = [Artifact(store, "samples", on_disk["ingest"].key) for store in (s3, Store(tmp_path))]
    assert made[0].content == made[1].content
