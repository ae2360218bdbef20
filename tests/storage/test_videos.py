"""Features over time: what is gathered is what was stored, whatever steps are asked for and however they lie."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import Draft, Ledger, MissingEmbedding, Store
from storage.features import FeatureBank
from storage.tables import TIMELINES
from storage.videos import SEGMENT, VideoFeatures, segment_digest

DIM = 4
RECIPES = {"frames": "fps=10;tokens=frame", "audio": "clip=2"}


def video_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def features(store: Store, lengths: list[int], tokens: int = 1, shard_segments: int = 2) -> VideoFeatures:
    """An artifact of videos of so many frames; row r of a video's token t is (video, r, t, 0)."""
    bank, segments = FeatureBank(store, "encoder-1"), []
    for number, length in enumerate(lengths):
        rows = np.zeros((length, tokens, DIM), np.float32)
        rows[..., 0], rows[..., 1], rows[..., 2] = number, np.arange(length)[:, None], np.arange(tokens)
        for segment, begin in enumerate(range(0, length, SEGMENT)):
            digest = segment_digest("frames", RECIPES["frames"], video_of(number), segment)
            segments.append((digest, rows[begin : begin + SEGMENT].reshape(-1, DIM)))
    for begin in range(0, len(segments), shard_segments):
        digests, rows = zip(*segments[begin : begin + shard_segments])
        bank.append("frames", digests, np.concatenate(rows), [len(part) for part in rows])
    draft = Draft(store, "features", "ab" * 32)
    times = [
        {"video": video_of(n), "modality": m, "start": np.arange(length) / 10, "end": np.arange(1, length + 1) / 10}
        for n, length in enumerate(lengths)
        for m in ("audio", "frames")
    ]
    draft.write_table("timelines.parquet", pa.Table.from_pylist(times, schema=TIMELINES))
    encoder = {"bank": "encoder-1", "recipes": RECIPES, "tokens": {"frames": tokens, "audio": 1}}
    return VideoFeatures(draft.publish(Ledger(), {"encoder": encoder}))


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 3 * SEGMENT + 1), min_size=1, max_size=3),
    tokens=st.integers(1, 3),
    shard_segments=st.integers(1, 4),
    data=st.data(),
)
def test_gather_is_plain_indexing(lengths, tokens, shard_segments, data):
    held = features(Store(f"memory://{video_of(hash((*lengths, tokens)))}"), lengths, tokens, shard_segments)
    number = data.draw(st.integers(0, len(lengths) - 1))
    steps = data.draw(st.lists(st.integers(0, lengths[number] - 1), min_size=1, max_size=40))
    found = held.gather(video_of(number), np.array(steps))
    assert found.shape == (len(steps), tokens, DIM) and found.dtype == np.float32
    assert (found[..., 0] == number).all() and (found[..., 3] == 0).all()
    assert (found[..., 1] == np.array(steps)[:, None]).all() and (found[..., 2] == np.arange(tokens)).all()


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> VideoFeatures:
    return features(Store(tmp_path_factory.mktemp("store")), [200, 3, 70])


def test_timelines_are_those_of_the_modality(held):
    assert {video: len(line) for video, line in held.timelines.items()} == dict(
        zip(map(video_of, range(3)), (200, 3, 70))
    )
    line = held.timelines[video_of(1)]
    assert line.start.tolist() == [0, 0.1, 0.2] and line.end.tolist() == [0.1, 0.2, 0.3]


def test_what_is_not_there_is_an_error_and_never_zeros(held):
    for steps in ([0, 70], [-1], [500]):
        with pytest.raises(IndexError, match="which has 70"):
            held.gather(video_of(2), np.array(steps))
    with pytest.raises(ValueError, match="no frames"):
        held.gather(video_of(2), np.array([], np.int64))
    with pytest.raises(MissingEmbedding, match=video_of(9)):
        held.gather(video_of(9), np.array([0]))


def test_a_segment_that_is_gone_or_too_short_is_an_error(tmp_path):
    held = features(Store(tmp_path), [SEGMENT + 3])
    digest = segment_digest("frames", RECIPES["frames"], video_of(0), 1)
    held.bank.append("frames", [digest], np.ones((2, DIM), np.float32), [2])  # the later shard is read
    with pytest.raises(IndexError, match=f"{digest} has 2 rows"):
        held.gather(video_of(0), np.array([0, SEGMENT + 2]))
    held.recipe = "another"
    with pytest.raises(MissingEmbedding):
        held.gather(video_of(0), np.array([0]))


def test_an_artifact_without_videos_says_so(tmp_path):
    draft = Draft(Store(tmp_path), "features", "cd" * 32)
    artifact = draft.publish(Ledger(), {"encoder": {"bank": "encoder-1"}})
    for modality in ("frames", "audio"):
        with pytest.raises(MissingEmbedding, match=f"no {modality} of videos: run the pipeline with extract_frames"):
            VideoFeatures(artifact, modality)


def test_parts_of_items(tmp_path):
    bank = FeatureBank(Store(tmp_path), "encoder-1")
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    bank.append("frames", [video_of(0), video_of(1)], rows, [7, 3])
    found = bank.gather_parts("frames", [video_of(1), video_of(0), video_of(1)], np.array([1, 5, 0]), 2)
    assert np.array_equal(found, rows[[[8, 9], [5, 6], [7, 8]]])
    for start in (-1, 2):
        with pytest.raises(IndexError, match="has 3 rows"):
            bank.gather_parts("frames", [video_of(1)], np.array([start]), 2)


def test_what_is_not_there_is_told_with_its_reason():
    store = Store("memory://why")
    features(store, [3])
    ledger = Ledger()
    ledger.skipped(f"frames/{video_of(7)}", "extract_frames failed on it: DamagedVideo: film.mp4: is damaged")
    draft = Draft(store, "features", "ab" * 32)
    about = {"encoder": {"bank": "encoder-1", "recipes": RECIPES, "tokens": {"frames": 1, "audio": 1}}}
    held = VideoFeatures(draft.publish(ledger, about))
    assert held.why_not(video_of(7)).startswith("extract_frames failed on it: DamagedVideo: film.mp4: is damaged; mend")
    assert held.why_not(video_of(8)) == "run embed_imagebind again, on these samples"
    with pytest.raises(MissingEmbedding, match="film.mp4: is damaged"):
        held.gather(video_of(7), np.array([0]))
