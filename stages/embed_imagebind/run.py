"""The shell of embed_imagebind: samples in, embeddings into the feature bank, the list of them as artifact.

What the bank lacks is planned once, in whole shards, and the plan is kept beside the draft: a killed run
loses the shard in work, and the next run makes the remaining shards just as they were planned.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from stages.contract import BadInput, Job
from stages.embed_imagebind.config import EmbedConfig
from stages.embed_imagebind.embed import BadImage, Embedder, load_tensors, padded_lengths
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.preprocess import PREPROCESSING
from stages.embed_imagebind.tokenizer import tokenize
from stages.embed_imagebind.weights import weights_digest
from storage import key_of
from storage.digests import Digests
from storage.features import FeatureBank, text_digest
from storage.tables import FEATURE_ITEMS

PLAN = "plan.parquet"
PLAN_ROWS = pa.schema([*FEATURE_ITEMS, pa.field("shard", pa.int32(), nullable=False)])

# The distinct content of the samples: modality -> digest -> path below the media root, or question.
Items = dict[str, dict[str, str]]
Shard = tuple[str, list[str]]  # modality, digests


def run(job: Job) -> None:
    """Embed what the bank lacks; write items.parquet. Raises BadInput when more items fail than may."""
    config: EmbedConfig = job.config
    items = collect(job)
    encoder, tensors = encoder_of(job)
    bank = FeatureBank(job.store, encoder["bank"])
    shards = plan(job, bank, items)
    planned = {(modality, digest) for modality, digests in shards for digest in digests}
    for modality, digest in _all(items):
        if (modality, digest) not in planned:
            job.ledger.reused(f"{modality}/{digest}")

    failures = embed(job, bank, items, shards, encoder, tensors)
    total = sum(map(len, items.values()))
    if len(failures) > config.max_failed_share * total:
        some = "; ".join(list(failures.values())[:5]) + ("; ..." if len(failures) > 5 else "")
        raise BadInput(
            f"{len(failures)} of {total} images and questions failed, more than embed_imagebind."
            f"max_failed_share: {config.max_failed_share} allows: {some}"
        )
    done = [item for item in _all(items) if item not in failures]
    job.draft.write_table("items.parquet", _table(done, FEATURE_ITEMS))
    job.about |= {
        "encoder": encoder,
        "items": {m: sum(m == modality for modality, _ in done) for m in items},
        "reused": total - len(planned),
    }


def collect(job: Job) -> Items:
    """The distinct images and questions of the samples, or those asked for. Raises BadInput for none."""
    table = job.inputs["samples"].read_table("samples.parquet", ["media", "media_path", "question"])
    missing = table.filter(pc.is_null(table["media"]))
    for path in pc.unique(missing["media_path"]).to_pylist():
        job.ledger.skipped(f"vision/{path}", "the image was missing at ingest")
    images = table.filter(pc.is_valid(table["media"])).group_by("media").aggregate([("media_path", "min")])
    items = {
        "vision": dict(zip(images["media"].to_pylist(), images["media_path_min"].to_pylist())),
        "text": {text_digest(text): text for text in pc.unique(table["question"]).to_pylist()},
    }
    if job.only:
        items = {
            modality: {digest: value for digest, value in found.items() if job.only & {f"{modality}/{digest}", value}}
            for modality, found in items.items()
        }
    if not any(items.values()):
        raise BadInput(
            f"no item is {', '.join(sorted(job.only))}: name items as ledgers do (vision/<SHA-256>, "
            "text/<SHA-256>), by media path or by question"
            if job.only
            else f"samples {job.inputs['samples'].key[:12]} hold no image and no question: look at ingest"
        )
    return items


def encoder_of(job: Job) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """What makes the rows, for bank and manifest; and the tensors, where they had to be drawn for it."""
    config: EmbedConfig = job.config
    tensors = None
    if config.weights is None:
        tensors = load_tensors(config.architecture, None, config.seed)
        digest = weights_digest(tensors)
    else:
        known = job.request.sources
        digest = (config.sources(Digests()) if known is None else known)["weights"]
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
        "rows": {"vision": "unit norm", "text": "unit norm times min(exp(log_logit_scale), 100)"},
    }, tensors


def plan(job: Job, bank: FeatureBank, items: Items) -> list[Shard]:
    """What is to be embedded, in the shards that will hold it: images by digest, texts by length."""
    if not job.draft.partial.exists(PLAN):
        # --force embeds everything again: of two shards with an item, the bank reads the later.
        lacking = {
            modality: sorted(found) if job.request.force else bank.missing(modality, sorted(found))
            for modality, found in items.items()
        }
        texts = lacking["text"]
        lengths = padded_lengths(tokenize([items["text"][digest] for digest in texts]))
        lacking["text"] = [texts[place] for place in np.argsort(lengths, kind="stable")]
        rows = [
            (modality, digest, place // job.config.shard_rows)
            for modality in ("vision", "text")
            for place, digest in enumerate(lacking[modality])
        ]
        job.draft.partial.write_table(PLAN, _table(rows, PLAN_ROWS))
    shards: dict[tuple[str, int], list[str]] = {}
    for row in job.draft.partial.read_table(PLAN).to_pylist():
        shards.setdefault((row["modality"], row["shard"]), []).append(row["digest"])
    return [(modality, digests) for (modality, _), digests in shards.items()]


def embed(
    job: Job,
    bank: FeatureBank,
    items: Items,
    shards: list[Shard],
    encoder: dict[str, Any],
    tensors: dict[str, Tensor] | None,
) -> dict[tuple[str, str], str]:
    """Embed and publish what is left of each shard. Returns (modality, digest) -> what went wrong."""
    config: EmbedConfig = job.config
    lacking = set()
    for modality in items:
        planned = [digest for other, digests in shards if other == modality for digest in digests]
        there = [] if job.request.force else set(planned).difference(bank.missing(modality, planned))
        lacking.update((modality, digest) for digest in planned if digest not in there)
        for digest in there:  # made by an earlier try of this job
            job.ledger.done(f"{modality}/{digest}")
    failures: dict[tuple[str, str], str] = {}
    if not lacking:
        return failures
    bank.describe(encoder)
    finished = 0
    with Embedder(
        config.engine,
        config.architecture,
        tensors or load_tensors(config.architecture, config.weights, config.seed),
        precision=config.precision,
        device=job.device,
        vision_batch=config.vision_batch,
        text_batch=config.text_batch,
        workers=config.workers,
    ) as embedder:
        for modality, digests in shards:
            contents = {d: items[modality][d] for d in digests if (modality, d) in lacking}
            if contents:
                progress = partial(_progress, job, finished, len(lacking))
                failures |= embed_shard(job, bank, embedder, modality, contents, progress)
                finished += len(contents)
    job.metric("embedded", len(lacking) - len(failures))
    return failures


def embed_shard(
    job: Job,
    bank: FeatureBank,
    embedder: Embedder,
    modality: str,
    contents: dict[str, str],
    progress: Callable[[int], None],
) -> dict[tuple[str, str], str]:
    """Embed `contents` (digest -> path or question), publish them as one shard, record what failed."""
    begin = time.monotonic()
    digests, failed = list(contents), {}
    if modality == "vision":
        readers = map(partial(reader, job.config.images), contents.values(), digests)
        rows = embedder.vision(readers, failed.__setitem__, progress)
    else:
        rows = embedder.text(list(contents.values()), progress)
    good = [digest for place, digest in enumerate(digests) if place not in failed]
    if good:
        bank.append(modality, good, rows.astype(job.config.dtype))
    seconds = round((time.monotonic() - begin) / len(digests), 6)
    for digest in good:
        job.ledger.done(f"{modality}/{digest}", seconds)
    failures = {}
    for place, error in failed.items():
        told = BadImage(f"{job.config.images / contents[digests[place]]}: {error}")
        job.item_failed(f"{modality}/{digests[place]}", told, seconds)
        failures[modality, digests[place]] = str(told)
    return failures


def _progress(job: Job, before: int, total: int, done: int) -> None:
    job.progress(before + done, total, "images and questions")


def reader(root: Path, relative: str, digest: str) -> Callable[[], bytes]:
    """A function that reads an image below `root`, or raises BadImage if ingest saw another."""

    def read() -> bytes:
        path = PurePosixPath(relative)
        if path.is_absolute() or ".." in path.parts:
            raise BadImage("leaves the folder embed_imagebind.images; run ingest again")
        try:
            data = (root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            raise BadImage(f"cannot be read ({error.strerror}): put it back, or run ingest again") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadImage("has changed since ingest: run ingest again")
        return data

    return read


def _table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row)) for row in rows], schema=schema)


def _all(items: Items) -> Iterator[tuple[str, str]]:
    """(modality, digest) of every item, sorted."""
    return ((modality, digest) for modality in sorted(items) for digest in sorted(items[modality]))
