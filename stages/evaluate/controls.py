"""The controls every report carries, so that nobody mistakes style for sight; the seed fork's protocol."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from stages.evaluate.text_metrics import normalise

SEED_PROTOCOL = (
    "corpus BLEU-4 on tokens split at white space, as the seed fork of MA-LMM computes it. Its code took the "
    "question for the answer, so its published 14.96 (before) and 24.80 (after training) tell how well the "
    "question is said again: they are no answer BLEU. `seed_bleu_4_question` repeats that; `seed_bleu_4` "
    "scores against the answer"
)


def majority_answer(answers: Sequence[str]) -> str:
    """The commonest answer of the training split, compared as exact match does, in its commonest spelling.

    Among equally common ones the first in the alphabet. Raises ValueError when there are no answers.
    """
    if not answers:
        raise ValueError("no training answers to take the commonest of")
    majority = _commonest(Counter(map(normalise, answers)))
    return _commonest(Counter(answer for answer in answers if normalise(answer) == majority))


def frequency_scores(counts: Mapping[str, int], candidates: Sequence[str]) -> np.ndarray:
    """The majority control's ranking: how often each candidate is the answer in training. (C,) float64.

    counts: of normalised training answers. Candidates never seen tie, and are counted at their expected rank.
    """
    return np.array([counts.get(normalise(candidate), 0) for candidate in candidates], np.float64)


def permuted(media: Sequence[str], seed: int) -> dict[str, str]:
    """Another image or video for each: a random cycle through the distinct ones, so that none keeps its own.

    Depends on the set of media and the seed alone. A single one keeps itself: there is no other.
    """
    distinct = sorted(set(media))
    order = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
    return dict(zip(order, order[1:] + order[:1], strict=True))


def majority_classes(answers: Sequence[str], k: int) -> list[str]:
    """The k commonest classes, the commonest first; equally common ones by the alphabet."""
    counts = Counter(answers)
    return sorted(counts, key=lambda name: (-counts[name], name))[:k]


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda text: (-counts[text], text))
