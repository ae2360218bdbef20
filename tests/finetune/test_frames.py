"""The frames of MA-LMM's loaders: against their rule written out, and by property."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from malmm.frames import evaluation_frames, training_frames, window

lengths, counts = st.integers(1, 5000), st.integers(1, 120)


@given(st.integers(0, 3000), lengths, counts, st.integers(0, 2**32))
@example(0, 1, 20, 0)
@example(0, 3, 100, 1)
def test_training_takes_one_frame_of_each_segment(first, length, count, seed):
    last = first + length - 1
    found = training_frames(first, last, count, np.random.default_rng(seed))
    assert found.shape == (count,) and found.dtype == np.int64
    # The rule in words: divide first .. last + 1 into count segments with whole bounds; of each take any frame from its
    # lower bound to before its upper one, and the lower bound where nothing is between.
    bounds = [int(bound) for bound in np.linspace(first, last + 1, count + 1)]
    for frame, low, high in zip(found, bounds[:-1], bounds[1:], strict=True):
        assert frame == low if low == high else low <= frame < high
    assert first <= found.min() and found.max() <= last and (np.diff(found) >= 0).all()
    assert (found == training_frames(first, last, count, np.random.default_rng(seed))).all()


def test_every_frame_of_a_segment_may_be_taken():
    rng = np.random.default_rng(0)
    seen = np.array([training_frames(10, 21, 3, rng) for _ in range(200)])
    assert [set(column) for column in seen.T] == [set(range(10, 14)), set(range(14, 18)), set(range(18, 22))]


@given(st.integers(0, 3000), lengths, counts)
def test_evaluation_is_evenly_spaced_between_both_ends(first, length, count):
    last = first + length - 1
    found = evaluation_frames(first, last, count)
    assert found.shape == (count,) and found[0] == first and (count == 1 or found[-1] == last)
    for i, frame in enumerate(found):  # half to even, and numpy's own rounding errors
        assert abs(frame - (first + i * (last - first) / max(1, count - 1))) <= 0.5 + 1e-9
    assert np.ptp(np.diff(found)) <= 1 if count > 1 else True


@given(st.integers(0, 200), st.integers(1, 120), counts)
def test_youcook2_frames_are_those_of_its_loader(start, seconds, count):
    end = start + seconds
    first, last = window(start, end, 10, 4000)
    assert (evaluation_frames(first, last, count, "down") == np.linspace(start * 10, end * 10, count, dtype=int)).all()
    bounds = np.linspace(start * 10, end * 10 + 1, count + 1, dtype=int)
    found = training_frames(first, last, count, np.random.default_rng(start))
    assert (bounds[:-1] <= found).all() and (found <= np.maximum(bounds[1:] - 1, bounds[:-1])).all()


@given(st.floats(0, 400), st.floats(0, 400), st.sampled_from([10.0, 1.0, 29.97]), lengths)
def test_a_window_lies_inside_the_video(start, seconds, fps, n):
    if int(start * fps) >= n:
        with pytest.raises(ValueError, match="begins at"):
            window(start, start + seconds, fps, n)
        return
    first, last = window(start, start + seconds, fps, n)
    assert 0 <= first <= last <= n - 1 and first == int(start * fps)
    assert last == min(int((start + seconds) * fps), n - 1)
    assert window(None, None, fps, n) == (0, n - 1)


def test_windows_of_the_data_sets():
    assert window(20.0, 20.0 + 100 - 1, 10, 1500) == (200, 1190)  # LVU: history of 100 s at 20 s
    assert window(47, 60, 10, 2068) == (470, 600)  # YouCook2
    with pytest.raises(ValueError, match="before its begin"):
        window(5, 3, 10, 100)
    with pytest.raises(ValueError, match="0 frames"):
        window(None, None, 10, 0)
