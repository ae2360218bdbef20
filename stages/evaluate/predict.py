"""Answers and candidate scores of every sample, by the model before and after training, kept as they come."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from malmm.model import MultimodalModel
from stages.contract import Job
from stages.evaluate.features import Features
from stages.evaluate.items import Segment
from stages.evaluate.scoring import Answers

# Order of work: the untrained system is the model before its weights are loaded.
SYSTEMS = ("untrained", "trained", "permuted")
SAVE_SECONDS = 5.0  # a killed run loses no more than this, and a batch
PREDICTIONS = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        # mean log-likelihood of each candidate; null where they were not ranked
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("beams", pa.list_(pa.string())),  # classification: all beams' texts, best first
        pa.field("constrained", pa.string()),  # classification: the class name said when nothing else is allowed
    ]
)


@dataclass(frozen=True)
class Said:
    """What a system said of a row. scores: of the candidates, if ranked; beams, constrained: of a classification."""

    answer: str
    scores: list[float] | None
    beams: list[str] | None
    constrained: str | None


def kept(job: Job, system: str) -> dict[str, Said]:
    """What is saved of a system, by this try or an earlier, unfinished one, by sample."""
    found = {}
    for name in job.draft.partial.list():
        if name.startswith(f"{system}-"):
            table = job.draft.partial.read_table(name)
            found |= {row.pop("sample"): Said(**row) for row in table.to_pylist()}
    return found


def answers_of(said: Sequence[Said]) -> Answers:
    """What a system said of all items, in their order."""
    return Answers(
        [one.answer for one in said],
        [None if one.scores is None else np.array(one.scores, np.float32) for one in said],
        None if said[0].beams is None else [one.beams for one in said],
        None if said[0].constrained is None else [one.constrained for one in said],
    )


def predict(
    job: Job,
    model: MultimodalModel,
    features: Features,
    rows: Sequence[Mapping[str, Any]],
    system: str,
    ranked: frozenset[str],
    shown: Mapping[Segment, Segment] | None,
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
    shown: Mapping[Segment, Segment] | None,
) -> list[dict[str, Any]]:
    """Rows of PREDICTIONS. When the model refuses a batch, its samples are tried one by one."""
    started = time.monotonic()
    try:
        batch, config = features.batch(rows, shown), job.config
        search = (config.beams, config.max_new_tokens, config.length_penalty, config.min_new_tokens)
        with torch.no_grad():  # once for all that is asked of it: the frames of a video cost more than an answer
            seen = model.prefix(batch)
        naming = rows[0]["task"] == "classification"
        if naming and config.beams > 1:
            # MA-LMM's top-5 counts any of the beams.
            texts = model.generate(batch, *search, returned=config.beams, seen=seen)
            beams: Sequence[list[str] | None] = [
                texts[i : i + config.beams] for i in range(0, len(texts), config.beams)
            ]
            answers = texts[:: config.beams]
        else:
            beams, answers = [None] * len(rows), model.generate(batch, *search, seen=seen)
        constrained: list[str | None] = [None] * len(rows)
        if naming and config.constrained:
            constrained = model.generate(batch, config.beams, allowed=rows[0]["candidates"], seen=seen)
        wanted = [i for i, row in enumerate(rows) if row["sample"] in ranked]
        scores: dict[int, np.ndarray] = {}
        if wanted:
            candidates = [row["candidates"] if row["sample"] in ranked else [] for row in rows]
            found = model.rank(batch, candidates, config.candidates_at_once, seen)
            scores = {i: found[i].numpy() for i in wanted}
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
        {"sample": row["sample"], "scores": scores.get(i)}
        | dict(zip(("answer", "beams", "constrained"), said, strict=True))
        for i, (row, *said) in enumerate(zip(rows, answers, beams, constrained, strict=True))
    ]
