"""The steps of a video (frames, clips of sound) as sources for the embedder, read ahead of it in one thread.

A video is read once, from its begin to its end, over all the shards that its segments lie in: what is
under way at the end of one shard goes on in the next. Memory holds some steps and one row group of stored frames.
"""

import dataclasses
import errno
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.contract import BadInput
from stages.embed_imagebind.embed import BadImage, BadVideo, load_picture
from stages.embed_imagebind.gate import AGAIN
from stages.embed_imagebind.preprocess import CLIP_SECONDS, heard
from storage import Artifact
from video import Plan, VideoError, decode
from video.audio import clips

TOGETHER = 32  # steps that the reading thread takes at a time
READING = (BadInput, VideoError, OSError, pa.ArrowException)  # what reading a video, or its stored frames, may raise

Source = Callable[[], Any]


class StepReader(AbstractContextManager):
    """Reads steps of videos in order. `begin(video, first)`: an iterator of the video's sources from a step on."""

    def __init__(self, begin: Callable[[str, int], Iterator[Source]]):
        self._begin = begin
        self._thread = ThreadPoolExecutor(1, "read")
        self._at: tuple[str, int] | None = None
        self._steps: Iterator[Source] = iter(())

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def read(self, video: str, first: int, count: int) -> Iterator[Source]:
        """Sources of `count` steps. One that cannot be read raises BadVideo when called, as do those after it."""
        if self._at != (video, first):
            self._steps = self._ahead(video, first)
        error: BadVideo | None = None
        for step in range(first, first + count):
            if error is None:
                try:
                    source = next(self._steps)
                except StopIteration:
                    error = BadVideo(f"ends before step {step}: {AGAIN}")
                except READING as cause:
                    error = bad_video(cause)
            self._at = None if error else (video, step + 1)
            yield source if error is None else partial(_raise, error)

    def _ahead(self, video: str, first: int) -> Iterator[Source]:
        def begun() -> Iterator[Source]:  # so that the file is opened in that thread, too
            yield from self._begin(video, first)

        steps = begun()

        def take() -> list[Source]:
            return list(islice(steps, TOGETHER))

        future: Future[list[Source]] = self._thread.submit(take)
        while part := future.result():
            future = self._thread.submit(take)
            yield from part


def bad_video(error: Exception) -> BadVideo:
    """What was raised on reading, as that video's error. Raises it again when it is the machine's trouble."""
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # Arrow's own have no number
        raise error
    if isinstance(error, (OSError, pa.ArrowException)):
        return BadVideo(f"its stored frames cannot be read ({error}): {AGAIN}")
    return error if isinstance(error, BadVideo) else BadVideo(str(error))


# ---- frames that are stored


def stored_columns(artifact: Artifact, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All but the images of a video's stored frames, for `gate.check_frames`."""
    with artifact.open(row["shard"]) as file:
        table = pq.ParquetFile(file).read_row_groups(
            list(_groups(row)), columns=["video", "k", "pts", "width", "height"]
        )
    return {name: table[name].to_numpy() for name in table.column_names}


def stored_frames(artifact: Artifact, row: Mapping[str, Any], first: int) -> Iterator[Source]:
    """A function for each stored frame from number `first` on that decodes it: one row group at a time."""
    with artifact.open(row["shard"]) as file:
        shard = pq.ParquetFile(file)
        begin = 0
        for group in _groups(row):
            rows = shard.metadata.row_group(group).num_rows
            if begin + rows > first:
                images = shard.read_row_group(group, columns=["image"])["image"].to_pylist()
                for k in range(max(begin, first), begin + rows):
                    yield partial(_picture, images[k - begin], k, (row["width"], row["height"]))
            begin += rows


def _groups(row: Mapping[str, Any]) -> range:
    return range(row["first_row_group"], row["first_row_group"] + row["row_groups"])


def _picture(data: bytes, k: int, size: tuple[int, int]) -> Image.Image:
    try:
        image = load_picture(data)
    except BadImage as error:
        raise BadVideo(f"frame {k} {error}: {AGAIN}") from error
    if image.size != size:
        raise BadVideo(f"frame {k} is {image.width} x {image.height}, planned was {size[0]} x {size[1]}: {AGAIN}")
    return image


# ---- frames and sound from the file


def decoded_frames(path: str, plan: Plan, first: int) -> Iterator[Source]:
    """A function for each frame from number `first` on that gives it; they are decoded as they are asked for."""
    later = dataclasses.replace(plan, pts=plan.pts[first:], index=plan.index[first:])
    for _, rgb in decode(path, later):
        yield partial(Image.fromarray, rgb)


def sound(path: str, plan: Plan, first: int = 0) -> Iterator[Source]:
    """A function for each clip of sound from number `first` on that gives (samples, rate)."""
    heard_clips = (clip for clip in clips(path, plan, CLIP_SECONDS) if heard(clip[2].shape[1], clip[3]))
    for _, _, samples, rate in islice(heard_clips, first, None):
        yield lambda samples=samples, rate=rate: (samples, rate)


def sound_times(path: str, plan: Plan) -> list[tuple[float, float]]:
    """(start, end) of each clip of sound, in seconds since the first frame."""
    return [
        (start, end) for start, end, samples, rate in clips(path, plan, CLIP_SECONDS) if heard(samples.shape[1], rate)
    ]


def _raise(error: BadVideo) -> None:
    raise error
