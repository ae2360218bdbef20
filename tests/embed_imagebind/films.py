"""Small videos with sound, samples that ask about them, and frames artifacts of them as extract_frames writes them."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from storage import Artifact, Draft, Ledger, Store
from storage.digests import sha256_of
from storage.tables import FRAMES, SAMPLES, VIDEOS
from video import decode, plan

SHORT_SIDE, GROUP = 48, 20
RATE = 16000  # of the sound, Hz

Rows = list[dict[str, Any]]


def film(path: Path, frames: int, seed: int = 0, sound: float = 0.0, early: float = 0.0) -> Path:
    """A video of `frames` different pictures, ten a second; with `sound` seconds of noise that begin `early` before."""
    draw = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="matroska") as container:
        picture = container.add_stream("mjpeg", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
        noise = container.add_stream("pcm_s16le", rate=RATE, layout="stereo") if sound else None
        for number in range(frames):
            blocks = np.kron(draw.integers(0, 256, (3, 4, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
            frame = av.VideoFrame.from_ndarray(blocks, "rgb24").reformat(format="yuvj420p")
            frame.pts = number + round(10 * early)
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        for begin in range(0, round(sound * RATE), 400):
            count = min(400, round(sound * RATE) - begin)
            samples = draw.integers(-9000, 9000, (1, 2 * count), np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
            frame.sample_rate, frame.pts = RATE, begin
            container.mux(noise.encode(frame))
        if noise:
            container.mux(noise.encode())
    return path


def frames_artifact(
    store: Path,
    root: Path,
    names: list[str],
    format: str = "png",
    key: str = "f0" * 32,
    tamper: Callable[[Rows, Rows], None] | None = None,
    failed: dict[str, Exception] | None = None,
    short_side: int = SHORT_SIDE,
) -> Artifact:
    """Publish the frames of videos; `tamper` may change both tables' rows before. `failed`: digest -> error."""
    videos: Rows = []
    stored: Rows = []
    for name in names:
        made, digest = plan(root / name, 10, short_side), sha256_of(root / name)
        row = {
            "video": digest,
            "media_path": name,
            "frames": len(made),
            "pts": made.seconds.tolist(),
            "width": made.width,
            "height": made.height,
            "codec": made.codec,
            "rate": made.rate,
            "duration": made.duration,
            "rotation": made.rotation,
            "audio": made.audio,
            "warnings": list(made.warnings),
        }
        if format != "direct":
            row |= {"shard": "frames-00000.parquet"}
            for k, rgb in decode(root / name, made):
                file = io.BytesIO()
                Image.fromarray(rgb).save(file, format)
                stored.append(
                    {"video": digest, "k": k, "pts": row["pts"][k], "image": file.getvalue()}
                    | {"width": made.width, "height": made.height}
                )
        videos.append(row)
    if tamper:
        tamper(videos, stored)
    draft = Draft(Store(store), "frames", key)
    if format != "direct":
        _write_frames(draft, videos, stored)
    draft.write_table("videos.parquet", pa.Table.from_pylist(videos, schema=VIDEOS))
    ledger = Ledger()
    for video in {row["video"] for row in videos}:
        ledger.done(video)
    for digest, error in (failed or {}).items():
        ledger.failed(digest, error)
    recipe = f"fps=10;short={short_side};{format};sampling=1"
    about = {"fps": 10, "short_side": short_side, "format": format, "quality": None, "recipe": recipe}
    return draft.publish(ledger, {"frames": about})


def _write_frames(draft: Draft, videos: Rows, stored: Rows) -> None:
    """Row groups of at most GROUP frames of one place in `videos`, which are told where theirs lie."""
    begins = np.flatnonzero([n == 0 or r["k"] == 0 for n, r in enumerate(stored)]).tolist() if stored else []
    parts = [stored[begin:end] for begin, end in zip(begins, [*begins[1:], len(stored)])]
    group = 0
    with draft.create("frames-00000.parquet") as file, pq.ParquetWriter(file, FRAMES) as writer:
        for row, part in zip(videos, parts, strict=True):
            groups = [part[begin : begin + GROUP] for begin in range(0, len(part), GROUP)]
            for rows in groups:
                writer.write_table(pa.Table.from_pylist(rows, schema=FRAMES))
            row |= {"first_row_group": group, "row_groups": len(groups)}
            group += len(groups)


def samples_artifact(
    store: Path, root: Path, names: list[str], missing: tuple[str, ...] = (), key: str = "ab" * 32
) -> Artifact:
    """Publish samples: a question about each file below `root`, .png an image, anything else a video."""
    rows = [
        {
            "sample": f"val/{name}",
            "split": "val",
            "task": "question",
            "dialogue": f"val/{name}",
            "media": None if name in missing else hashlib.sha256((root / name).read_bytes()).hexdigest(),
            "media_kind": "image" if name.endswith(".png") else "video",
            "media_path": name,
            "turn": 0,
            "history": [],
            "question": "what happens ?",
        }
        for name in (*names, *missing)
    ]
    draft = Draft(Store(store), "samples", key)
    draft.write_table("samples.parquet", pa.Table.from_pylist(rows, schema=SAMPLES))
    return draft.publish(Ledger(), {})
