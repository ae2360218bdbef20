"""What is there to score: rows of the samples table, as plain dicts with all that prediction and scoring need."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract import BadInput, Job, WrongConfig
from stages.evaluate.checkpoint import Checkpoint
from stages.evaluate.scoring import Item
from storage import Artifact

COLUMNS = [
    "sample", "task", "dialogue", "media", "media_kind", "media_path", "start", "end", "turn", "category", "caption",
    "history", "question", "answer", "candidates", "gt_index", "relevance",
]  # fmt: skip
Row = dict[str, Any]
Segment = tuple[str, float | None, float | None]  # media, and where it starts and ends, in seconds


def segment_of(row: Mapping[str, Any]) -> Segment:
    """What a row shows."""
    return row["media"], row["start"], row["end"]


def read_split(samples: Artifact, split: str, columns: list[str]) -> pa.Table:
    """Some columns of one split; no others are held in memory (VisDial's train has 1.2 million rows)."""
    with samples.open("samples.parquet") as file:
        return pq.read_table(file, columns=columns, filters=pc.field("split") == split)


def read_items(job: Job, checkpoint: Checkpoint, systems: Iterable[str], notes: list[str]) -> list[Row]:
    """The rows of the split that can be scored, in the table's order, each with its `references`; what is left out is
    noted. Captions of one segment become one row. Class names become a classification's candidates.

    Raises BadInput when there are none, WrongConfig when they are not of what the checkpoint was trained on.
    """
    split, samples = job.config.split, job.inputs["samples"]
    found = read_split(samples, split, COLUMNS).to_pylist()
    if not found:
        raise BadInput(f"the samples have no split {split!r}: set evaluate.split, or give ingest its annotations")
    if job.only:
        found = _named(found, job.only)
        if not found:
            raise BadInput(f"no sample or dialogue of split {split} is named {', '.join(sorted(job.only))}")
    kind, task = _one(found, "media_kind", split), _one(found, "task", split)
    if (kind == "video") != (checkpoint.frames is not None):
        trained = "images" if checkpoint.frames is None else "videos"
        raise WrongConfig(
            f"evaluate.split: the samples of {split} are of {kind}s, the checkpoint was trained on {trained}"
        )
    if job.config.protocol == "seed" and task not in ("dialogue", "question"):
        raise WrongConfig(f"evaluate.protocol: seed scores answers to questions; the samples' task is {task}")

    rows, without = [], Counter()
    for row in found:
        lacks = kind if row["media"] is None else "answer" if row["answer"] is None else None
        if lacks is None:
            rows.append(row | {"references": (row["answer"],)})
            continue
        without[lacks] += 1
        for system in systems if job.mine(row["sample"]) else ():
            job.ledger.skipped(f"{system}/{row['sample']}", f"has no {lacks}")
    for lacks, n in without.items():
        notes.append(f"{n} of {len(found)} samples of split {split} have no {lacks} and are not scored")
    if not rows:
        raise BadInput(f"nothing to score in split {split}: {'; '.join(notes)}")
    if task == "caption":
        return merge_captions(rows)
    return _with_classes(rows, samples) if task == "classification" else rows


def _named(rows: Sequence[Row], names: Set[str]) -> list[Row]:
    """The rows whose sample or dialogue is named; of a caption's segment all, since each is scored against all."""
    named = [row for row in rows if {row["sample"], row["dialogue"]} & names]
    samples, captions = {row["sample"] for row in named}, {_told(row) for row in named if row["task"] == "caption"}
    return [row for row in rows if row["sample"] in samples or (row["task"] == "caption" and _told(row) in captions)]


def _told(row: Row) -> tuple[Any, ...]:
    """What a caption tells of, and what it was asked for: captions alike in this are references of one another."""
    return *segment_of(row), row["question"]


def merge_captions(rows: Sequence[Row]) -> list[Row]:
    """One row a segment of a video (or an image) and question about it, the first one's, with all captions as its
    references, in order."""
    merged: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if (told := _told(row)) in merged:
            merged[told]["references"] += row["references"]
        else:
            merged[told] = dict(row)
    return list(merged.values())


def item_of(row: Row) -> Item:
    """A row as scoring knows it."""
    return Item(
        row["sample"], row["dialogue"], row["turn"], row["question"], row["references"], row["gt_index"],
        row["relevance"], row["category"],
    )  # fmt: skip


def _with_classes(rows: Sequence[Row], samples: Artifact) -> list[Row]:
    if not samples.exists("classes.json"):
        raise BadInput(f"samples {samples.key} have no classes.json, the names of their classes: run ingest again")
    classes: list[str] = samples.read_json("classes.json")
    place = {name: i for i, name in enumerate(classes)}
    for row in rows:
        if row["answer"] not in place:
            raise BadInput(f"{row['sample']}: its class {row['answer']!r} is not in classes.json: run ingest again")
    return [row | {"candidates": classes, "gt_index": place[row["answer"]]} for row in rows]


def _one(rows: Sequence[Row], column: str, split: str) -> str:
    found = sorted({row[column] for row in rows})
    if len(found) > 1:
        raise WrongConfig(
            f"evaluate.split: {split} mixes samples of {column} {' and '.join(found)}; give ingest a file of one kind "
            f"for the split that is scored (ingest.annotations.{split})"
        )
    return found[0]
