"""Loss curves as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import packages
from ..files import written_aside


def draw_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw the losses of losses.csv's `rows` over the steps, one panel each: every row, and their running mean."""
    figure_module = packages.require("matplotlib.figure", "Drawing the loss curves")
    names = [name for name in rows[-1] if name not in ("step", "rate", "s")]
    figure = figure_module.Figure(figsize=(5 * len(names), 3.5), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    steps = np.array([row["step"] for row in rows])
    for panel, name in zip(panels, names, strict=True):
        values = np.array([row[name] for row in rows])
        panel.plot(steps, values, color="0.75", linewidth=0.8)
        panel.plot(steps, running_mean(values), color="tab:blue")
        panel.set(title=name, xlabel="step", yscale="log" if (values > 0).all() else "linear")
        panel.grid(alpha=0.3)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=100)


def running_mean(values: np.ndarray, keep: float = 0.9) -> np.ndarray:
    """Exponential mean [n] of values [n], unbiased at the start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return np.array(means)
