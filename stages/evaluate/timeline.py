"""Which frames a memory bank merged: from the sizes of its entries over time to runs of frames. Pure numbers.

A bank's entry is a contiguous run of the frames seen so far, and its size counts them (facts of the compression:
only neighbours merge, and their sizes add up), so sizes alone tell which frames an entry stands for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Run:
    """An entry of a bank: frames ``first`` to ``last``, both included, counted from 0."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def middle(self) -> int:
        """The frame that stands for the run; of two middle ones the earlier."""
        return (self.first + self.last) // 2


@dataclass(frozen=True)
class Held:
    """A run and the steps ``since`` to ``until``, both included, in which the bank held it as one entry."""

    run: Run
    since: int
    until: int


def runs(sizes: Sequence[np.ndarray]) -> list[list[Run]]:
    """The runs of every step, in the order of their frames.

    sizes: for step t = 0, 1, ... the sizes (M_t,) of the entries of one token position, whole numbers in any
    dtype. Raises ValueError where they are not whole and positive, or do not sum to the t + 1 frames seen.
    """
    found = []
    for step, given in enumerate(sizes):
        whole = np.asarray(given).astype(np.int64)
        if whole.ndim != 1 or (whole != np.asarray(given)).any() or (whole < 1).any():
            raise ValueError(f"step {step}: sizes of entries are whole and positive, got {np.asarray(given)}")
        if whole.sum() != step + 1:
            raise ValueError(f"step {step}: the sizes sum to {whole.sum()}, but {step + 1} frames were seen")
        ends = np.cumsum(whole)
        found.append([Run(int(end - size), int(end) - 1) for size, end in zip(whole, ends, strict=True)])
    return found


def held(steps: Sequence[Sequence[Run]]) -> list[Held]:
    """Each distinct run of `runs` once, with the steps it lived through, by its first frame and then by age.

    An entry that has merged never comes back, so the steps of a run follow each other.
    """
    since: dict[Run, int] = {}
    until: dict[Run, int] = {}
    for step, entries in enumerate(steps):
        for run in entries:
            since.setdefault(run, step)
            until[run] = step
    return sorted(
        (Held(run, since[run], until[run]) for run in since),
        key=lambda one: (one.run.first, one.since, one.run.last),
    )


@dataclass(frozen=True)
class Moments:
    """What a picture of a bank shows.

    steps: the runs after each step, from `runs`; start, end (T,) float64: seconds in the video from which and to
    which each of the T frames is shown; pictures: one (H,W,3) uint8 array for each entry of the last
    step, of its middle frame, or nothing where there are none.
    """

    title: str
    notes: tuple[str, ...]
    steps: Sequence[Sequence[Run]]
    start: np.ndarray
    end: np.ndarray
    pictures: Sequence[np.ndarray] = ()

    def __post_init__(self) -> None:
        if not self.steps or not len(self.steps) == len(self.start) == len(self.end):
            raise ValueError(f"{len(self.steps)} steps, {len(self.start)} starts and {len(self.end)} ends of frames")
        if len(self.pictures) not in (0, len(self.kept)):
            raise ValueError(f"{len(self.pictures)} pictures for {len(self.kept)} entries")

    @property
    def kept(self) -> Sequence[Run]:
        """The bank's entries after the last frame."""
        return self.steps[-1]

    def span(self, run: Run) -> str:
        """ "0:12-0:34": when the run's frames are; one instant where they round to the same."""
        first, last = self.instant(self.start[run.first]), self.instant(self.end[run.last])
        return first if first == last else f"{first}-{last}"

    def instant(self, seconds: float) -> str:
        return clock(seconds, tenths=self.end[-1] - self.start[0] < 60)

    def said(self) -> Iterator[str]:
        """A line for each kept moment: "0:00-0:04 (41 frames)"."""
        for run in self.kept:
            yield f"{self.span(run)} ({counted(run.size)})"


def clock(seconds: float, tenths: bool = False) -> str:
    """m:ss, or h:mm:ss from an hour on; with a tenth of a second where asked."""
    units = round(max(0.0, float(seconds)) * 10) if tenths else round(max(0.0, float(seconds))) * 10
    whole, tenth = divmod(units, 10)
    minutes, rest = divmod(whole, 60)
    text = f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
    return f"{text}.{tenth}" if tenths else text


def counted(count: int) -> str:
    """A number of frames in words."""
    return "1 frame" if count == 1 else f"{count} frames"


def ticks(start: np.ndarray, most: int = 12) -> list[int]:
    """At most ``most`` frames, evenly spread, at which an axis of T frames says the time; frame 0 is one."""
    gap = -(-len(start) // most)
    return list(range(0, len(start), gap))
