"""report.md: warnings first, then what was scored, the scores beside their controls, examples, provenance."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from stages.evaluate.bootstrap import Score
from stages.evaluate.controls import SEED_PROTOCOL
from stages.evaluate.scoring import Answers, Item
from stages.evaluate.text_metrics import EXACT_MATCH, normalise

SYSTEMS = {
    "trained": "trained",
    "untrained": "untrained (before)",
    "permuted": "trained, images permuted",
    "majority": "majority answer",
}
METRICS = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4", "meteor": "METEOR",
    "rouge_l": "ROUGE-L", "cider": "CIDEr", "seed_bleu_4": "BLEU-4, white space",
    "seed_bleu_4_question": "BLEU-4, white space, against the question", "exact_match": "exact match",
    "recall_1": "R@1", "recall_5": "R@5", "recall_10": "R@10", "mean_rank": "mean rank (less is better)",
    "mrr": "MRR", "ndcg": "NDCG",
}  # fmt: skip
EXAMPLES = 10
FEW_DIALOGUES = 10  # a bootstrap of fewer clusters covers far less than it says


@dataclass(frozen=True)
class Context:
    """What was scored and how. `provenance`: name -> key or digest."""

    split: str
    protocol: str
    tokenizer: str
    resamples: int
    seed: int
    generation: str
    majority: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)


Scores = Mapping[str, Mapping[str, Score]]


def warnings_of(items: Sequence[Item], systems: Mapping[str, Answers], scores: Scores, gains: Scores) -> list[str]:
    """What a reader must know before any number: broken output first, then what the controls say."""
    found = []
    n, trained = len(items), scores["trained"]
    for system in ("trained", "untrained", "permuted"):
        texts = systems[system].texts
        if empty := sum(not text.strip() for text in texts):
            found.append(f"{empty} of {n} answers are empty ({SYSTEMS[system]})")
        answer, times = Counter(texts).most_common(1)[0]
        if n > 1 and times > 0.9 * n:
            found.append(
                f"{'all' if times == n else f'{times} of'} {n} answers are the same, {_code(answer)} "
                f"({SYSTEMS[system]})"
            )
    for name, least in (("bleu_1", 0.02), ("bleu_4", 1e-3), ("seed_bleu_4", 1e-3)):
        if name in trained and trained[name].value < least:
            found.append(
                f"{METRICS[name]} is nearly 0 ({trained[name].value:.2g}): wrong split, wrong checkpoint, or "
                "answers too short to share so many words; read the examples"
            )
            break
    if systems["trained"].texts == systems["untrained"].texts:
        found.append("training changed no answer")
    dialogues = len({item.dialogue for item in items})
    if dialogues < FEW_DIALOGUES:
        found.append(
            "only one dialogue: no intervals"
            if dialogues == 1
            else f"only {dialogues} dialogues: the intervals are too narrow, and say little"
        )
    for system, meaning in (
        ("untrained", "training did not help, as far as this sample can tell"),
        ("permuted", "the images cannot be shown to matter"),
        ("majority", "always saying the commonest answer does as well"),
    ):
        if system in gains and (said := _no_better(gains[system])):
            found.append(f"not measurably better than {SYSTEMS[system]} in {said}: {meaning}")
    return found


def render(
    context: Context,
    items: Sequence[Item],
    systems: Mapping[str, Answers],
    scores: Scores,
    gains: Scores,
    warnings: Sequence[str],
    plots: Sequence[str],
) -> str:
    """The whole report, in Markdown. It holds no time and no path, so the same run gives the same bytes."""
    lines = [line for warning in warnings for line in (f"> **Warning:** {warning}", ">")][:-1]
    lines += [""] if lines else []
    ranked = sum(scores is not None for scores in systems["trained"].candidates)
    dialogues = len({item.dialogue for item in items})
    lines += [
        "# Evaluation", "",
        f"- {len(items)} samples of {dialogues} dialogues, split `{context.split}`; candidates ranked for "
        f"{ranked}",
        f"- Tokenizer of the text scores: {context.tokenizer}. Exact match: {EXACT_MATCH}.",
        f"- Generation: {context.generation}. Candidates are ranked by mean log-likelihood of their tokens; "
        "ties count at their expected rank, R@k as the chance to be among the first k.",
        f"- 95% intervals: percentile bootstrap over dialogues, {context.resamples} resamples, seed "
        f"{context.seed}; CIDEr keeps the document frequencies of all references.",
    ]  # fmt: skip
    if context.majority is not None:
        lines.append(
            f"- Majority answer: {_code(context.majority)}, the commonest in the training split; its ranking "
            "is by how often training says a candidate."
        )
    if context.protocol == "seed":
        lines.append(f"- Protocol `seed`: {SEED_PROTOCOL}.")
    lines += [
        "",
        "## Scores",
        "",
        *_table(scores, [s for s in SYSTEMS if s in scores], SYSTEMS, _with_interval),
        "",
    ]
    lines += [
        "## What training, images and content bring",
        "",
        "Trained minus each control, on the same samples and resamples. Bold: the interval leaves out 0.",
        "",
    ]
    lines += [
        *_table(gains, [s for s in SYSTEMS if s in gains], {s: f"over {SYSTEMS[s]}" for s in gains}, _gain),
        "",
    ]
    lines += [f"![{name}]({name})" for name in plots] + ([""] if plots else [])
    lines += ["## Examples", ""] + _examples(items, systems)
    lines += ["## Provenance", ""] + [f"- {name}: `{value}`" for name, value in context.provenance.items()]
    return "\n".join(lines) + "\n"


def _table(scores: Scores, systems: Sequence[str], names: Mapping[str, str], cell: Callable[[Score], str]) -> list[str]:
    metrics = [m for m in METRICS if any(m in scores[s] for s in systems)]
    head = ["metric", *(names[s] for s in systems), "n"]
    rows = []
    for metric in metrics:
        found = [scores[s].get(metric) for s in systems]
        counted = next(f.n for f in found if f is not None)
        rows.append([METRICS[metric], *("" if f is None else cell(f) for f in found), str(counted)])
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _examples(items: Sequence[Item], systems: Mapping[str, Answers]) -> list[str]:
    """Samples spread evenly over the split, so that nobody picks them."""
    chosen = sorted({round(i * (len(items) - 1) / max(1, EXAMPLES - 1)) for i in range(EXAMPLES)})
    shown = [s for s in SYSTEMS if s in systems and s != "majority"]
    rows = [["sample", "question", "answer", *(SYSTEMS[s] for s in shown)], ["---"] * (3 + len(shown))]
    rows += [
        [
            items[i].sample,
            _cell(items[i].question),
            _cell(items[i].answer),
            *(_mark(items[i].answer, systems[s].texts[i]) for s in shown),
        ]
        for i in chosen
    ]
    return [*map(_row, rows), ""]


def _mark(answer: str, text: str) -> str:
    """The system's answer, bold where it is an exact match."""
    shown = _cell(text) if text.strip() else "*(empty)*"
    return f"**{shown}**" if normalise(answer) == normalise(text) else shown


def _no_better(gains: Mapping[str, Score]) -> str:
    """Of the scores that tell most, those whose gain may be zero or less, by their shown names."""
    telling = [name for name in ("bleu_1", "seed_bleu_4", "exact_match", "mrr") if name in gains]
    poor = [METRICS[name] for name in telling if math.isnan(gains[name].low) or gains[name].low <= 0]
    return "" if len(poor) < len(telling) else ", ".join(poor)


def _with_interval(score: Score) -> str:
    return f"{_number(score.value)}{_interval(score)}"


def _gain(score: Score) -> str:
    text = f"{round(score.value, 3) + 0.0:+.3f}{_interval(score)}"
    return f"**{text}**" if round(score.low, 3) > 0 or round(score.high, 3) < 0 else text


def _interval(score: Score) -> str:
    return "" if math.isnan(score.low) else f" [{_number(score.low)}, {_number(score.high)}]"


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 10 else f"{value:.1f}"  # + 0.0: no "-0.000"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Text inside a table: on one line, and what Markdown or HTML would take for markup is escaped."""
    text = " ".join(text.split())
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, "&lt;" if sign == "<" else "\\" + sign)
    return text


def _code(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
