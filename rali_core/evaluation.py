"""How well scores agree with people: SRCC, PLCC, KRCC and MAE, with bootstrap confidence intervals and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

MEASURES = ("srcc", "plcc", "krcc", "mae")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Agreement:
    """Agreement between predicted and human scores on one set.

    Attributes:
        count: Number of images.
        srcc: Spearman's rank correlation.
        plcc: Pearson's correlation, of the raw scores: no logistic curve is fitted first.
        krcc: Kendall's tau-b.
        mae: Mean absolute error, in units of the score.
        intervals: 95 % percentile bootstrap interval (low, high) of each measure; empty if none was asked for.
    """

    count: int
    srcc: float
    plcc: float
    krcc: float
    mae: float
    intervals: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, float | int | list[float]]:
        """The figures as plain JSON types."""
        figures: dict[str, float | int | list[float]] = {"count": self.count}
        for name in MEASURES:
            figures[name] = round(float(getattr(self, name)), 6)
            if name in self.intervals:
                figures[name + "_interval"] = [round(value, 6) for value in self.intervals[name]]
        return figures


def measure_agreement(predicted: ArrayLike, human: ArrayLike, *, resamples: int = 0, seed: int = 0) -> Agreement:
    """Compare predicted with human scores.

    Args:
        predicted: (N,) scores of the model.
        human: (N,) mean opinion scores of the same images on the same scale.
        resamples: Bootstrap resamples for the 95 % intervals; 0 leaves them out.
        seed: Seed of the resampling.

    Raises:
        ValueError: Shapes differ, fewer than three images, values that are not finite, or constant values (a
            correlation with those is not defined).

    Examples:
        >>> agreement = measure_agreement([0.1, 0.4, 0.9], [0.2, 0.5, 0.8])
        >>> agreement.srcc, round(agreement.mae, 4)
        (1.0, 0.1)
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(human, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two lists of one length, got shapes {x.shape} and {y.shape}")
    if len(x) < 3:
        raise ValueError(f"a correlation needs at least three images, got {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the scores hold NaN or infinite values")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("all predicted or all human scores are equal: a correlation is not defined")
    values = _measures(x, y)
    intervals = {}
    if resamples:
        random = np.random.default_rng(seed)
        draws: list[tuple[float, float, float, float]] = []
        while len(draws) < resamples:
            index = random.integers(len(x), size=len(x))
            if np.ptp(x[index]) and np.ptp(y[index]):  # a resample of one repeated value has no correlation
                draws.append(_measures(x[index], y[index]))
        tail = 100 * (1 - CONFIDENCE) / 2
        for name, column in zip(MEASURES, np.asarray(draws).T, strict=True):
            low, high = np.percentile(column, [tail, 100 - tail])
            intervals[name] = (float(low), float(high))
    return Agreement(len(x), *values, intervals=intervals)


def srcc_within_groups(predicted: ArrayLike, human: ArrayLike, groups: Sequence[str]) -> dict[str, float]:
    """Spearman's rank correlation within each group of images, such as those of one generator.

    Args:
        predicted: (N,) scores of the model.
        human: (N,) mean opinion scores.
        groups: N names.

    Returns:
        Group to SRCC, in the order of the names; groups of fewer than three images or of equal scores are left out.
    """
    from scipy import stats

    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(human, dtype=np.float64)
    names = np.asarray(groups)
    if not len(x) == len(y) == len(names):
        raise ValueError(f"expected lists of one length, got {len(x)}, {len(y)} and {len(names)}")
    result = {}
    for name in sorted(set(groups)):
        inside = names == name
        if inside.sum() >= 3 and np.ptp(x[inside]) and np.ptp(y[inside]):
            result[name] = float(stats.spearmanr(x[inside], y[inside]).statistic)
    return result


def _measures(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float, float]:
    from scipy import stats

    srcc, plcc, krcc = (
        float(measure(x, y).statistic) for measure in (stats.spearmanr, stats.pearsonr, stats.kendalltau)
    )
    return srcc, plcc, krcc, float(np.abs(x - y).mean())


def format_agreement(agreement: Agreement) -> str:
    """The figures as a small table."""
    lines = [f"{agreement.count} images"]
    for name in MEASURES:
        line = f"  {name.upper():<5}{getattr(agreement, name):>8.4f}"
        if name in agreement.intervals:
            low, high = agreement.intervals[name]
            line += f"   95 % interval {low:.4f} to {high:.4f}"
        lines.append(line)
    return "\n".join(lines)


def draw_scatter(
    predicted: ArrayLike, human: ArrayLike, agreement: Agreement, path: str | Path, *, title: str = ""
) -> None:
    """Draw predicted against human scores, with the line of equality, as PNG.

    Args:
        predicted: (N,) scores of the model, 0..1.
        human: (N,) mean opinion scores, 0..1.
        agreement: The figures to print into the plot.
        path: PNG file to write.
        title: Heading.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    FigureCanvasAgg(figure)  # no global state, no display
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="equal")
    axes.scatter(np.asarray(human), np.asarray(predicted), s=9, alpha=0.4, linewidths=0, color="#1f5fa8")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="human score (MOS, 0 to 1)", ylabel="RALI score", aspect="equal")
    axes.set_title(title, fontsize=11)
    text = "\n".join(f"{name.upper()} {getattr(agreement, name):.3f}" for name in MEASURES)
    axes.text(0.03, 0.97, f"n = {agreement.count}\n{text}", transform=axes.transAxes, va="top", family="monospace")
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
