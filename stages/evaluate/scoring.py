"""From answers and candidate scores of several systems to scores with intervals. Lists in, numbers out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stages.evaluate import bootstrap
from stages.evaluate.bootstrap import Metric, Score
from stages.evaluate.java import TOKENIZER, meteor_statistics, tokenize
from stages.evaluate.ranking import ndcg, place
from stages.evaluate.text_metrics import bleu, bleu_statistics, cider, exact_match, meteor, rouge_l

RECALLS = (1, 5, 10)
WHITE_SPACE = "white space, nothing lower-cased or removed"


@dataclass(frozen=True)
class Item:
    """What is known of one sample, apart from any system."""

    sample: str
    dialogue: str
    turn: int
    question: str
    answer: str
    truth: int | None = None
    relevance: Sequence[float] | None = None


@dataclass(frozen=True)
class Answers:
    """One system's output for the items, in their order: texts, and scores of candidates where ranked."""

    texts: Sequence[str]
    candidates: Sequence[np.ndarray | None]


@dataclass
class Scored:
    """One system's corpus metrics by name, and its values a sample, (n,) float64, NaN where there is none."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict)

    def mean(self, name: str, values: np.ndarray) -> None:
        self.metrics[name] = Metric.mean(values)
        self.samples[name] = values


def score_systems(
    items: Sequence[Item],
    systems: Mapping[str, Answers],
    protocol: str = "standard",
    with_meteor: bool = True,
) -> dict[str, Scored]:
    """Every metric of every system. One call, so that each Java program starts once.

    protocol: "standard", or "seed" (see controls.SEED_PROTOCOL).
    """
    scored = {name: Scored() for name in systems}
    references = [item.answer for item in items]
    texts = {name: answers.texts for name, answers in systems.items()}
    if protocol == "seed":
        _seed(references, [item.question for item in items], texts, scored)
    else:
        _standard(references, texts, scored, with_meteor)
    for name, answers in systems.items():
        scored[name].mean("exact_match", exact_match(references, answers.texts))
        _ranking(items, answers.candidates, scored[name])
    return scored


def summarise(
    scored: Mapping[str, Scored], dialogues: Sequence[str], resamples: int, seed: int
) -> tuple[dict[str, dict[str, Score]], dict[str, dict[str, Score]]]:
    """system -> metric -> score with its interval; and the same for "trained" minus each other system."""
    draws = bootstrap.draw(dialogues, resamples, seed)
    scores = {
        system: {name: bootstrap.score(metric, *draws) for name, metric in one.metrics.items()}
        for system, one in scored.items()
    }
    trained = scored["trained"].metrics
    gains = {
        system: {
            name: bootstrap.difference(trained[name], metric, *draws)
            for name, metric in one.metrics.items()
            if name in trained
        }
        for system, one in scored.items()
        if system != "trained"
    }
    return scores, gains


def tokenizer_of(protocol: str) -> str:
    """What splits words under a protocol, as every result must say."""
    return WHITE_SPACE if protocol == "seed" else TOKENIZER


def _standard(
    references: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    scored: Mapping[str, Scored],
    with_meteor: bool,
) -> None:
    n = len(references)
    lines = tokenize([*references, *(text for texts in systems.values() for text in texts)])
    references, rest = lines[:n], lines[n:]
    tokens = {name: rest[i * n : (i + 1) * n] for i, name in enumerate(systems)}
    for name, texts in tokens.items():
        statistics = bleu_statistics(references, texts)
        for k in range(4):
            scored[name].metrics[f"bleu_{k + 1}"] = Metric.of_sums(statistics, _bleu(k))
            scored[name].samples[f"bleu_{k + 1}"] = bleu(statistics)[:, k]
    if with_meteor:
        pairs = [(r, h) for texts in tokens.values() for r, h in zip(references, texts, strict=True)]
        distinct = list(dict.fromkeys(pairs))  # a control repeats one answer, and answers are few and short
        known = dict(zip(distinct, meteor_statistics(*zip(*distinct, strict=True)), strict=True))
        for i, name in enumerate(tokens):
            statistics = np.array([known[pair] for pair in pairs[i * n : (i + 1) * n]]).reshape(n, -1)
            scored[name].metrics["meteor"] = Metric.of_sums(statistics, meteor)
            scored[name].samples["meteor"] = meteor(statistics)
    for name, texts in tokens.items():
        scored[name].mean("rouge_l", rouge_l(references, texts))
        scored[name].mean("cider", cider(references, texts))


def _seed(
    references: Sequence[str],
    questions: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    scored: Mapping[str, Scored],
) -> None:
    against = {"seed_bleu_4": references, "seed_bleu_4_question": questions}
    for system, texts in systems.items():
        for name, wanted in against.items():
            statistics = bleu_statistics(wanted, texts)  # which splits at white space
            scored[system].metrics[name] = Metric.of_sums(statistics, _bleu(3))
            scored[system].samples[name] = bleu(statistics)[:, 3]


def _ranking(items: Sequence[Item], candidates: Sequence[np.ndarray | None], scored: Scored) -> None:
    if all(scores is None for scores in candidates):
        return
    values = {
        name: np.full(len(items), np.nan) for name in (*(f"recall_{k}" for k in RECALLS), "mean_rank", "mrr", "ndcg")
    }
    for i, (item, scores) in enumerate(zip(items, candidates, strict=True)):
        if scores is not None and item.truth is not None:
            found = place(scores, item.truth)
            for k in RECALLS:
                values[f"recall_{k}"][i] = found.recall(k)
            values["mean_rank"][i], values["mrr"][i] = found.rank, found.reciprocal
        if scores is not None and item.relevance is not None:
            values["ndcg"][i] = ndcg(scores, np.asarray(item.relevance))
    for name, column in values.items():
        if not np.isnan(column).all():
            scored.mean(name, column)


def _bleu(k: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: bleu(sums)[..., k]
