"""What the samples ask to have embedded: distinct images, questions and videos."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stages.contract import BadInput, Job, WrongConfig
from stages.embed_imagebind.embed import BadImage
from stages.paths import below
from storage.features import text_digest


@dataclass(frozen=True)
class Wanted:
    """Distinct content by digest: images and videos with their paths below the media roots, questions."""

    images: dict[str, str]
    questions: dict[str, str]
    videos: dict[str, str]


def collect(job: Job) -> Wanted:
    """The distinct content of the samples, or what is asked for of it; of that a part's share, the steps of a video
    together. Media missing at ingest are skipped in the ledger.

    Raises BadInput for none, WrongConfig where the settings do not say where it lies."""
    columns = ["media", "media_kind", "media_path", "question"]
    table = job.inputs["samples"].read_table("samples.parquet", columns)
    missing = table.filter(pc.is_null(table["media"])).group_by(["media_kind", "media_path"]).aggregate([])
    for kind, path in zip(missing["media_kind"].to_pylist(), missing["media_path"].to_pylist()):
        if job.mine(path):
            id = f"{'frames' if kind == 'video' else 'vision'}/{path}"
            job.ledger.skipped(id, f"the {kind} was missing at ingest")
    images, videos = (_media(table, kind) for kind in ("image", "video"))
    questions = {text_digest(text): text for text in pc.unique(table["question"]).to_pylist()}
    if job.only:
        images = {d: path for d, path in images.items() if job.only & {f"vision/{d}", path}}
        questions = {d: text for d, text in questions.items() if job.only & {f"text/{d}", text}}
        videos = {d: path for d, path in videos.items() if job.only & {f"frames/{d}", f"audio/{d}", path}}
    if not (images or questions or videos):
        raise BadInput(
            f"no item is {', '.join(sorted(job.only))}: name items as ledgers do (vision/<SHA-256>, frames/<SHA-256>, "
            "text/<SHA-256>), by media path or by question"
            if job.only
            else f"samples {job.inputs['samples'].key[:12]} hold no image, no video and no question: look at ingest"
        )
    if images and job.config.images is None:
        raise WrongConfig(
            f"embed_imagebind.images: the samples hold {len(images)} images; name the folder that their paths lie below"
        )
    if videos and "frames" not in job.inputs:
        raise WrongConfig(
            f"extract_frames: the samples hold {len(videos)} videos, whose frames are to be extracted first: "
            "give the config the section `extract_frames: {fps: 10}`"
        )
    return Wanted(*({d: c for d, c in found.items() if job.mine(d)} for found in (images, questions, videos)))


def _media(table: pa.Table, kind: str) -> dict[str, str]:
    chosen = table.filter(pc.field("media").is_valid() & (pc.field("media_kind") == kind))
    grouped = chosen.group_by("media").aggregate([("media_path", "min")])
    return dict(zip(grouped["media"].to_pylist(), grouped["media_path_min"].to_pylist()))


def reader(root: Path, relative: str, digest: str) -> Callable[[], bytes]:
    """A function that reads an image below `root`, or raises BadInput if ingest saw another."""

    def read() -> bytes:
        try:
            data = below(root, relative).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            raise BadImage(f"cannot be read ({error.strerror}): put it back, or run ingest again") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadImage("has changed since ingest: run ingest again")
        return data

    return read
