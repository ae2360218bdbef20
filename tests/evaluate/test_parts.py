"""Parts of the work, side by side, killed or run twice: the report has the bytes of one undivided run."""

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo.tiny_language_model import write_tiny_llm
from stages.contract import TryAgain
from stages.evaluate import predict
from stages.evaluate.run import _first_failure
from storage import Ledger, Store
from tests.evaluate.pipeline import Inputs, rows, start


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


def inputs_at(store: Path, llm: Path) -> Inputs:
    """Twelve samples, one of which the model refuses, in batches of two."""
    inputs = Inputs(store, llm)
    changed = rows()
    changed[-2]["turn"] = 99  # turn_pe has no such row
    inputs.samples(changed, "refused")
    config = inputs.config
    inputs.config = lambda **fields: config(batch=2, max_failed_share=0.1, resamples=100, **fields)
    return inputs


@pytest.fixture(scope="module")
def undivided(tmp_path_factory, tiny_llm):
    inputs = inputs_at(tmp_path_factory.mktemp("undivided") / "store", tiny_llm)
    return inputs.evaluate().artifact(inputs.store)


def same(found, undivided) -> None:
    assert found.manifest["files"] == undivided.manifest["files"]
    assert found.manifest["counts"] == undivided.manifest["counts"]
    assert found.manifest["counts"] == {"done": 33, "reused": 0, "failed": 3, "skipped": 0}


@pytest.mark.parametrize("parts", [3, 7])
def test_parts_in_any_order_leave_only_the_scoring(tmp_path, tiny_llm, undivided, parts):
    inputs = inputs_at(tmp_path / "store", tiny_llm)
    outcomes = [inputs.evaluate(part={"number": n, "of": parts}) for n in reversed(range(parts))]
    counts = [outcome.of("part_done")[0]["counts"] for outcome in outcomes]
    assert sum(count["done"] for count in counts) == 33 and sum(count["failed"] for count in counts) == 3
    report = inputs.evaluate().artifact(inputs.store)
    same(report, undivided)
    ledger = report.ledger().to_pylist()
    assert all(row["seconds"] is not None and row["attempts"] == 1 for row in ledger if row["status"] == "done")


def test_a_part_killed_and_one_run_twice_at_once(tmp_path, tiny_llm, undivided):
    inputs = inputs_at(tmp_path / "store", tiny_llm)
    save_all = partial(setattr, predict, "SAVE_SECONDS", 0)
    with open(os.devnull, "wb") as null:
        begin = partial(start, out=null.fileno(), err=null.fileno(), prepare=save_all)
        twins = [begin(inputs.request(part={"number": 0, "of": 2})) for _ in range(2)]
        assert [os.waitpid(pid, 0)[1] for pid in twins] == [0, 0]
    inputs.killed_at(inputs.saved() + 4, part={"number": 1, "of": 2})
    assert inputs.evaluate(part={"number": 2, "of": 3}).code == 0  # another number of parts
    same(inputs.evaluate().artifact(inputs.store), undivided)


def test_when_all_is_answered_no_model_is_built(tmp_path, tiny_llm):
    inputs = Inputs(tmp_path / "store", tiny_llm)
    assert inputs.evaluate(part={"number": 0, "of": 1}).code == 0
    (folder,) = Store(inputs.store).list("artifacts/report")
    assert not (inputs.store / "artifacts/report" / folder / "manifest.json").exists()
    last = inputs.evaluate()
    assert last.artifact(inputs.store).manifest["counts"]["done"] == 36 and not last.of("progress")


def test_answers_that_another_run_took_away_are_no_failures():
    job = SimpleNamespace(ledger=Ledger())
    job.ledger.done("trained/val/1/0")
    with pytest.raises(TryAgain, match="another run makes the same report"):
        _first_failure(job)
    job.ledger.failed("trained/val/1/1", ValueError("too long"))
    assert _first_failure(job) == "trained/val/1/1: too long"
