"""report.md: warnings first, then what was scored, the scores beside their controls, examples, provenance."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from stages.evaluate.bootstrap import Score
from stages.evaluate.controls import SEED_PROTOCOL
from stages.evaluate.java import TOKENIZER
from stages.evaluate.scoring import WHITE_SPACE, Answers, Item
from stages.evaluate.text_metrics import EXACT_MATCH, PROCESSED, accuracy, exact_match

SYSTEMS = ("trained", "untrained", "permuted", "majority")
METRICS = {
    "accuracy": "accuracy", "accuracy_first_word": "accuracy of the first word",
    "top_1": "free top-1", "top_5": "free top-5 (any beam)", "constrained_top_1": "top-1 among class names",
    "ranked_top_1": "ranking top-1", "ranked_top_5": "ranking top-5",
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4", "meteor": "METEOR",
    "rouge_l": "ROUGE-L", "cider": "CIDEr", "spice": "SPICE", "seed_bleu_4": "BLEU-4, white space",
    "seed_bleu_4_question": "BLEU-4, white space, against the question", "exact_match": "exact match",
    "recall_1": "R@1", "recall_5": "R@5", "recall_10": "R@10", "mean_rank": "mean rank (less is better)",
    "mrr": "MRR", "ndcg": "NDCG",
}  # fmt: skip
GROUPED = {"accuracy": "category", "top_1": "class"}  # metrics that are told by group too
# What a task is, how it is scored, and how MA-LMM's code scores it.
TASKS = {
    "dialogue": f"Dialogue: each turn is answered with the turns before it. Exact match: {EXACT_MATCH}.",
    "question": "Open questions. Accuracy: the answer equals the true one, both as MA-LMM's text processor leaves "
    f"them ({PROCESSED}). MA-LMM's code scores ActivityNet-QA so, and MSVD-QA and MSRVTT-QA by its first word; "
    "with 5 beams, and the answer's text as it is.",
    "classification": "Classification: the answer is a class name. Free: text is generated, and right when it equals "
    f"the name ({PROCESSED}); top-5 when one of the first five beams does. That is MA-LMM's protocol, with 5 beams and "
    "the text as it is. Among class names: no other text can be generated. Ranking: all class names by mean "
    "log-likelihood of their tokens.",
    "caption": "Captions, each scored against all references of its segment, as pycocoevalcap's COCO evaluation does. "
    "That is MA-LMM's protocol, with 5 beams.",
}
SAME = {  # when an example is bold
    "dialogue": "an exact match",
    "question": "right, as accuracy has it",
    "classification": "right, as free top-1 has it",
    "caption": "the same as one of the references",
}
TELLING = ("accuracy", "top_1", "ranked_top_1", "bleu_1", "cider", "seed_bleu_4", "exact_match", "mrr")
EXAMPLES = 10
FEW_CLUSTERS = 10  # a bootstrap of fewer clusters covers far less than it says


@dataclass(frozen=True)
class Context:
    """What was scored and how. kind: "image" or "video"; `provenance`: name -> key or digest."""

    task: str
    kind: str
    split: str
    protocol: str
    resamples: int
    seed: int
    generation: str
    majority: str | None = None
    zero_shot: bool = False
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """The systems as the report calls them."""
        model = "zero-shot" if self.zero_shot else "trained"
        commonest = "commonest training caption" if self.task == "caption" else "majority answer"
        shown = f"{model}, {self.kind}s permuted"
        return dict(zip(SYSTEMS, (model, "untrained (before)", shown, commonest), strict=True))

    @property
    def clusters(self) -> str:
        """What the bootstrap draws."""
        return "dialogue" if self.task == "dialogue" else self.kind

    @property
    def tokenizer(self) -> str | None:
        """What splits words, as every text score must say; None where there is no text score."""
        if self.protocol == "seed":
            return WHITE_SPACE
        return None if self.task == "classification" else TOKENIZER


Scores = Mapping[str, Mapping[str, Score]]


def warnings_of(
    context: Context, items: Sequence[Item], systems: Mapping[str, Answers], scores: Scores, gains: Scores
) -> list[str]:
    """What a reader must know before any number: broken output first, then what the controls say."""
    found, names, clusters = [], context.names, context.clusters
    n, trained = len(items), scores["trained"]
    for system in (one for one in ("trained", "untrained", "permuted") if one in systems):
        texts = systems[system].texts
        if empty := sum(not text.strip() for text in texts):
            found.append(f"{empty} of {n} answers are empty ({names[system]})")
        answer, times = Counter(texts).most_common(1)[0]
        if n > 1 and times > 0.9 * n:
            found.append(
                f"{'all' if times == n else f'{times} of'} {n} answers are the same, {_code(answer)} ({names[system]})"
            )
    for name, least in (("bleu_1", 0.02), ("bleu_4", 1e-3), ("seed_bleu_4", 1e-3)):
        if name in trained and trained[name].value < least:
            found.append(
                f"{METRICS[name]} is nearly 0 ({trained[name].value:.2g}): wrong split, wrong checkpoint, or "
                "answers too short to share so many words; read the examples"
            )
            break
    if "untrained" in systems and systems["trained"].texts == systems["untrained"].texts:
        found.append("training changed no answer")
    drawn = len({item.dialogue for item in items})
    if drawn < FEW_CLUSTERS:
        found.append(
            f"only one {clusters}: no intervals"
            if drawn == 1
            else f"only {drawn} {clusters}s: the intervals are too narrow, and say little"
        )
    if drawn == 1:  # without intervals nothing can be told from chance
        return found
    for system, meaning in (
        ("untrained", "training did not help, as far as this sample can tell"),
        ("permuted", f"the {context.kind}s cannot be shown to matter"),
        ("majority", "always saying the commonest answer does as well"),
    ):
        if system in gains and (said := _no_better(gains[system])):
            found.append(f"not measurably better than {names[system]} in {said}: {meaning}")
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
    names, clusters = context.names, context.clusters
    drawn, texts = len({item.dialogue for item in items}), sum(len(item.references) for item in items)
    many = f" ({texts} references)" if texts > len(items) else ""
    lines += [
        "# Evaluation", "",
        f"- {TASKS[context.task]}",
        f"- {len(items)} samples{many} of {drawn} {clusters}s, split `{context.split}`"
        + (f"; candidates ranked for {ranked}" if ranked else ""),
    ]  # fmt: skip
    if context.tokenizer is not None:
        lines.append(f"- Tokenizer of the text scores: {context.tokenizer}.")
    lines.append(f"- Generation: {context.generation}.")
    if ranked:
        lines.append(
            "- Candidates are ranked by mean log-likelihood of their tokens; ties count at their expected rank, R@k "
            "and top-k as the chance to be among the first k."
        )
    lines.append(
        f"- 95% intervals: percentile bootstrap over {clusters}s, {context.resamples} resamples, seed {context.seed}"
        + ("; CIDEr keeps the document frequencies of all references." if "cider" in scores["trained"] else ".")
    )
    of_ten = " (CIDEr: of 10)" if "cider" in scores["trained"] else ""
    lines.append(f"- All scores but ranks are parts of 1{of_ten}; papers write them times 100.")
    if context.majority is not None:
        lines.append(
            f"- {names['majority'].capitalize()}: {_code(context.majority)}, the commonest in the training split"
            + ("; its ranking is by how often training says a candidate." if ranked else ".")
        )
    if context.protocol == "seed":
        lines.append(f"- Protocol `seed`: {SEED_PROTOCOL}.")
    shown = [system for system in SYSTEMS if system in scores]
    lines += ["", "## Scores", "", *_table(scores, list(METRICS), METRICS, shown, names, _with_interval), ""]
    for metric, group in GROUPED.items():
        parts = {name: name.removeprefix(f"{metric}/") for name in scores["trained"] if name.startswith(f"{metric}/")}
        if parts:
            labels = {name: _cell(label) for name, label in parts.items()}
            lines += [f"## {METRICS[metric].capitalize()} by {group}", ""]
            lines += [*_table(scores, list(parts), labels, shown, names, _with_interval, group), ""]
    lines += [
        f"## What training, {context.kind}s and content bring",
        "",
        f"{names['trained'].capitalize()} minus each control, on the same samples and resamples. Bold: the interval "
        "leaves out 0.",
        "",
    ]
    over = {system: f"over {name}" for system, name in names.items()}
    lines += [*_table(gains, list(METRICS), METRICS, [s for s in SYSTEMS if s in gains], over, _gain), ""]
    lines += [f"![{name}]({name})" for name in plots] + ([""] if plots else [])
    lines += ["## Examples", "", f"Spread evenly over the split. Bold: {SAME[context.task]}.", ""]
    lines += _examples(context, items, systems)
    lines += ["## Provenance", ""] + [f"- {name}: `{value}`" for name, value in context.provenance.items()]
    return "\n".join(lines) + "\n"


def _table(
    scores: Scores,
    metrics: Sequence[str],
    labels: Mapping[str, str],
    systems: Sequence[str],
    names: Mapping[str, str],
    cell: Callable[[Score], str],
    first: str = "metric",
) -> list[str]:
    """A row a metric that any of the systems has, a column a system."""
    head = [first, *(names[s] for s in systems), "n"]
    rows = []
    for metric in metrics:
        found = [scores[s].get(metric) for s in systems]
        if any(found):
            counted = next(f.n for f in found if f is not None)
            rows.append([labels[metric], *("" if f is None else cell(f) for f in found), str(counted)])
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _examples(context: Context, items: Sequence[Item], systems: Mapping[str, Answers]) -> list[str]:
    """Samples spread evenly over the split, so that nobody picks them."""
    names, same = context.names, exact_match if context.task == "dialogue" else accuracy
    chosen = sorted({round(i * (len(items) - 1) / max(1, EXAMPLES - 1)) for i in range(EXAMPLES)})
    shown = [s for s in SYSTEMS if s in systems and s != "majority"]
    rows = [["sample", "question", "answer", *(names[s] for s in shown)], ["---"] * (3 + len(shown))]
    rows += [
        [
            items[i].sample,
            _cell(items[i].question),
            _cell(items[i].answer),
            *(_mark(systems[s].texts[i], same([items[i].references], [systems[s].texts[i]])[0] == 1) for s in shown),
        ]
        for i in chosen
    ]
    return [*map(_row, rows), ""]


def _mark(text: str, right: bool) -> str:
    """The system's answer, bold where it is right."""
    shown = _cell(text) if text.strip() else "*(empty)*"
    return f"**{shown}**" if right else shown


def _no_better(gains: Mapping[str, Score]) -> str:
    """Of the scores that tell most, those whose gain may be zero or less, by their shown names."""
    telling = [name for name in TELLING if name in gains]
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
