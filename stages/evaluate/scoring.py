"""From answers and candidate scores of several systems to scores with intervals. Lists in, numbers out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from stages.evaluate import bootstrap
from stages.evaluate.bootstrap import Metric, Score
from stages.evaluate.java import meteor_statistics, tokenize
from stages.evaluate.ranking import ndcg, place
from stages.evaluate.spice import spice
from stages.evaluate.text_metrics import accuracy, bleu, bleu_statistics, cider, exact_match, meteor, rouge_l

RECALLS = (1, 5, 10)
WHITE_SPACE = "white space, nothing lower-cased or removed"


@dataclass(frozen=True)
class Item:
    """What is known of one thing to score, apart from any system. references: at least one right answer."""

    sample: str
    dialogue: str
    turn: int
    question: str
    references: tuple[str, ...]
    truth: int | None = None
    relevance: Sequence[float] | None = None
    category: str | None = None

    @property
    def answer(self) -> str:
        """The right answer to show, where there are several."""
        return self.references[0]


@dataclass(frozen=True)
class Answers:
    """One system's output for the items, in their order.

    texts; scores of candidates where ranked; of a classification the texts of all beams, best first, and the class
    name that was generated with no other text allowed (None: not asked for).
    """

    texts: Sequence[str]
    candidates: Sequence[np.ndarray | None]
    beams: Sequence[Sequence[str]] | None = None
    constrained: Sequence[str] | None = None


@dataclass
class Scored:
    """One system's corpus metrics by name, and its values an item, (n,) float64, NaN where there is none.

    `<metric>/<group>` is a metric of the items of one category, or of one class.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    samples: dict[str, np.ndarray] = field(default_factory=dict)

    def mean(self, name: str, values: np.ndarray, groups: Sequence[str | None] = ()) -> None:
        self.metrics[name] = Metric.mean(values)
        self.samples[name] = values
        for group in sorted({group for group in groups if group is not None}):
            inside = np.array([one == group for one in groups])
            self.metrics[f"{name}/{group}"] = Metric.mean(np.where(inside, values, np.nan))


def score_systems(
    items: Sequence[Item],
    systems: Mapping[str, Answers],
    task: str = "dialogue",
    protocol: str = "standard",
    with_meteor: bool = True,
    spice_jars: Path | None = None,
) -> dict[str, Scored]:
    """Every metric of every system, by the task. One call, so that each Java program starts once.

    protocol: "standard", or "seed" (see controls.SEED_PROTOCOL).
    """
    scored = {name: Scored() for name in systems}
    references = [item.references for item in items]
    texts = {name: answers.texts for name, answers in systems.items()}
    for name, answers in systems.items():
        if task == "question":
            scored[name].mean("accuracy", accuracy(references, answers.texts), [item.category for item in items])
            scored[name].mean("accuracy_first_word", accuracy(references, answers.texts, first_word=True))
        elif task == "classification":
            _classification(items, answers, scored[name])
    if protocol == "seed":
        _seed(references, [item.question for item in items], texts, scored)
    elif task != "classification":
        _standard(references, texts, scored, with_meteor, spice_jars)
    for name, answers in systems.items():
        if task == "dialogue":
            scored[name].mean("exact_match", exact_match(references, answers.texts))
        if task != "classification":
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


def _classification(items: Sequence[Item], answers: Answers, scored: Scored) -> None:
    references = [item.references for item in items]
    scored.mean("top_1", accuracy(references, answers.texts), [item.answer for item in items])
    if answers.beams is not None:
        hits = [
            max(accuracy([r] * len(texts[:5]), texts[:5])) for r, texts in zip(references, answers.beams, strict=True)
        ]
        scored.mean("top_5", np.array(hits))
    if answers.constrained is not None:
        scored.mean("constrained_top_1", accuracy(references, answers.constrained))
    if any(scores is not None for scores in answers.candidates):
        places = [
            None if scores is None else place(scores, item.truth)
            for item, scores in zip(items, answers.candidates, strict=True)
        ]
        for k in (1, 5):
            scored.mean(f"ranked_top_{k}", np.array([np.nan if one is None else one.recall(k) for one in places]))


def _standard(
    references: Sequence[Sequence[str]],
    systems: Mapping[str, Sequence[str]],
    scored: Mapping[str, Scored],
    with_meteor: bool,
    spice_jars: Path | None,
) -> None:
    n = len(references)
    ends = np.cumsum([len(texts) for texts in references])
    lines = tokenize([*chain.from_iterable(references), *chain.from_iterable(systems.values())])
    rest = lines[ends[-1] :]
    references = [tuple(lines[end - len(texts) : end]) for texts, end in zip(references, ends, strict=True)]
    tokens = {name: rest[i * n : (i + 1) * n] for i, name in enumerate(systems)}
    for name, texts in tokens.items():
        statistics = bleu_statistics(references, texts)
        for k in range(4):
            scored[name].metrics[f"bleu_{k + 1}"] = Metric.of_sums(statistics, _bleu(k))
            scored[name].samples[f"bleu_{k + 1}"] = bleu(statistics)[:, k]
    # Java scores each pair once: a control repeats one answer, and answers are few and short.
    pairs = [(r, h) for texts in tokens.values() for r, h in zip(references, texts, strict=True)]
    distinct = list(dict.fromkeys(pairs))
    if with_meteor:
        known = dict(zip(distinct, meteor_statistics(*zip(*distinct, strict=True)), strict=True))
        for i, name in enumerate(tokens):
            statistics = np.array([known[pair] for pair in pairs[i * n : (i + 1) * n]]).reshape(n, -1)
            scored[name].metrics["meteor"] = Metric.of_sums(statistics, meteor)
            scored[name].samples["meteor"] = meteor(statistics)
    if spice_jars is not None:
        known = dict(zip(distinct, spice(*zip(*distinct, strict=True), spice_jars), strict=True))
        for i, name in enumerate(tokens):
            scored[name].mean("spice", np.array([known[pair] for pair in pairs[i * n : (i + 1) * n]]))
    for name, texts in tokens.items():
        scored[name].mean("rouge_l", rouge_l(references, texts))
        scored[name].mean("cider", cider(references, texts))


def _seed(
    references: Sequence[Sequence[str]],
    questions: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    scored: Mapping[str, Scored],
) -> None:
    against = {"seed_bleu_4": references, "seed_bleu_4_question": [[question] for question in questions]}
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
