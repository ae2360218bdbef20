"""The report's pictures: scores by system, the rank of the truth, and how scores change over the turns."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from stages.evaluate.bootstrap import Score
from stages.evaluate.report import METRICS, SYSTEMS
from stages.evaluate.scoring import Item, Scored

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLOURS = dict(zip(SYSTEMS, ("#0072b2", "#999999", "#d55e00", "#009e73"), strict=True))  # Okabe and Ito's palette


def draw_all(
    items: Sequence[Item],
    scored: Mapping[str, Scored],
    scores: Mapping[str, Mapping[str, Score]],
    names: Mapping[str, str],
    task: str,
) -> dict[str, bytes]:
    """File name -> PNG; the same numbers give the same bytes. names: what each system is called."""
    scored = {system: scored[system] for system in SYSTEMS if system in scored}
    pictures = {"scores.png": _scores(scores, names)}
    if task == "dialogue":
        pictures["turns.png"] = _turns(items, scored, names)
    if "mean_rank" in scored["trained"].samples:
        pictures["ranks.png"] = _ranks(scored, names)
    return pictures


def _scores(scores: Mapping[str, Mapping[str, Score]], names: Mapping[str, str]) -> bytes:
    """One panel a metric, since their scales differ; bars with 95% intervals."""
    metrics = [name for name in METRICS if name in scores["trained"]]
    systems = [system for system in SYSTEMS if system in scores]
    columns = 4
    rows = -(-len(metrics) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 2.2 * rows + 0.5), squeeze=False)
    for axis, name in zip(axes.flat, metrics, strict=False):
        for place, system in enumerate(systems):
            if (score := scores[system].get(name)) is not None:
                axis.bar(place, score.value, color=COLOURS[system], label=names[system])
                if not np.isnan(score.low):  # a skewed resampling may leave the value outside its interval
                    axis.vlines(place, score.low, score.high, color="black", linewidth=1)
        axis.set_ylim(0, max(0.01, axis.get_ylim()[1]))  # else nothing at all would fill the panel
        axis.set_title(METRICS[name], fontsize=9)
        axis.set_xticks([])
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[s], label=names[s]) for s in systems]
    figure.legend(handles=handles, loc="lower center", ncol=len(systems), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    return _png(figure)


def _ranks(scored: Mapping[str, Scored], names: Mapping[str, str]) -> bytes:
    """How often the truth is among the first k, for every k: a curve above another is better throughout."""
    figure, axis = plt.subplots(figsize=(6, 4))
    most = max(np.nanmax(one.samples["mean_rank"]) for one in scored.values() if "mean_rank" in one.samples)
    places = np.arange(1, int(np.ceil(most)) + 1)
    for system, one in scored.items():
        if "mean_rank" in one.samples:
            ranks = one.samples["mean_rank"][~np.isnan(one.samples["mean_rank"])]
            share = (ranks[None] <= places[:, None]).mean(axis=1)
            axis.step(places, share, where="post", color=COLOURS[system], label=names[system])
    axis.set(xlabel="expected rank of the true answer, at most", ylabel="share of samples", ylim=(0, 1.02))
    axis.legend(fontsize=9, frameon=False)
    figure.tight_layout()
    return _png(figure)


def _turns(items: Sequence[Item], scored: Mapping[str, Scored], names: Mapping[str, str]) -> bytes:
    """Exact match, and MRR where candidates were ranked, by the turn of the dialogue."""
    metrics = [name for name in ("exact_match", "mrr") if name in scored["trained"].samples]
    turns = np.array([item.turn for item in items])
    figure, axes = plt.subplots(1, len(metrics), figsize=(5 * len(metrics), 3.5), squeeze=False)
    for axis, name in zip(axes.flat, metrics, strict=True):
        for system, one in scored.items():
            if name in one.samples:
                values = one.samples[name]
                there = [t for t in np.unique(turns) if not np.isnan(values[turns == t]).all()]
                axis.plot(
                    there,
                    [np.nanmean(values[turns == t]) for t in there],
                    marker="o",
                    markersize=3,
                    color=COLOURS[system],
                    label=names[system],
                )
        axis.set(xlabel="turn", ylabel=METRICS[name], xticks=np.unique(turns))
        axis.set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
