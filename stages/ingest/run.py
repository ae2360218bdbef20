"""The shell of ingest: annotation files and an image root in, the samples table out."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract import BadInput, Job
from stages.ingest.config import IngestConfig
from stages.ingest.media import MediaRoot
from stages.ingest.visdial import Annotations, Dialogue, dense_of, parse, read
from storage.digests import Digests
from storage.tables import SAMPLES

ROW_GROUP = 2_000  # dialogues: 20,000 rows, so that a reader of one split holds little


def run(job: Job) -> None:
    """Write samples.parquet and checks.json. Raises BadInput listing what is broken or missing."""
    config: IngestConfig = job.config
    root = MediaRoot(config.images)
    counts: Counter = Counter()
    missing: list[str] = []
    total = 0
    with (
        job.draft.create("samples.parquet") as file,
        pq.ParquetWriter(file, SAMPLES, compression="zstd", dictionary_pagesize_limit=1 << 26) as writer,
    ):
        for split, path in sorted(config.annotations.items()):
            found = read(parse(path.read_bytes(), str(path)), split, str(path))
            if found.broken:
                said = "; ".join(f"{label}: {what}" for label, what in list(found.broken.items())[:5])
                for label, what in found.broken.items():
                    job.item_failed(label, BadInput(what))
                raise BadInput(f"{path}: {len(found.broken)} dialogues cannot be read ({said})")
            relevance = _relevance(config, split, found)
            where = {(d.image, d.file): root.find(split, d.image, d.file) for d in found.dialogues}
            absent = sorted({MediaRoot.expected(split, *pair) for pair, relative in where.items() if relative is None})
            missing += absent
            below = f"{root.path}/"
            hashed = Digests().files(
                {below + r for r in where.values() if r},
                lambda done, of, split=split: job.progress(done, of, f"images of {split}"),
            )
            media = {path.removeprefix(below): digest for path, digest in hashed.items()}
            counts.update(found.oddities)
            counts["images in several folders"] += sum(
                len(root.repeated.get(r.rsplit("/")[-1], ())) > 1 for r in where.values() if r
            )
            chosen = [d for d in _labelled(split, found.dialogues) if not job.only or d[0] in job.only]
            for begin in range(0, len(chosen), ROW_GROUP):
                part = chosen[begin : begin + ROW_GROUP]
                writer.write_table(_rows(split, part, found.answers, relevance, where, media))
                for label, dialogue in part:
                    if where[dialogue.image, dialogue.file] is None:
                        job.ledger.skipped(label, "its image is missing")
                    else:
                        job.ledger.done(label)
                job.progress(begin + len(part), len(chosen), f"dialogues of {split}")
            total += sum(len(d.turns) for _, d in chosen)
    if missing and not config.allow_missing:
        raise BadInput(
            f"{len(missing)} images are not below {config.images}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; put them there, or set ingest.allow_missing: true"
        )
    if not total:
        raise BadInput(f"no dialogue is named {', '.join(sorted(job.only))}; ids look like val/185565")
    counts["missing images"] = len(missing)
    job.draft.write_json(
        "checks.json", {"samples": total, "counts": dict(sorted(counts.items())), "missing_images": missing}
    )
    for what, number in sorted(counts.items()):
        if number:
            job.log(f"{number} {what}", level="warning")


def _labelled(split: str, dialogues: list[Dialogue]) -> list[tuple[str, Dialogue]]:
    """Each dialogue with its id: "<split>/<image>", and "-2", "-3" for further dialogues on one image."""
    seen: Counter = Counter()
    labelled = []
    for dialogue in dialogues:
        seen[dialogue.image] += 1
        again = f"-{seen[dialogue.image]}" if seen[dialogue.image] > 1 else ""
        labelled.append((f"{split}/{dialogue.image}{again}", dialogue))
    return labelled


def _relevance(config: IngestConfig, split: str, found: Annotations) -> dict[tuple[int, int], list[float]]:
    """Dense annotations of a split, checked against its dialogues."""
    if split not in config.dense:
        return {}
    path = config.dense[split]
    dense = dense_of(parse(path.read_bytes(), str(path)), str(path))
    sizes = {(d.image, t): len(turn.candidates or ()) for d in found.dialogues for t, turn in enumerate(d.turns)}
    for (image, turn), relevance in dense.items():
        if (size := sizes.get((image, turn))) is None:
            found.oddities["dense annotations of no known turn"] += 1
        elif size != len(relevance):
            raise BadInput(f"{path}: image {image} turn {turn} has {len(relevance)} relevances, {size} candidates")
    return dense


def _rows(
    split: str,
    part: list[tuple[str, Dialogue]],
    answers: list[str],
    relevance: dict,
    where: dict,
    media: dict[str, str],
) -> pa.Table:
    """The SAMPLES rows of some dialogues."""
    rows: dict[str, list] = {name: [] for name in SAMPLES.names if name != "candidates"}
    options, offsets, absent = [], [0], []
    for label, dialogue in part:
        relative = where[dialogue.image, dialogue.file]
        history: list[dict[str, str | None]] = []
        for number, turn in enumerate(dialogue.turns):
            values = (
                f"{label}/{number}",
                split,
                "dialogue",
                label,
                media.get(relative),
                relative or MediaRoot.expected(split, dialogue.image, dialogue.file),
                number,
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
