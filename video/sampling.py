"""Which frames are taken: the sampling rule, on integers alone, so that no rounding decides about a frame.

At k / fps seconds after the first frame the video shows the last frame that began by then; that one is frame k.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from video.errors import TimeError

SAMPLING = 1  # raised when the rule changes: another frame may then be taken


def sample(pts: Sequence[int], last_duration: int, time_base: Fraction, fps: Fraction | int = 10) -> np.ndarray:
    """(n,) int64: for k = 0 ... n-1 the index in `pts` of the frame that is shown at k / fps seconds.

    `pts` (m,): begin of each presented frame in units of `time_base` seconds, strictly increasing;
    `last_duration`: of the last one, in the same units (0: as long as the one before it; a lone frame: 1).
    n is the number of k with k / fps < end - pts[0], at least one: below `fps` frames repeat, above it some
    are never shown. Only differences of times count, so a shift of all of them changes nothing.
    Raises TimeError where there is no frame or `pts` does not strictly increase.
    """
    if not len(pts):
        raise TimeError("it presents no frame")
    times = np.asarray(pts, np.int64)
    steps = np.diff(times)
    if len(steps) and steps.min() <= 0:
        place = int(np.argmax(steps <= 0))
        raise TimeError(f"frame {place + 1} begins at tick {times[place + 1]}, not after {times[place]}")
    if last_duration <= 0:
        last_duration = int(steps[-1]) if len(steps) else 1
    ticks = 1 / (Fraction(fps) * time_base)  # between two taken frames, exactly
    length = int(times[-1]) - int(times[0]) + last_duration
    count = -(-length * ticks.denominator // ticks.numerator)
    wanted = (k * ticks.numerator // ticks.denominator for k in range(count))
    return np.searchsorted(times - times[0], np.fromiter(wanted, np.int64, count), side="right") - 1
