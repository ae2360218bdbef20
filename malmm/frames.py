"""Which frames of a video the model sees: the choices of MA-LMM's data loaders, as pure functions of integers.

Indices count the frames taken at `fps` a second; `first` and `last` are both inside. MA-LMM numbers frames up to the
length its annotation files tell; here they end where the video that was really taken ends.
"""

from typing import Literal

import numpy as np


def window(start: float | None, end: float | None, fps: float, n: int) -> tuple[int, int]:
    """First and last frame of the seconds ``start`` to ``end`` (None: the video's own) of a video of n frames.

    int(start * fps) and min(int(end * fps), n - 1), as LVU's and YouCook2's loaders have it. Raises ValueError for a
    video without frames and for a window that begins behind the video's end or is turned round.
    """
    first = 0 if start is None else max(0, int(start * fps))
    last = n - 1 if end is None else min(int(end * fps), n - 1)
    if not n or first > n - 1:
        raise ValueError(f"the window begins at {start or 0:g} s, but the video has {n} frames ({n / fps:g} s)")
    if last < first:
        raise ValueError(f"the window ends at {end:g} s, before its begin at {start or 0:g} s")
    return first, last


def training_frames(first: int, last: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """One random frame in each of ``count`` equal segments of first..last: (count,) int64, not descending.

    The bounds are linspace(first, last + 1, count + 1), rounded down; a segment is its lower bound and what is below
    its upper one. A segment without a frame (fewer frames than segments) gives its lower bound: frames are repeated.
    """
    bounds = np.linspace(first, last + 1, count + 1, dtype=np.int64)
    low, high = bounds[:-1], bounds[1:]
    return rng.integers(low, np.maximum(high, low + 1))


def evaluation_frames(
    first: int, last: int, count: int, rounding: Literal["nearest", "down"] = "nearest"
) -> np.ndarray:
    """``count`` evenly spaced frames, first and last among them (of one, the first): (count,) int64.

    Rounded to the nearest, halves to even, as MA-LMM's loaders do; but YouCook2's rounds down.
    """
    places = np.linspace(first, last, count)
    return (np.rint(places) if rounding == "nearest" else np.floor(places)).astype(np.int64)
