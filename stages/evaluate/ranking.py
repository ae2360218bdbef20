"""VisDial's retrieval metrics (Das et al., 2017; NDCG as in the Visual Dialog challenge), honest about ties.

A score shared by several candidates puts them in no order, so every metric is its expectation over a random
one; sorting would hand the truth the best or the worst of those places, by accident.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where the truth stands: behind `better` candidates, in a group of `tied` (itself included)."""

    better: int
    tied: int

    @property
    def rank(self) -> float:
        """Expected rank, 1 the best."""
        return self.better + (self.tied + 1) / 2

    @property
    def reciprocal(self) -> float:
        """Expected reciprocal rank; its mean over samples is MRR."""
        return float((1.0 / np.arange(self.better + 1, self.better + self.tied + 1)).mean())

    def recall(self, k: int) -> float:
        """Chance that the truth is among the first k."""
        return min(max(k - self.better, 0), self.tied) / self.tied


def place(scores: np.ndarray, truth: int) -> Place:
    """The place of candidate `truth` among scores (C,), higher the better.

    Raises ValueError for a truth out of range or a score that is not a number.
    """
    scores = _checked(scores)
    if not 0 <= truth < len(scores):
        raise ValueError(f"the true candidate is number {truth} of {len(scores)}")
    return Place(int((scores > scores[truth]).sum()), int((scores == scores[truth]).sum()))


def ndcg(scores: np.ndarray, relevance: np.ndarray) -> float:
    """NDCG over the first K places, K the number of candidates with a relevance above zero; gains are linear.

    scores and relevance: (C,). NaN when no candidate is relevant: then it is not defined.
    Raises ValueError when the lengths differ or a score is not a number.
    """
    scores, relevance = _checked(scores), np.asarray(relevance, np.float64)
    if scores.shape != relevance.shape:
        raise ValueError(f"{len(scores)} scores, {len(relevance)} relevances")
    k = int((relevance != 0).sum())
    if k == 0:
        return float("nan")
    discount = 1 / np.log2(np.arange(k) + 2)
    # A place within a group of equal scores is worth the group's mean relevance.
    _, group = np.unique(-scores, return_inverse=True)
    size = np.bincount(group)
    expected = np.repeat(np.bincount(group, relevance) / size, size)
    best = np.sort(relevance)[::-1]
    return float((expected[:k] * discount).sum() / (best[:k] * discount).sum())


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if np.isnan(scores).any():
        raise ValueError(f"the score of candidate {int(np.flatnonzero(np.isnan(scores))[0])} is not a number")
    return scores
