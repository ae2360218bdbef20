"""The curves of a run as a picture."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

LABELS = {"loss": "loss (nats per answer token)", "lr": "learning rate", "grad_norm": "gradient norm"}


def draw_curves(curves: Mapping[str, Sequence[float]]) -> bytes:
    """A PNG of loss, learning rate and gradient norm by step; the same bytes for the same values."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(LABELS)), LABELS.items(), strict=True):
        values = np.asarray(curves[name])
        steps = np.arange(1, len(values) + 1)
        smooth = name != "lr" and len(values) >= 20
        axes.plot(steps, values, color="tab:blue", alpha=0.3 if smooth else 1.0, linewidth=1)
        if smooth:
            width = max(5, len(values) // 20)
            mean = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[width - 1 :], mean, color="tab:blue", label=f"mean of {width} steps")
            axes.legend(frameon=False)
        axes.set(xlabel="step", title=label)
        axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
