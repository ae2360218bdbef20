"""Parts of a stage through Prefect: how many there are, what they say, which are tried again, what fails them all."""

import hashlib
import re
import threading
from dataclasses import replace

import pyarrow as pa
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import parts
from flows.config import load
from flows.parts import number_of_items, number_of_parts, run_part, run_parts
from flows.plan import Step, plan
from flows.runners import RunnerSettings, StageFailed
from stages.contract import Part, finished
from storage import Draft, Ledger, Store
from storage.tables import SAMPLES

pytestmark = pytest.mark.usefixtures("server")

SIDE_BY_SIDE = RunnerSettings(side_by_side=2)
# A part says what it did; the rest of the pretended stage is left out.
PART = """
mine = here / f"part-{request.part.number}"
mine.write_text(mine.read_text() + "x" if mine.exists() else "x")
attempt = len(mine.read_text())
%s
print(json.dumps({"event": "part_done", "number": request.part.number, "of": request.part.of, "counts": {"done": 3}}))
sys.exit(0)
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Retries without their delays."""
    monkeypatch.setattr(parts, "delays", lambda retries: [0] * retries)


@pytest.fixture
def steps(pretend) -> dict[str, Step]:
    return plan(load(pretend.config))


def attempts(pretend) -> dict[str, int]:
    folder = pretend.folder / "envs" / "embed_imagebind" / "bin"
    return {path.name: len(path.read_text()) for path in folder.glob("part-*")}


def samples_of(step: Step, media: list[str | None]) -> None:
    """Publish samples about the media, a tenth of them in the split that is scored."""
    row = {"task": "question", "media_kind": "image", "media_path": "a", "turn": 0, "history": [], "question": "why"}
    rows = [
        row | {"sample": str(n), "dialogue": str(n), "media": digest, "split": "train" if n % 10 else "val"}
        for n, digest in enumerate(media)
    ]
    draft = Draft(Store(step.request.store), "samples", step.request.inputs["samples"])
    draft.write_table("samples.parquet", pa.Table.from_pylist(rows, schema=SAMPLES))
    draft.publish(Ledger(), {})


def test_items_are_distinct_media_or_samples_of_the_split(steps, monkeypatch):
    embed, evaluate = steps["embed_imagebind"], steps["evaluate"]
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20_000)]
    samples_of(embed, [*digests[:10], *digests[:10], None])
    assert (number_of_items(embed), number_of_items(evaluate)) == (10, 3)
    of_four = RunnerSettings(stages={"embed_imagebind": {"part_items": 4}})
    assert (number_of_parts(embed, of_four), number_of_parts(evaluate, of_four)) == (3, 1)
    samples_of(embed, digests)
    assert number_of_items(embed) == 20_000
    monkeypatch.setattr(parts, "COUNTED", 2_000)
    assert number_of_items(embed) % 16 == 0 and abs(number_of_items(embed) - 20_000) < 1_000


def test_parts_have_names_tags_and_counts_and_those_that_may_pass_are_tried_again(pretend, steps):
    ends = "if request.part.number == 1 and attempt == 1: end(75, 'the disk was full')"
    ends += "\nif request.part.number == 2 and attempt == 1: os.kill(os.getpid(), 9)"
    pretend.behave("embed_imagebind", PART % ends)
    run_parts(steps["embed_imagebind"], 4, SIDE_BY_SIDE, retries=1)
    assert attempts(pretend) == {"part-0": 1, "part-1": 2, "part-2": 2, "part-3": 1}
    with get_client(sync_client=True) as client:
        of_four = TaskRunFilter(name=TaskRunFilterName(like_=" of 4"))
        runs = {run.name: run for run in client.read_task_runs(task_run_filter=of_four)}
    assert {name: runs[name].state.message for name in sorted(runs)} == {
        f"embed_imagebind part {n} of 4": f"part {n} of 4: 3 done" for n in range(4)
    }
    assert {"embed_imagebind", "pretend"} <= set(runs["embed_imagebind part 0 of 4"].tags)


@pytest.mark.parametrize("code", [65, 78])
def test_a_part_that_cannot_pass_fails_the_flow_with_its_cause(pretend, steps, code):
    pretend.behave("embed_imagebind", PART % f"if request.part.number == 1: end({code}, 'picture.jpg is broken')")
    with pytest.raises(StageFailed, match="picture.jpg is broken") as failed:
        run_parts(steps["embed_imagebind"], 3, SIDE_BY_SIDE, retries=2)
    assert failed.value.code == code and attempts(pretend)["part-1"] == 1


class Flaky:
    """A runner whose node goes away under part 1, `times` times."""

    def __init__(self, times: int):
        self.left, self.seen, self._lock = times, [], threading.Lock()

    def run(self, request, on_event) -> int:
        with self._lock:
            self.seen.append(request.part.number)
            if request.part.number == 1 and self.left:
                self.left -= 1
                raise ConnectionError("the node is gone")
        return 0


def test_lost_parts_alone_are_submitted_again_until_retries_run_out(steps, monkeypatch):
    flaky = Flaky(2)
    monkeypatch.setattr(parts, "runner_of", lambda settings, stage: flaky)
    run_parts(steps["embed_imagebind"], 3, SIDE_BY_SIDE, retries=2)
    assert sorted(flaky.seen) == [0, 1, 1, 1, 2]
    flaky.left = 2
    with pytest.raises(StageFailed, match=re.escape("1 of 3 parts were lost (1): the node is gone")) as failed:
        run_parts(steps["embed_imagebind"], 3, SIDE_BY_SIDE, retries=1)
    assert failed.value.code == 75


def test_parts_that_are_finished_are_not_started_again(steps, monkeypatch):
    flaky, step = Flaky(0), steps["embed_imagebind"]
    monkeypatch.setattr(parts, "runner_of", lambda settings, stage: flaky)
    partial = Draft(Store(step.request.store), step.kind, step.key).partial
    for part in (Part(number=0, of=3), Part(number=2, of=3), Part(number=1, of=4)):
        partial.write_bytes(finished(part), b"")
    run_parts(step, 3, SIDE_BY_SIDE, retries=0)
    assert flaky.seen == [1]
    run_parts(replace(step, request=step.request.model_copy(update={"retry_failed": True})), 3, SIDE_BY_SIDE, retries=0)
    assert sorted(flaky.seen[1:]) == [0, 1, 2]
    partial.write_bytes(finished(Part(number=1, of=3)), b"")
    run_parts(step, 3, SIDE_BY_SIDE, retries=0)
    assert len(flaky.seen) == 4


def test_a_cluster_that_takes_no_connection_is_asked_again_before_the_flow_of_parts_begins(steps, monkeypatch):
    tries = []

    def init(address, **options):
        tries.append(address)
        raise ConnectionError("the client server did not start")

    monkeypatch.setattr("ray.init", init)
    with get_client(sync_client=True) as client:
        before = client.read_flow_runs(limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
        with pytest.raises(StageFailed, match="ray://head:10001: the client server did not start") as failed:
            run_parts(steps["embed_imagebind"], 2, RunnerSettings(cluster="ray://head:10001"), retries=2)
        assert client.read_flow_runs(limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC) == before
    assert failed.value.code == 75 and tries == ["ray://head:10001"] * 3


def test_a_node_of_another_version_and_a_cluster_without_a_server_are_refused(steps):
    request = steps["embed_imagebind"].request
    with pytest.raises(StageFailed, match="has Prefect .* not 3.0: bring it up to date") as failed:
        run_part.fn(request, SIDE_BY_SIDE, {"Prefect": "3.0"})
    assert failed.value.code == 78
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(StageFailed, match="PREFECT_API_URL"):
        run_parts(steps["embed_imagebind"], 2, RunnerSettings(cluster="ray://head:10001"), retries=0)
