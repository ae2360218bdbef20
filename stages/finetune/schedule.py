"""What happens at which step: pure functions of the seed and the step, so that a resumed run does the same."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

POOL = 32  # batches whose samples are sorted by length together


@dataclass(frozen=True)
class Schedule:
    """When a run takes which samples, with which learning rate. ``total``: optimizer steps, None: whole epochs."""

    lengths: np.ndarray
    batch: int
    accumulate: int
    epochs: int
    total: int | None
    lr: float
    warmup: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(math.ceil(len(self.lengths) / self.batch) / self.accumulate)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch if self.total is None else self.total

    def learning_rate(self, step: int) -> float:
        """Of step 0, 1, ...: linear warm-up, then a cosine to 0 behind the last step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / (self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def epoch(self, epoch: int) -> list[list[np.ndarray]]:
        """Steps of an epoch; each is a list of up to ``accumulate`` batches of row numbers."""
        batches = shuffled_batches(self.lengths, self.batch, self.seed, epoch)
        return [batches[i : i + self.accumulate] for i in range(0, len(batches), self.accumulate)]

    def walk(self, start: int) -> Iterator[list[tuple[np.ndarray, int]]]:
        """From step ``start`` to the last one: each step's batches, as (row numbers, epoch)."""
        epoch, steps = -1, []
        for step in range(start, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                steps = self.epoch(epoch)
            yield [(rows, epoch) for rows in steps[step % self.steps_per_epoch]]


def shuffled_batches(lengths: np.ndarray, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """
    All rows 0..n-1 once, in random batches of samples of like length, so that little is padding: the shuffled rows are
    sorted by length within pools of POOL batches, and the batches shuffled again. lengths (n,): any measure.
    """
    draw = np.random.default_rng([seed, epoch])
    rows = draw.permutation(len(lengths))
    pools = [rows[i : i + POOL * batch] for i in range(0, len(rows), POOL * batch)]
    rows = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    batches = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return [batches[i] for i in draw.permutation(len(batches))]
