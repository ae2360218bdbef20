"""Answers and candidate scores of every sample, by the model before and after training, kept as they come."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from malmm.model import Batch, MultimodalModel, Sample
from stages.contract import Job
from storage.features import FeatureBank, text_digest

# Order of work: the untrained system is the model before its weights are loaded.
SYSTEMS = ("untrained", "trained", "permuted")
SAVE_SECONDS = 5.0  # a killed run loses no more than this, and a batch
PREDICTIONS = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        # mean log-likelihood of each candidate; null where they were not ranked
        pa.field("scores", pa.list_(pa.float32())),
    ]
)


class Features:
    """Embeddings of the samples' images and questions, gathered once."""

    def __init__(self, bank: FeatureBank, rows: Sequence[Mapping[str, Any]]):
        media = sorted({row["media"] for row in rows})
        questions = sorted({row["question"] for row in rows})
        self._media = {digest: i for i, digest in enumerate(media)}
        self._questions = {question: i for i, question in enumerate(questions)}
        self._vision = torch.from_numpy(np.array(bank.gather("vision", media)))
        self._text = torch.from_numpy(np.array(bank.gather("text", [text_digest(q) for q in questions])))

    def batch(self, rows: Sequence[Mapping[str, Any]], shown: Mapping[str, str] | None = None) -> Batch:
        """The rows as the model takes them; `shown` gives each image another in its place."""
        media = [row["media"] if shown is None else shown[row["media"]] for row in rows]
        return Batch(
            [Sample.from_row(row) for row in rows],
            self._vision[[self._media[m] for m in media]],
            self._text[[self._questions[row["question"]] for row in rows]],
        )


def kept(job: Job, system: str) -> dict[str, tuple[str, list[float] | None]]:
    """What earlier, unfinished tries have saved of a system: sample -> (answer, candidate scores or None)."""
    found = {}
    for name in job.draft.partial.list():
        if name.startswith(f"{system}-"):
            table = job.draft.partial.read_table(name)
            found |= {row["sample"]: (row["answer"], row["scores"]) for row in table.to_pylist()}
    return found


def predict(
    job: Job,
    model: MultimodalModel,
    features: Features,
    rows: Sequence[Mapping[str, Any]],
    system: str,
    ranked: frozenset[str],
    shown: Mapping[str, str] | None,
    tell: Callable[[int], None],
) -> None:
    """Answer all rows that no earlier try has answered, and rank candidates where the sample is in `ranked`.

    Saves to job.draft.partial every few seconds. What the model refuses is recorded as failed; the others go
    on. `tell`: told how many of the rows are behind.
    """
    before = kept(job, system)
    for row in rows:
        if row["sample"] in before:
            job.ledger.reused(f"{system}/{row['sample']}")
    place = {row["sample"]: i for i, row in enumerate(rows)}

    def save() -> None:
        # Named by a row that no earlier file holds, so that none is written over.
        name = f"{system}-{place[fresh[0]['sample']]:08d}.parquet"
        job.draft.partial.write_table(name, pa.Table.from_pylist(fresh, schema=PREDICTIONS))
        fresh.clear()

    fresh: list[dict[str, Any]] = []
    saved = time.monotonic()
    for end, batch in _batches(rows, before, job.config.batch):
        fresh += _answer(job, model, features, batch, system, ranked, shown)
        if fresh and time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
        tell(end)
    if fresh:
        save()
    tell(len(rows))


def _batches(
    rows: Sequence[Mapping[str, Any]], done: Mapping[str, Any], size: int
) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    """(end, batch), with the same limits whatever was done before: a resumed run computes the same."""
    for begin in range(0, len(rows), size):
        if todo := [row for row in rows[begin : begin + size] if row["sample"] not in done]:
            yield min(begin + size, len(rows)), todo


def _answer(
    job: Job,
    model: MultimodalModel,
    features: Features,
    rows: Sequence[Mapping[str, Any]],
    system: str,
    ranked: frozenset[str],
    shown: Mapping[str, str] | None,
) -> list[dict[str, Any]]:
    """Rows of PREDICTIONS. When the model refuses a batch, its samples are tried one by one."""
    started = time.monotonic()
    try:
        batch = features.batch(rows, shown)
        answers = model.generate(batch, job.config.beams, job.config.max_new_tokens)
        wanted = [i for i, row in enumerate(rows) if row["sample"] in ranked]
        scores: dict[int, np.ndarray] = {}
        if wanted:
            part = features.batch([rows[i] for i in wanted], shown)
            found = model.rank(part, [rows[i]["candidates"] for i in wanted], job.config.candidates_at_once)
            scores = {i: one.numpy() for i, one in zip(wanted, found, strict=True)}
            for i, one in scores.items():
                if np.isnan(one).any():
                    raise ValueError(f"{rows[i]['sample']}: the model's score of a candidate is not a number")
    except ValueError as error:
        if len(rows) > 1:
            return [found for row in rows for found in _answer(job, model, features, [row], system, ranked, shown)]
        job.item_failed(f"{system}/{rows[0]['sample']}", error, time.monotonic() - started)
        return []
    seconds = (time.monotonic() - started) / len(rows)
    for row in rows:
        job.ledger.done(f"{system}/{row['sample']}", seconds)
    return [
        {"sample": row["sample"], "answer": answer, "scores": scores.get(i)}
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
