"""The sampling rule on integers, against its definition in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video import TimeError, sample

STEPS = st.lists(st.integers(1, 5000), max_size=60)
BASES = st.sampled_from([Fraction(1, 90000), Fraction(1, 12288), Fraction(1001, 30000), Fraction(1, 1000), Fraction(1)])
RATES = st.one_of(st.integers(1, 60), st.fractions(Fraction(1, 10), 60, max_denominator=30))


@st.composite
def times(draw):
    """(pts, last duration, time base, fps), so that at most some thousand frames are taken."""
    steps, last, base, fps = draw(STEPS), draw(st.integers(0, 5000)), draw(BASES), draw(RATES)
    start = draw(st.integers(-(2**40), 2**40))
    pts = np.cumsum([start, *steps])
    if (int(pts[-1]) - start + 5000) * base * fps > 5000:
        base = Fraction(1, 90000)
    return pts, last, base, fps


def by_definition(pts, last, base, fps):
    """For k = 0, 1, ... while k/fps < end - p0: the last frame with pts - p0 <= k/fps; at least one."""
    pts = [int(p) for p in pts]
    last = last or (pts[-1] - pts[-2] if len(pts) > 1 else 1)
    seconds = [(p - pts[0]) * base for p in pts]
    length = seconds[-1] + last * base
    taken, k = [], 0
    while k == 0 or Fraction(k) / fps < length:
        taken.append(max(i for i, s in enumerate(seconds) if s <= Fraction(k) / fps))
        k += 1
    return taken


@settings(deadline=None)
@given(times())
def test_it_is_the_definition(given_times):
    assert sample(*given_times).tolist() == by_definition(*given_times)


@settings(deadline=None)
@given(times(), st.integers(-(2**50), 2**50))
def test_only_differences_of_times_count(given_times, shift):
    pts, *rest = given_times
    assert np.array_equal(sample(pts + shift, *rest), sample(pts, *rest))


@settings(deadline=None)
@given(times())
def test_it_begins_at_the_first_never_goes_back_and_stays_inside(given_times):
    index = sample(*given_times)
    assert index[0] == 0 and (np.diff(index) >= 0).all() and index[-1] < len(given_times[0])


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 9))
def test_below_the_rate_each_frame_repeats_and_none_is_left_out(frames, rate):
    index = sample(range(frames), 1, Fraction(1, rate), 10)
    assert len(index) == -(-frames * 10 // rate) and set(index.tolist()) == set(range(frames))


def test_no_float_decides():
    """30 frames a second in a base of 1/1000: the frame at 99.999... ms would be missed in floating point."""
    third = [0, 33, 67, 100, 133, 167, 200]
    assert sample(third, 33, Fraction(1, 1000)).tolist() == [0, 3, 6]
    # 29.97: three steps of 1001/30000 s are 0.1001 s, so the frame before is shown at 0.1 s
    assert sample(range(0, 7007, 1001), 1001, Fraction(1, 30000)).tolist() == [0, 2, 5]


def test_one_frame_is_enough_and_none_is_an_error():
    assert sample([7], 0, Fraction(1, 25)).tolist() == [0]
    with pytest.raises(TimeError, match="no frame"):
        sample([], 0, Fraction(1, 25))


@pytest.mark.parametrize("pts", [[0, 1, 1], [0, 2, 1]])
def test_times_that_stand_still_or_run_back_are_an_error(pts):
    with pytest.raises(TimeError, match="frame 2 begins at tick 1"):
        sample(pts, 1, Fraction(1, 25))
