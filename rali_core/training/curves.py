"""Plots of what a training logged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Panel = tuple[str, Sequence[str]]
"""Title, and the names of the values in it."""


def draw_curves(log: Sequence[dict[str, float]], path: str | Path, panels: Sequence[Panel]) -> None:
    """Draw what was logged over the steps, as PNG.

    Args:
        log: An entry per line, each with `step` and some values by name; values that it does not hold are left out.
        path: PNG file to write.
        panels: What is drawn side by side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)  # no global state, no display
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log if name in entry]
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker="." if len(points) < 60 else None)
        axes.set(xlabel="step", title=title)
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.25)
        if len(names) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
