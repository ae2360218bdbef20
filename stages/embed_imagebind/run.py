"""The shell of embed_imagebind: samples in, embeddings into the feature bank, the list of them as artifact.

What the bank lacks is planned once, in whole shards, and the plan is kept beside the draft: a killed run loses the shard
in work, and the next run makes the remaining shards just as they were planned.
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

# The distinct content of the samples: modality -> digest -> path below the media root, or the question itself.
Items = dict[str, dict[str, str]]
Shard = tuple[str, list[str]]                            # modality, digests


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
        raise BadInput(f"{len(failures)} of {total} images and questions failed, more than embed_imagebind."
                       f"max_failed_share: {config.max_failed_share} allows: {some}")
    done = [item for item in _all(items) if item not in failures]
    job.draft.write_table("items.parquet", pa.table(list(map(list, zip(*done))), schema=FEATURE_ITEMS))
    job.about |= {"encoder": encoder, "items": {m: sum(m == modality for modality, _ in done) for m in items},
                  "reused": total - len(planned)}


def collect(job: Job) -> Items:
    """The distinct images and questions of the samples. Raises BadInput when there are none, or not those asked for."""
    table = job.inputs["samples"].read_table("samples.parquet", ["media", "media_path", "question"])
    missing = table.filter(pc.is_null(table["media"]))
    for path in pc.unique(missing["media_path"]).to_pylist():
        job.ledger.skipped(f"vision/{path}", "the image was missing at ingest")
    images = table.filter(pc.is_valid(table["media"])).group_by("media").aggregate([("media_path", "min")])
    items = {"vision": dict(zip(images["media"].to_pylist(), images["media_path_min"].to_pylist())),
             "text": {text_digest(text): text for text in pc.unique(table["question"]).to_pylist()}}
    if job.only:
        items = {modality: {digest: value for digest, value in found.items()
                            if job.only & {f"{modality}/{digest}", value}} for modality, found in items.items()}
    if not any(items.values()):
        raise BadInput(f"no image or question is {', '.join(sorted(job.only))}: name items as in a ledger (vision/<SHA-256>"
                       ", text/<SHA-256>), by media path or by question" if job.only else
                       f"the samples {job.inputs['samples'].key[:12]} hold no image and no question: look at ingest")
    return items


def encoder_of(job: Job) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """What makes the rows, as kept in the bank and the manifest; and the tensors where they had to be drawn for it."""
    config: EmbedConfig = job.config
    tensors = None
    if config.weights is None:
        tensors = load_tensors(config.architecture, None, config.seed)
        digest = weights_digest(tensors)
    else:
        digest = (config.sources(Digests()) if job.request.sources is None else job.request.sources)["weights"]
    made_by = {"engine": config.engine, "architecture": config.architecture, "weights": digest,
               "precision": config.precision, "preprocessing": PREPROCESSING, "dtype": config.dtype}
    return made_by | {
        "bank": f"imagebind-{config.architecture}-{key_of(made_by)[:12]}",
        "dim": ARCHITECTURES[config.architecture].out_embed_dim,
        "random_weights": config.weights is None,
        "rows": {"vision": "unit norm", "text": "unit norm times min(exp(log_logit_scale), 100)"},
    }, tensors


def plan(job: Job, bank: FeatureBank, items: Items) -> list[Shard]:
    """What is to be embedded, in the shards that will hold it: images by digest, texts by length, then digest."""
    if not job.draft.partial.exists(PLAN):
        # --force embeds everything again: of two shards with an item, the bank reads the later.
        lacking = {modality: sorted(found) if job.request.force else bank.missing(modality, sorted(found))
                   for modality, found in items.items()}
        texts = lacking["text"]
        lengths = padded_lengths(tokenize([items["text"][digest] for digest in texts]))
        lacking["text"] = [texts[place] for place in np.argsort(lengths, kind="stable")]
        rows = [(modality, digest, place // job.config.shard_rows) for modality in ("vision", "text")
                for place, digest in enumerate(lacking[modality])]
        job.draft.partial.write_table(PLAN, pa.table({name: [row[column] for row in rows] for column, name
                                                      in enumerate(("modality", "digest", "shard"))}))
    shards: dict[tuple[str, int], list[str]] = {}
    for row in job.draft.partial.read_table(PLAN).to_pylist():
        shards.setdefault((row["modality"], row["shard"]), []).append(row["digest"])
    return [(modality, digests) for (modality, _), digests in shards.items()]


def embed(job: Job, bank: FeatureBank, items: Items, shards: list[Shard], encoder: dict[str, Any],
          tensors: dict[str, Tensor] | None) -> dict[tuple[str, str], str]:
    """Embed and publish what is left of each shard. Returns (modality, digest) -> what went wrong."""
    config: EmbedConfig = job.config
    left = [(modality, digests if job.request.force else bank.missing(modality, digests))
            for modality, digests in shards]
    for (modality, digests), (_, lacking) in zip(shards, left):
        for digest in set(digests).difference(lacking):   # an earlier try of this job made them
            job.ledger.done(f"{modality}/{digest}")
    total, finished = sum(len(digests) for _, digests in left), 0
    failures: dict[tuple[str, str], str] = {}
    if not total:
        return failures
    bank.describe(encoder)
    with Embedder(config.engine, config.architecture,
                  tensors or load_tensors(config.architecture, config.weights, config.seed),
                  precision=config.precision, device=job.device, vision_batch=config.vision_batch,
                  text_batch=config.text_batch, workers=config.workers) as embedder:
        for modality, digests in left:
            def progress(done: int, finished: int = finished) -> None:
                job.progress(finished + done, total, "images and questions")

            begin = time.monotonic()
            failed: dict[int, BadImage] = {}
            contents = [items[modality][digest] for digest in digests]
            if modality == "vision":
                readers = map(partial(reader, config.images), contents, digests)
                rows = embedder.vision(readers, failed.__setitem__, progress)
            else:
                rows = embedder.text(contents, progress)
            good = [digest for place, digest in enumerate(digests) if place not in failed]
            if good:
                bank.append(modality, good, rows.astype(config.dtype))
            seconds = round((time.monotonic() - begin) / max(len(digests), 1), 6)
            for digest in good:
                job.ledger.done(f"{modality}/{digest}", seconds)
            for place, error in failed.items():
                told = BadImage(f"{config.images / contents[place]}: {error}")
                failures[modality, digests[place]] = str(told)
                job.item_failed(f"{modality}/{digests[place]}", told, seconds)
            finished += len(digests)
    job.metric("embedded", total - len(failures))
    return failures


def reader(root: Path, relative: str, digest: str) -> Callable[[], bytes]:
    """A function that reads an image below `root` and raises BadImage when it is not the one that ingest saw."""
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


def _all(items: Items) -> Iterator[tuple[str, str]]:
    """(modality, digest) of every item, sorted."""
    return ((modality, digest) for modality in sorted(items) for digest in sorted(items[modality]))
