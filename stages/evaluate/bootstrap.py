"""95% intervals by bootstrap over clusters: whole dialogues are drawn, since their turns are not independent.

Every metric is a function of summed columns (a mean: sum and count; BLEU: its statistics), so a resample is a
row of weights times the clusters' sums, and text is never scored again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Metric:
    """A score of a corpus.

    columns: (n, k) float64, one row a sample; statistic: (..., k) sums -> (...) scores; counted: (n,) bool,
    the samples that have a value.
    """

    columns: np.ndarray
    statistic: Callable[[np.ndarray], np.ndarray]
    counted: np.ndarray

    @classmethod
    def mean(cls, values: np.ndarray) -> "Metric":
        """The mean of values (n,); NaN stands for a sample that has none."""
        counted = ~np.isnan(values)
        columns = np.stack([np.where(counted, values, 0.0), counted.astype(np.float64)], axis=1)
        return cls(columns, _mean, counted)

    @classmethod
    def of_sums(cls, columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> "Metric":
        return cls(columns, statistic, np.ones(len(columns), bool))


@dataclass(frozen=True)
class Score:
    """A value and its interval; NaN for bounds that cannot be had (fewer than two clusters)."""

    value: float
    low: float
    high: float
    n: int


def draw(clusters: Sequence[str], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Resample the C distinct clusters. Equal clusters and seed give equal draws: systems compare in pairs.

    Returns the cluster of each sample, (n,) int64, and how often each resample drew each cluster,
    (resamples, C) float64.
    """
    names, member = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return member, drawn.astype(np.float64)


def score(metric: Metric, member: np.ndarray, drawn: np.ndarray) -> Score:
    """The metric on all samples, and its percentile interval over the resamples of `draw`."""
    value, values = _resampled(metric, member, drawn)
    return Score(value, *_bounds(values, drawn), int(metric.counted.sum()))


def difference(first: Metric, second: Metric, member: np.ndarray, drawn: np.ndarray) -> Score:
    """first minus second on the same samples, with the interval of the paired differences."""
    (a, many_a), (b, many_b) = _resampled(first, member, drawn), _resampled(second, member, drawn)
    return Score(a - b, *_bounds(many_a - many_b, drawn), int((first.counted & second.counted).sum()))


def _resampled(metric: Metric, member: np.ndarray, drawn: np.ndarray) -> tuple[float, np.ndarray]:
    sums = np.zeros((drawn.shape[1], metric.columns.shape[1]))
    np.add.at(sums, member, metric.columns)
    return float(metric.statistic(metric.columns.sum(axis=0))), metric.statistic(drawn @ sums)


def _bounds(values: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    values = values[~np.isnan(values)]  # a resample may hold no sample that has a value
    if drawn.shape[1] < 2 or not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _mean(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] / sums[..., 1]
