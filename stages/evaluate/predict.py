"""Answers and candidate scores of every sample, by the model before and after training, kept as they come."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from malmm.model import MultimodalModel
from stages.contract import Job
from stages.evaluate.features import Features
from stages.evaluate.items import Row, Segment
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
    """What is saved of a system by sample: by this run, by parts, or by an earlier, unfinished try."""
    tables = map(job.draft.partial.read_table, _saved(job, system))
    return {row.pop("sample"): Said(**row) for table in tables for row in table.to_pylist()}


def answered(job: Job, system: str) -> set[str]:
    """The samples that `kept` has."""
    tables = (job.draft.partial.read_table(name, ["sample"]) for name in _saved(job, system))
    return {sample for table in tables for sample in table["sample"].to_pylist()}


def _saved(job: Job, system: str) -> list[str]:
    return [name for name in job.draft.partial.list() if name.startswith(f"{system}-")]


def batches_of(job: Job, rows: Sequence[Row]) -> list[Sequence[Row]]:
    """The rows in the batches that are this run's; with the same limits whatever was done before, and by whom, so that
    the same is computed."""
    size = job.config.batch
    return [rows[begin : begin + size] for begin in range(0, len(rows), size) if job.mine(rows[begin]["sample"])]


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
    batches: Sequence[Sequence[Row]],
    system: str,
    before: Set[str],
    ranked: frozenset[str],
    shown: Mapping[Segment, Segment] | None,
    tell: Callable[[int], None],
) -> None:
    """Answer all rows that are not in `before`, and rank candidates where the sample is in `ranked`.

    Saves to job.draft.partial every few seconds. What the model refuses is recorded as failed; the others go
    on. `tell`: told how many of the rows are behind.
    """
    fresh: list[dict[str, Any]] = []

    def save() -> None:
        # A name of its own: of two runs of one part none writes over what the other has saved.
        name = f"{system}-{secrets.token_hex(8)}.parquet"
        job.draft.partial.write_table(name, pa.Table.from_pylist(fresh, schema=PREDICTIONS))
        fresh.clear()

    saved, behind = time.monotonic(), 0
    for batch in batches:
        if todo := [row for row in batch if row["sample"] not in before]:
            fresh += _answer(job, model, features, todo, system, ranked, shown)
        if fresh and time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
        behind += len(batch)
        tell(behind)
    if fresh:
        save()


def _answer(
    job: Job,
    model: MultimodalModel,
    features: Features,
    rows: Sequence[Row],
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
