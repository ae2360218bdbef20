"""Items to rows of the samples table. Pure."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from stages.ingest.media import expected
from stages.ingest.records import Item, Wanted
from stages.ingest.visdial import Dialogue
from storage.tables import SAMPLES

# (path below its root, SHA-256) of what an item is about; the digest is None where the file is missing.
Media = Callable[[Wanted], tuple[str, str | None]]


def sample_rows(split: str, items: list[Item], media: Media) -> pa.Table:
    """The SAMPLES rows of records of videos and images."""
    rows = []
    for item in items:
        path, digest = media(item.wanted)
        for sample in item.samples:
            rows.append(
                {
                    "sample": sample.id,
                    "split": split,
                    "task": sample.task,
                    "dialogue": f"{split}/{item.wanted.names[0]}",
                    "media": digest,
                    "media_kind": item.wanted.kind,
                    "media_path": path,
                    "start": sample.start,
                    "end": sample.end,
                    "turn": 0,
                    "category": sample.category,
                    "caption": sample.caption,
                    "history": [],
                    "question": sample.question,
                    "answer": sample.answer,
                    "candidates": sample.candidates,
                    "gt_index": sample.gt_index,
                }
            )
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def dialogue_rows(
    split: str,
    dialogues: list[Dialogue],
    media: Media,
    answers: list[str],
    relevance: dict[tuple[int, int], list[float]],
) -> pa.Table:
    """The SAMPLES rows of dialogues; `answers`: the file's pool, `relevance`: (image, turn) -> one a candidate.

    Candidates are taken from the pool in one step: there are 100 a turn, 1.2 million turns in VisDial.
    """
    rows: dict[str, list] = {name: [] for name in SAMPLES.names if name != "candidates"}
    options, offsets, absent = [], [0], []
    for dialogue in dialogues:
        path, digest = media(dialogue.wanted)
        history: list[dict[str, str | None]] = []
        for number, turn in enumerate(dialogue.turns):
            values = (
                f"{dialogue.id}/{number}",
                split,
                "dialogue",
                dialogue.id,
                digest,
                dialogue.wanted.kind,
                path,
                None,
                None,
                number,
                None,
                dialogue.caption,
                list(history),
                turn.question,
                turn.answer,
                turn.gt_index,
                relevance.get((dialogue.image, number)),
            )
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            options.extend(turn.candidates or ())
            offsets.append(len(options))
            absent.append(turn.candidates is None)
            history.append({"question": turn.question, "answer": turn.answer})
    pool = pa.array(answers, pa.string()).take(pa.array(np.asarray(options, np.int64)))
    candidates = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pool, mask=pa.array(absent))
    columns = {
        name: candidates if name == "candidates" else pa.array(rows[name], SAMPLES.field(name).type)
        for name in SAMPLES.names
    }
    return pa.table(columns, schema=SAMPLES)


def class_names(items: Iterable[Any]) -> set[str]:
    """The classes among the answers of classification samples."""
    samples = (sample for item in items if isinstance(item, Item) for sample in item.samples)
    return {sample.answer for sample in samples if sample.task == "classification"}


def where(places: dict[Wanted, str | None], digests: dict[tuple[str, str], str]) -> Media:
    """`places`: where each file was found below its root; `digests`: (kind, path) -> SHA-256."""
    return lambda one: (places[one] or expected(one), digests.get((one.kind, places[one] or "")))
