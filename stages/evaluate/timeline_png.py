"""The picture of a memory bank: how its entries grew over the frames, and what it kept. Numbers in, PNG out."""

import io
import textwrap

import matplotlib
import numpy as np

from stages.evaluate.timeline import Moments, counted, held, ticks

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

COLOURS = "viridis_r"  # a single frame is bright, a long moment is dark; read alike by the colour-blind
WIDTH, SIDE, GAP, GROWTH, BAR = 14.0, 0.75, 0.12, 4.0, 0.34  # inches
TITLE, AXIS, CAPTION = 0.32, 0.62, 0.36
NOTE, NOTE_SIGNS = 0.17, 190  # height of a line of notes, and the signs that fit on it
ACROSS = 10  # pictures in a row, at most


def draw(moments: Moments, dpi: int = 110) -> bytes:
    """The PNG; the same numbers give the same bytes."""
    kept, largest = moments.kept, max(run.size for run in moments.kept)
    notes = [line for note in moments.notes for line in textwrap.wrap(note, NOTE_SIGNS)]
    across = min(ACROSS, max(5, len(kept)))
    cell = (WIDTH - 2 * SIDE + GAP) / across - GAP
    shape = moments.pictures[0].shape if len(moments.pictures) else None
    tall = min(cell * shape[0] / shape[1], 1.2 * cell) if shape else 0.0
    rows = -(-len(kept) // across)
    grid = rows * (tall + CAPTION + GAP)
    height = TITLE + NOTE * len(notes) + 0.2 + GROWTH + GAP + BAR + AXIS + grid + 0.1
    figure = plt.figure(figsize=(WIDTH, height), dpi=dpi, facecolor="white")

    def place(left: float, top: float, width: float, tall: float) -> plt.Axes:
        return figure.add_axes(Bbox.from_bounds(left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height))

    figure.text(SIDE / WIDTH, 1 - 0.1 / height, moments.title, fontsize=13, weight="bold", va="top")
    for line, note in enumerate(notes):
        at = 1 - (0.1 + TITLE + NOTE * line) / height
        figure.text(SIDE / WIDTH, at, note, fontsize=8.5, va="top", color="#444444")
    top = TITLE + NOTE * len(notes) + 0.2
    norm, colours = LogNorm(1, max(2, largest)), plt.get_cmap(COLOURS)
    wide = WIDTH - 2 * SIDE
    _growth(place(SIDE, top, wide, GROWTH), moments, norm, colours)
    if largest > 1:  # else there is one colour, and of a single frame no corner is free
        _scale(figure, place(SIDE + 0.66 * wide, top + 0.62, 0.3 * wide, 0.13), largest, norm, colours)
    top += GROWTH + GAP
    _bar(place(SIDE, top, wide, BAR), moments, norm, colours)
    top += BAR + AXIS
    for number, run in enumerate(kept):
        row, column = divmod(number, across)
        at = (SIDE + column * (cell + GAP), top + row * (tall + CAPTION + GAP))
        colour = colours(norm(run.size))
        if shape:
            axis = place(*at, min(cell, tall * shape[1] / shape[0]), tall)
            axis.imshow(moments.pictures[number], aspect="auto")  # the axis has the picture's proportions
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color=colour, linewidth=3)
        left, under = at[0] / WIDTH, 1 - (at[1] + tall) / height
        said = f"{number + 1}.  {moments.span(run)}\n{counted(run.size)}"
        figure.text(left, under - 0.06 / height, said, fontsize=min(8.5, 6.6 * cell), va="top", linespacing=1.15)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _growth(axis: plt.Axes, moments: Moments, norm: LogNorm, colours: matplotlib.colors.Colormap) -> None:
    """Every entry that ever was: its frames across, the steps it lived through down."""
    found = held(moments.steps)
    corners = [
        [(h.run.first, h.since), (h.run.last + 1, h.since), (h.run.last + 1, h.until + 1), (h.run.first, h.until + 1)]
        for h in found
    ]
    thin = 0.6 if len(moments.steps) <= 60 else 0.3 if len(moments.steps) <= 200 else 0.1
    faces = [colours(norm(h.run.size)) for h in found]
    axis.add_collection(PolyCollection(corners, facecolors=faces, edgecolors="white", linewidths=thin))
    total = len(moments.steps)
    axis.set(xlim=(0, total), ylim=(total, 0), ylabel="frames the bank has seen")
    axis.set_xticks(ticks(moments.start), [])
    seen = matplotlib.ticker.MaxNLocator(8, integer=True).tick_values(0, total)
    axis.set_yticks([mark for mark in seen if mark <= total])
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _scale(figure: Figure, axis: plt.Axes, largest: int, norm: LogNorm, colours: matplotlib.colors.Colormap) -> None:
    """What the colours mean, in the corner that no entry can reach."""
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), cax=axis, orientation="horizontal")
    marks = sorted({round(float(size)) for size in np.geomspace(1, largest, 5)})
    bar.set_ticks(marks, labels=[str(mark) for mark in marks])
    bar.minorticks_off()
    axis.tick_params(labelsize=8)
    axis.set_title("frames merged into one entry", fontsize=8.5)


def _bar(axis: plt.Axes, moments: Moments, norm: LogNorm, colours: matplotlib.colors.Colormap) -> None:
    """What is kept in the end, each moment with the number of its picture where the number has room."""
    total = len(moments.steps)
    points = (WIDTH - 2 * SIDE) * 72 / total  # that a frame is wide
    for number, run in enumerate(moments.kept):
        size = norm(run.size)
        axis.broken_barh([(run.first, run.size)], (0, 1), facecolor=colours(size), edgecolor="white", linewidth=0.8)
        text = str(number + 1)
        font = min(9.0, (run.size * points - 1) / (0.62 * len(text)))
        if font >= 4.5:
            axis.text(
                run.first + run.size / 2, 0.5, text, fontsize=font, ha="center", va="center",
                color="white" if size > 0.45 else "black",
            )  # fmt: skip
    marks = ticks(moments.start)
    axis.set(xlim=(0, total), ylim=(0, 1), yticks=[], xlabel="time in the video")
    axis.set_xticks(marks, [moments.instant(moments.start[mark]) for mark in marks])
    axis.set_ylabel("kept", rotation=0, ha="right", va="center")
    axis.tick_params(labelsize=8)
    for spine in axis.spines.values():
        spine.set_visible(False)
