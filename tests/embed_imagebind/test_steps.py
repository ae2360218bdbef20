"""Reading the steps of a video: once from begin to end over many shards, from any step on, with bounded memory."""

import tracemalloc
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from stages.embed_imagebind.embed import BadVideo
from stages.embed_imagebind.run import pack
from stages.embed_imagebind.steps import StepReader, decoded_frames, stored_frames
from tests.embed_imagebind.films import film, frames_artifact
from video import VideoError, decode, plan


class Spy:
    """Videos of 100 steps that count how often they are begun; `broken`: the step that cannot be read."""

    def __init__(self, broken: int | None = None, error: Exception | None = None):
        self.begun, self.broken, self.error = [], broken, error

    def __call__(self, video: str, first: int):
        self.begun.append((video, first))
        for step in range(first, 100):
            if step == self.broken:
                raise self.error
            yield lambda step=step: (video, step)


def test_what_is_read_in_order_is_begun_once():
    spy = Spy()
    with StepReader(spy) as reader:
        parts = [("a", 0, 40), ("a", 40, 60), ("b", 10, 20), ("b", 30, 5), ("b", 64, 6), ("a", 0, 1)]
        for video, first, count in parts:
            assert [source() for source in reader.read(video, first, count)] == [
                (video, first + n) for n in range(count)
            ]
    assert spy.begun == [("a", 0), ("b", 10), ("b", 64), ("a", 0)]


@pytest.mark.parametrize(
    "error, told",
    [
        (VideoError("a.mp4: damaged"), "a.mp4: damaged"),
        (pa.ArrowInvalid("no magic"), "stored frames cannot be read"),
        (OSError("thrift"), "stored frames cannot be read"),
        (FileNotFoundError(2, "gone"), "stored frames cannot be read"),
    ],
)
def test_an_error_is_that_of_all_steps_behind_it(error, told):
    with StepReader(Spy(40, error)) as reader:
        sources = list(reader.read("a", 0, 64))
        assert len(sources) == 64 and sources[0]() == ("a", 0)
        with pytest.raises(BadVideo, match=told):
            sources[40]()
        with pytest.raises(BadVideo, match=told):
            sources[63]()


def test_a_video_that_ends_early_is_told():
    with StepReader(Spy()) as reader, pytest.raises(BadVideo, match="ends before step 100"):
        list(reader.read("a", 95, 8))[-1]()


def test_trouble_of_the_machine_is_not_the_videos():
    with StepReader(Spy(0, OSError(5, "Input/output error"))) as reader, pytest.raises(OSError, match="Input/output"):
        list(reader.read("a", 0, 4))


@pytest.mark.parametrize("name", ["h264_2997.mp4", "mpeg4_b.avi", "h264_5.mp4", "vfr.mp4"])
def test_frames_from_the_middle_are_those_of_the_whole(shared, name):
    path = shared(f"data/video_corpus/{name}")
    made = plan(path, 10, 64)
    whole = [rgb for _, rgb in decode(path, made)]
    for first in (1, len(made) // 2, len(made) - 1):
        later = [np.asarray(source()) for source in decoded_frames(path, made, first)]
        assert len(later) == len(made) - first
        assert all(np.array_equal(*pair) for pair in zip(later, whole[first:], strict=True))


def test_stored_frames_from_any_step_and_with_bounded_memory(tmp_path):
    lengths = {"short.mkv": 150, "long.mkv": 600}
    for seed, (name, length) in enumerate(lengths.items()):
        film(tmp_path / name, length, seed)
    artifact = frames_artifact(tmp_path / "store", tmp_path, list(lengths))
    rows = {row["frames"]: row for row in artifact.read_table("videos.parquet").to_pylist()}

    def peak(row: dict) -> int:
        tracemalloc.start()
        with StepReader(lambda video, first: stored_frames(artifact, row, first)) as reader:
            pictures = (source() for source in reader.read("a", 0, row["frames"]))
            assert sum(picture.size == (64, 48) for picture in pictures) == row["frames"]
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(rows[150])  # what is imported on first use
    assert peak(rows[600]) < 1.5 * peak(rows[150])
    whole = [np.asarray(source()) for source in stored_frames(artifact, rows[600], 0)]
    for first in (19, 20, 21, 599):  # row groups hold 20
        later = [np.asarray(source()) for source in stored_frames(artifact, rows[600], first)]
        assert np.array_equal(np.stack(later), np.stack(whole[first:]))


def test_pack():
    pack_64 = partial(pack, most=64)
    assert pack_64([]) == [] and pack_64([64, 64, 2]) == [0, 1, 2] and pack_64([30, 30, 10, 60]) == [0, 0, 1, 2]
    assert pack_64([16448, 1]) == [0, 1] and pack([1] * 5, 2) == [0, 0, 1, 1, 2]
