"""The shell of embed_imagebind: samples in, embeddings into the feature bank, the list of them as artifact.

What the bank lacks is planned once, in whole shards, and the plan is kept beside the draft: a killed run loses the
shard in work, and the next run makes the remaining shards just as they were planned. Each part plans its own share;
the run that comes last takes up all plans.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from stages.contract import BadInput, Job
from stages.embed_imagebind.config import EmbedConfig
from stages.embed_imagebind.embed import BadImage, Embedder, load_tensors, padded_lengths
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.preprocess import PREPROCESSING
from stages.embed_imagebind.samples import collect, reader
from stages.embed_imagebind.steps import StepReader
from stages.embed_imagebind.tokenizer import tokenize
from stages.embed_imagebind.videos import Segment, Videos, examine
from stages.embed_imagebind.weights import weights_digest
from storage import key_of
from storage.features import FeatureBank
from storage.tables import FEATURE_ITEMS, TIMELINES
from storage.videos import SEGMENT

PLAN = "plan.parquet"
PLAN_ROWS = pa.schema([*FEATURE_ITEMS, pa.field("shard", pa.int32(), nullable=False)])
ENCODERS = {"vision": "vision", "frames": "vision", "audio": "audio", "text": "text"}

# Modality -> digest -> path below the media root, question, or segment of a video.
Items = dict[str, dict[str, str | Segment]]
Shard = tuple[str, list[str]]  # modality, digests


def run(job: Job) -> None:
    """Embed what the bank lacks; write items.parquet. Raises BadInput when more items fail than may."""
    config: EmbedConfig = job.config
    wanted = collect(job)
    encoder, tensors = encoder_of(job)
    bank = FeatureBank(job.store, encoder["bank"])
    videos = examine(job, wanted.videos, bank) if "frames" in job.inputs else None
    items: Items = {"vision": wanted.images, "text": wanted.questions}
    if videos is not None:
        items |= {modality: videos.segments(modality) for modality in videos.recipes}
    shards = plan(job, bank, items, videos)
    embedding = Embedding(job, bank, items, videos)
    embedding.run(shards, encoder, tensors)
    if not job.whole:
        return

    failures = embedding.failures
    total = len(set(embedding.ids.values()) | set(failures))
    if len(failures) > config.max_failed_share * total:
        some = "; ".join(list(failures.values())[:5]) + ("; ..." if len(failures) > 5 else "")
        raise BadInput(
            f"{len(failures)} of {total} images, videos and questions failed, more than embed_imagebind."
            f"max_failed_share: {config.max_failed_share} allows: {some}"
        )
    done = [item for item in _all(items) if embedding.ids[item] not in failures]
    job.draft.write_table("items.parquet", _table(done, FEATURE_ITEMS))
    if videos is not None:
        good = {modality: {items[m][d].video for m, d in done if m == modality} for modality in videos.recipes}
        rows = [row for modality in sorted(good) for row in videos.timelines(modality, good[modality])]
        job.draft.write_table("timelines.parquet", pa.Table.from_pylist(rows, schema=TIMELINES))
    job.about |= {
        "encoder": encoder | (videos.about() if videos is not None else {}),
        "items": {m: sum(m == modality for modality, _ in done) for m in items},
        "reused": len(embedding.reused),
    }


def encoder_of(job: Job) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """What makes the rows, for bank and manifest; and the tensors, where they had to be drawn for it.

    A video's tokens are not in it: of what is one bank, a shard has its own width, and a recipe names the steps."""
    config: EmbedConfig = job.config
    tensors = None
    if config.weights is None:
        tensors = load_tensors(config.architecture, None, config.seed)
        digest = weights_digest(tensors)
    else:
        digest = job.sources["weights"]
    made_by = {
        "engine": config.engine,
        "architecture": config.architecture,
        "weights": digest,
        "precision": config.precision,
        "preprocessing": PREPROCESSING,
        "dtype": config.dtype,
    }
    return made_by | {
        "bank": f"imagebind-{config.architecture}-{key_of(made_by)[:12]}",
        "dim": ARCHITECTURES[config.architecture].out_embed_dim,
        "random_weights": config.weights is None,
        "rows": {
            "vision": "unit norm",
            "text": "unit norm times min(exp(log_logit_scale), 100)",
            "frames": f"segments of {SEGMENT} frames: unit norm, or 257 tokens a frame before the head",
            "audio": f"segments of {SEGMENT} clips: unit norm times 20",
        },
    }, tensors


def plan(job: Job, bank: FeatureBank, items: Items, videos: Videos | None) -> list[Shard]:
    """What is to be embedded, in the shards that will hold it: images by digest, texts by length, videos in time.

    What an earlier try, or a part, planned stays as it was; what it did not, as the video was refused then, comes after
    it. --force embeds everything again: of two shards with an item, the bank reads the later."""
    # In this order: a run of the same part beside this one plans an item before the bank has it.
    lacking = {m: list(found) if job.forced else bank.missing(m, found) for m, found in items.items()}
    own, partial = job.own_file("plan"), job.draft.partial
    names = [name for name in partial.list() if name.startswith("plan") and (job.whole or name == own)]
    plans = {name: partial.read_table(name).to_pylist() for name in names}
    planned = {(row["modality"], row["digest"]) for rows in plans.values() for row in rows}
    mine, fresh = plans.setdefault(own, []), []
    for modality in sorted(items, key=list(ENCODERS).index):
        todo = [digest for digest in lacking[modality] if (modality, digest) not in planned]
        if modality in ("vision", "text"):
            todo.sort()
        if modality == "text":
            lengths = padded_lengths(tokenize([items["text"][digest] for digest in todo]))
            todo = [todo[place] for place in np.argsort(lengths, kind="stable")]
        tokens = 1 if videos is None else videos.tokens.get(modality, 1)
        sizes = [_steps(items[modality][digest]) * tokens for digest in todo]
        first = 1 + max((row["shard"] for row in mine if row["modality"] == modality), default=-1)
        fresh += [(modality, d, first + n) for d, n in zip(todo, pack(sizes, job.config.shard_rows), strict=True)]
    if fresh:
        mine += _table(fresh, PLAN_ROWS).to_pylist()
        partial.write_table(own, pa.Table.from_pylist(mine, schema=PLAN_ROWS))
    shards: dict[tuple[str, str, int], list[str]] = {}
    taken: set[tuple[str, str]] = set()  # by another number of parts, an item is planned again
    for name, rows in plans.items():
        for row in rows:
            item = modality, digest = row["modality"], row["digest"]
            # Of what is not in `items`, the gate refuses a video that it let pass before.
            if digest in items.get(modality, ()) and item not in taken:
                shards.setdefault((name, modality, row["shard"]), []).append(digest)
                taken.add(item)
    return [(modality, digests) for (_, modality, _), digests in shards.items()]


def pack(sizes: Sequence[int], most: int) -> list[int]:
    """The shard of each item: items in order, as many as fit in `most` rows, at least one."""
    shards, shard, held = [], 0, 0
    for size in sizes:
        if held and held + size > most:
            shard, held = shard + 1, 0
        held += size
        shards.append(shard)
    return shards


class Embedding:
    """Embeds what is left of each shard, publishes it, and keeps the ledger.

    ids: (modality, digest) -> the item's id in the ledger; a video's segments have one. failures: id -> what went
    wrong, with those that the gate refused. reused: ids of what nothing was planned for."""

    def __init__(self, job: Job, bank: FeatureBank, items: Items, videos: Videos | None):
        self.job, self.bank, self.items, self.videos = job, bank, items, videos
        self.ids = {(m, d): f"{m}/{_id(d, content)}" for m, found in items.items() for d, content in found.items()}
        self.failures: dict[str, str] = dict(videos.failures) if videos is not None else {}
        self.reused: set[str] = set()
        self._seconds: Counter[str] = Counter()
        self._left: Counter[str] = Counter()

    def run(self, shards: list[Shard], encoder: dict[str, Any], tensors: dict[str, Tensor] | None) -> None:
        job, config = self.job, self.job.config
        planned = {(modality, digest) for modality, digests in shards for digest in digests}
        self.reused = set(self.ids.values()) - {self.ids[item] for item in planned} - set(self.failures)
        if job.whole:  # which knows what all parts have planned
            for id in sorted(self.reused):
                job.ledger.reused(id)
        lacking = set(planned)
        # Less what an earlier try of this job has made, or a part: of that, a forced one believes the ledger alone.
        if job.forced:
            lacking = {item for item in planned if not job.ledger.finished(self.ids[item])}
        else:
            for modality in self.items:
                mine = [digest for other, digest in planned if other == modality]
                lacking -= {(modality, d) for d in set(mine).difference(self.bank.missing(modality, mine))}
        self._left.update(self.ids[item] for item in lacking)
        for id in sorted({self.ids[item] for item in planned} - set(self._left)):
            job.ledger.kept(id)
        if not lacking:
            return
        self.bank.describe(encoder)
        total, finished, embedded = sum(_steps(self.items[m][d]) for m, d in lacking), 0, 0
        with ExitStack() as stack:
            embedder = stack.enter_context(
                Embedder(
                    config.engine,
                    config.architecture,
                    tensors or load_tensors(config.architecture, config.weights, config.seed),
                    sorted({ENCODERS[modality] for modality, _ in lacking}),
                    precision=config.precision,
                    device=job.device,
                    vision_batch=config.vision_batch,
                    text_batch=config.text_batch,
                    audio_batch=config.audio_batch,
                    workers=config.workers,
                )
            )
            over_time = self.videos.recipes if self.videos is not None else ()
            readers = {modality: stack.enter_context(self.videos.reader(modality)) for modality in over_time}
            for modality, digests in shards:
                contents = {d: self.items[modality][d] for d in digests if (modality, d) in lacking}
                if not contents:
                    continue
                progress = partial(_progress, job, finished, total)
                embedded += self._shard(embedder, modality, contents, readers.get(modality), progress)
                finished += sum(map(_steps, contents.values()))
        job.metric("embedded", embedded)

    def _shard(
        self,
        embedder: Embedder,
        modality: str,
        contents: dict[str, str | Segment],
        steps: StepReader | None,
        progress: Callable[[int], None],
    ) -> int:
        """Embed `contents`, publish them as one shard, record what failed. Returns how many steps were embedded."""
        begin = time.monotonic()
        contents = {d: c for d, c in contents.items() if self.ids[modality, d] not in self.failures}
        sizes = np.array([_steps(content) for content in contents.values()], np.int64)
        failed: dict[int, BadInput] = {}  # by step
        if modality == "text":
            rows = embedder.text(list(contents.values()), progress)
        elif modality == "vision":
            readers = map(partial(reader, self.job.config.images), contents.values(), contents)
            rows = embedder.vision(readers, failed.__setitem__, progress)
        else:
            sources = (s for c in contents.values() for s in steps.read(c.video, c.number * SEGMENT, c.steps))
            patches = modality == "frames" and self.videos.tokens["frames"] > 1
            encode = embedder.patches if patches else embedder.audio if modality == "audio" else embedder.vision
            rows = encode(sources, failed.__setitem__, progress)
        item_of = np.repeat(np.arange(len(contents)), sizes)
        seconds = (time.monotonic() - begin) / max(len(item_of), 1)
        ids = [self.ids[modality, digest] for digest in contents]
        for id, size in zip(ids, sizes):
            self._seconds[id] += seconds * size
        for step in sorted(failed):
            self._failed(modality, ids[item_of[step]], list(contents)[item_of[step]], failed[step])
        # Of a video with a frame that failed, none is stored: all that is stored of it is right, or nothing is.
        good = np.array([id not in self.failures for id in ids], bool)
        if good.any():
            there = np.setdiff1d(np.arange(len(item_of)), list(failed))  # the steps that have rows
            rows = rows[good[item_of[there]]]
            tokens = 1 if rows.ndim == 2 else rows.shape[1]
            self.bank.append(
                modality,
                [digest for digest, fine in zip(contents, good) if fine],
                rows.reshape(-1, rows.shape[-1]).astype(self.job.config.dtype),
                sizes[good] * tokens,
            )
        for id, fine in zip(ids, good):
            self._left[id] -= 1
            if fine and not self._left[id]:
                self.job.ledger.done(id, round(self._seconds[id], 6))
        return int(sizes[good].sum())

    def _failed(self, modality: str, id: str, digest: str, error: BadInput) -> None:
        if id in self.failures:
            return
        content, seconds = self.items[modality][digest], round(self._seconds[id], 6)
        if isinstance(content, Segment):
            self.videos.refuse(self.job, modality, content.video, error, seconds)
            self.failures[id] = self.videos.failures[id]
        else:
            told = BadImage(f"{self.job.config.images / content}: {error}")
            self.job.item_failed(id, told, seconds)
            self.failures[id] = str(told)


def _steps(content: str | Segment) -> int:
    return content.steps if isinstance(content, Segment) else 1


def _id(digest: str, content: str | Segment) -> str:
    return content.video if isinstance(content, Segment) else digest


def _progress(job: Job, before: int, total: int, done: int) -> None:
    job.progress(before + done, total, "images, frames, clips and questions")


def _table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row)) for row in rows], schema=schema)


def _all(items: Items) -> Iterator[tuple[str, str]]:
    """(modality, digest) of every item, sorted."""
    return ((modality, digest) for modality in sorted(items) for digest in sorted(items[modality]))
