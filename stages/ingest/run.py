"""The shell of ingest: annotation files and media roots in, the samples table out."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.contract import BadInput, Job
from stages.ingest.config import IngestConfig
from stages.ingest.media import SUFFIXES, MediaRoot, expected
from stages.ingest.records import Found, Wanted, parse
from stages.ingest.rows import class_names, dialogue_rows, sample_rows, where
from stages.ingest.visdial import dense_of
from storage.digests import Digests
from storage.tables import SAMPLES

ROW_GROUP = 2_000  # items: at most 20,000 rows of VisDial, so that a reader of one split holds little


@dataclass
class Notes:
    """What is known of all splits at the end."""

    rows: int = 0
    counts: Counter = field(default_factory=Counter)
    missing: set[tuple[str, str]] = field(default_factory=set)  # (kind, the name that was looked for first)
    others: set[tuple[str, str]] = field(default_factory=set)  # (kind, path below its root) of no known suffix
    classes: set[str] = field(default_factory=set)
    lengths: dict[str, int] = field(default_factory=dict)  # media path -> frames that the annotations claim


def run(job: Job) -> None:
    """Write samples.parquet, checks.json, and where the annotations tell them classes.json and frame_lengths.json.

    Raises BadInput listing what is broken or missing.
    """
    config: IngestConfig = job.config
    roots, notes = config.roots(), Notes()
    with (
        job.draft.create("samples.parquet") as file,
        pq.ParquetWriter(file, SAMPLES, compression="zstd", dictionary_pagesize_limit=1 << 26) as writer,
    ):
        for split, path in sorted(config.annotations.items()):
            _ingest(job, config, roots, split, path, writer, notes)
    if notes.missing and not config.allow_missing:
        raise BadInput(_where_missing(config, notes))
    if not notes.rows:
        files = ", ".join(str(path) for path in config.annotations.values())
        raise BadInput(
            f"no record of {files} is named {', '.join(sorted(job.only))}; its split goes before its name, as in val/10"
            if job.only
            else f"{files} have no record that is not left out"
        )
    notes.counts.update(f"missing {kind}s" for kind, _ in notes.missing)
    counts = {what: number for what, number in sorted(notes.counts.items()) if number}
    missing = sorted(name for _, name in notes.missing)
    job.draft.write_json("checks.json", {"samples": notes.rows, "counts": counts, "missing_media": missing})
    if notes.classes:
        job.draft.write_json("classes.json", sorted(notes.classes))
    if notes.lengths:
        job.draft.write_json("frame_lengths.json", notes.lengths)
    for what, number in counts.items():
        job.log(f"{number} {what}", level="warning")


def _ingest(
    job: Job,
    config: IngestConfig,
    roots: dict[str, MediaRoot],
    split: str,
    path: Path,
    writer: pq.ParquetWriter,
    notes: Notes,
) -> None:
    """One annotation file, from its bytes to rows and ledger."""
    found = _read(job, config, split, path)
    wanted = {item.wanted for item in found.items}
    config.check_roots({one.kind for one in wanted})
    places = {one: roots[one.kind].find(one) for one in wanted}
    media = where(places, _digests(job, roots, places, split))
    rows = sample_rows
    if config.format == "visdial":
        rows = partial(dialogue_rows, answers=found.answers, relevance=_relevance(config, split, found))
    chosen = [item for item in found.items if not job.only or item.id in job.only]
    for begin in range(0, len(chosen), ROW_GROUP):
        part = chosen[begin : begin + ROW_GROUP]
        table = rows(split, part, media)
        writer.write_table(table)
        notes.rows += len(table)
        for item in part:
            if places[item.wanted] is None:
                job.ledger.skipped(item.id, f"its {item.wanted.kind} is missing")
            else:
                job.ledger.done(item.id)
        job.progress(begin + len(part), len(chosen), f"records of {split}")
    for id, reason in found.skipped.items():
        if not job.only or id in job.only:
            job.ledger.skipped(id, reason)
    absent = [one for one, relative in places.items() if relative is None]
    notes.missing |= {(one.kind, expected(one)) for one in absent}
    notes.others |= {(one.kind, other) for one in absent if (other := roots[one.kind].other(one))}
    notes.classes |= class_names(found.items)
    notes.counts.update(found.oddities)
    notes.counts.update(f"{one.kind}s in several folders" for one in wanted if roots[one.kind].has_several(one))
    notes.counts["records left out, as by MA-LMM"] += len(found.skipped)
    notes.counts["videos with two frame lengths"] += _add_lengths(notes.lengths, chosen, media)


def _read(job: Job, config: IngestConfig, split: str, path: Path) -> Found:
    """One annotation file. Raises BadInput when it, or a record of it, cannot be read."""
    found = config.described.read(parse(path.read_bytes(), str(path)), split, str(path), **config.settings)
    if found.broken:
        for id, what in found.broken.items():
            job.item_failed(id, BadInput(what))
        said = "; ".join(f"{id}: {what}" for id, what in list(found.broken.items())[:5])
        raise BadInput(f"{path}: {len(found.broken)} records cannot be read ({said})")
    return found


def _digests(
    job: Job, roots: dict[str, MediaRoot], places: dict[Wanted, str | None], split: str
) -> dict[tuple[str, str], str]:
    """(kind, path below its root) -> SHA-256 of every file that was found."""
    digests = {}
    for kind, root in roots.items():
        below = f"{root.path}/"
        hashed = Digests().files(
            {below + relative for one, relative in places.items() if relative and one.kind == kind},
            lambda done, of, kind=kind: job.progress(done, of, f"{kind}s of {split}"),
        )
        digests |= {(kind, path.removeprefix(below)): digest for path, digest in hashed.items()}
    return digests


def _add_lengths(lengths: dict[str, int], items: list[Any], media: Any) -> int:
    """Note how many frames the annotations claim for each video; the number of videos with another claim before."""
    differ: set[str] = set()
    for item in items:
        if (claimed := getattr(item, "frame_length", None)) is not None:
            path, _ = media(item.wanted)
            if lengths.setdefault(path, claimed) != claimed:
                differ.add(path)
    return len(differ)


def _where_missing(config: IngestConfig, notes: Notes) -> str:
    """What is said when media are missing: how many, below which folder, the first of them."""
    said = []
    for kind, folder in (("image", config.images), ("video", config.videos)):
        names, others = (sorted(name for of, name in found if of == kind) for found in (notes.missing, notes.others))
        if names:
            said.append(f"{len(names)} {kind}s are not below {folder}: {_first(names)}")
        if others:
            said.append(f"{_first(others)} there is passed over, as {kind}s end in {', '.join(SUFFIXES[kind])}")
    return f"{'; '.join(said)}; put them there, or set ingest.allow_missing: true"


def _first(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _relevance(config: IngestConfig, split: str, found: Found) -> dict[tuple[int, int], list[float]]:
    """Dense annotations of a split, checked against its dialogues."""
    if split not in config.dense:
        return {}
    path = config.dense[split]
    dense = dense_of(parse(path.read_bytes(), str(path)), str(path))
    sizes = {(d.image, t): len(turn.candidates or ()) for d in found.items for t, turn in enumerate(d.turns)}
    for (image, turn), relevance in dense.items():
        if (size := sizes.get((image, turn))) is None:
            found.oddities["dense annotations of no known turn"] += 1
        elif size != len(relevance):
            raise BadInput(f"{path}: image {image} turn {turn} has {len(relevance)} relevances, {size} candidates")
    return dense
