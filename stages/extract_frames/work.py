"""What a worker does: one video file in, its frames as one Parquet file and its row of VIDEOS out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract import BadInput
from stages.extract_frames.backends import Frames, load
from stages.extract_frames.config import ExtractConfig
from stages.extract_frames.encode import jpeg, png
from stages.paths import below
from storage import Store
from storage.digests import sha256_of
from storage.tables import FRAMES
from video import Picture, Plan, plan

GROUP = 256  # frames in a row group at most, and in memory
# Images are compressed already; the same names and sizes over and over are not.
WRITING = {
    "compression": {name: "none" if name == "image" else "zstd" for name in FRAMES.names},
    "use_dictionary": ["video", "width", "height"],
    "write_statistics": ["k"],
}


@dataclass(frozen=True)
class Extractor:
    """Extracts single videos; `folder` in the store at `url` takes what comes out. Goes to the workers as it is."""

    config: ExtractConfig
    url: str
    folder: str

    def __call__(self, task: tuple[str, str]) -> dict[str, Any]:
        """The VIDEOS row of one (SHA-256, path below the root), without its place in a shard, and `row_groups` of
        frames in `<folder>/<SHA-256>.parquet`. Raises BadInput, VideoError, MemoryError."""
        video, media_path = task
        path = below(self.config.videos, media_path)
        if not path.is_file():
            raise BadInput(f"{path}: is no file: put it back, or run ingest again")
        if sha256_of(path) != video:
            raise BadInput(f"{path}: has changed since ingest: run ingest again")
        planned = plan(path, self.config.fps, self.config.short_side)
        row = describe(planned) | {"video": video, "media_path": media_path}
        if self.config.format == "direct":
            return row | {"row_groups": None}
        encode = png if self.config.format == "png" else lambda picture: jpeg(picture, self.config.quality)
        frames = encoded(load(self.config.backend), path, planned, encode, self.config.format == "jpeg")
        with (
            Store(self.url).create(f"{self.folder}/{video}.parquet") as file,
            pq.ParquetWriter(file, FRAMES, **WRITING) as writer,
        ):
            groups = 0
            for group in _groups(frames, video, planned):
                writer.write_table(group)
                groups += 1
        return row | {"row_groups": groups}


def describe(planned: Plan) -> dict[str, Any]:
    """What VIDEOS says of a plan."""
    return {
        "frames": len(planned),
        "pts": planned.seconds.tolist(),
        "width": planned.width,
        "height": planned.height,
        "codec": planned.codec,
        "rate": planned.rate,
        "duration": planned.duration,
        "rotation": planned.rotation,
        "audio": planned.audio,
        "warnings": list(planned.warnings),
    }


def encoded(
    frames: Frames, path: Path, planned: Plan, encode: Callable[[Picture], bytes], half_chroma: bool
) -> Iterator[bytes]:
    """The image of each k, in order; what is taken several times is encoded once."""
    expected = 0
    for ks, picture in frames(path, planned, half_chroma):
        if ks.start != expected:
            raise AssertionError(f"{path}: frame {ks.start} follows frame {expected - 1}")
        expected = ks.stop
        image = encode(picture)
        yield from (image for _ in ks)
    if expected != len(planned):
        raise AssertionError(f"{path}: {expected} of {len(planned)} frames")


def _groups(images: Iterator[bytes], video: str, planned: Plan) -> Iterator[pa.Table]:
    """FRAMES rows, GROUP at a time."""
    seconds, count = planned.seconds, len(planned)
    for begin in range(0, count, GROUP):
        size = min(GROUP, count - begin)
        columns = {
            "video": [video] * size,
            "k": range(begin, begin + size),
            "pts": seconds[begin : begin + size],
            "image": [next(images) for _ in range(size)],
            "width": [planned.width] * size,
            "height": [planned.height] * size,
        }
        yield pa.table(columns, schema=FRAMES)
    if next(images, None) is not None:
        raise AssertionError(f"more frames than {count}")
