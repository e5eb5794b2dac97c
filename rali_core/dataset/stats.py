"""A scored data set in numbers: counts, scores, errors."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..constants import BAND_NAMES
from ..content import NO_CONTENT_SCORE
from ..lazy import renamed
from .filter import group_codes
from .result import ScoredDataset

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
HISTOGRAM_BINS = 50
SHOWN_ERRORS = 10
BAR_WIDTH = 40


__getattr__ = renamed(__name__, {"Summary": "DatasetSummary"})


@dataclass(frozen=True)
class DatasetSummary:
    """A scored data set in numbers.

    Attributes:
        images: How many images the data set has.
        done: How many of them have a row.
        scored: How many of them have a score.
        errors: How many rows have an error.
        no_content: Number of blank images, whose score is not the model's.
        mean: Of the scores; None without any.
        std: Their standard deviation.
        quantiles: Scores at the quantiles 0.01 to 0.99.
        bands: Images per band, from bad to excellent; empty for a model without calibration.
        histogram_edges: Edges of the histogram's bins, one more than bins, over the range of the scores in steps of
            a fiftieth of the scale.
        histogram: Images per bin.
        error_reasons: The most frequent errors without the images' names, with their counts.
        model_name: Which model.
        model_hash: SHA-256 of its file.
    """

    images: int
    done: int
    scored: int
    errors: int
    no_content: int
    mean: float | None
    std: float | None
    quantiles: dict[str, float]
    bands: dict[str, int]
    histogram_edges: list[float]
    histogram: list[int]
    error_reasons: dict[str, int]
    model_name: str
    model_hash: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class GroupSummary:
    """One group of a scored data set.

    Attributes:
        value: Of the group's column.
        scored: How many images have a score.
        errors: How many have an error.
        mean: Of the scores; NaN without any.
        best: The highest score; NaN without any.
    """

    value: str
    scored: int
    errors: int
    mean: float
    best: float


def summarise(folder: str | os.PathLike[str]) -> DatasetSummary:
    """Summarise a scored data set. Memory: 4 bytes per image.

    Raises:
        FileNotFoundError: The folder holds no result.
        ValueError: It is damaged.
    """
    dataset = ScoredDataset(folder)
    bands: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for table in dataset.tables(["uri", "band", "error"]):
        bands.update(table.column("band").drop_null().to_pylist())
        failed = table.filter(table.column("error").is_valid())
        for uri, error in zip(failed.column("uri").to_pylist(), failed.column("error").to_pylist(), strict=True):
            reasons[_reason(uri, error)] += 1
    rows = dataset.scores()
    scores = rows[~np.isnan(rows)].astype(np.float64)
    counts, edges = _histogram(scores)
    return DatasetSummary(
        images=dataset.images,
        done=len(rows),
        scored=len(scores),
        errors=len(rows) - len(scores),
        no_content=int((rows == np.float32(NO_CONTENT_SCORE)).sum()),
        mean=float(scores.mean()) if len(scores) else None,
        std=float(scores.std()) if len(scores) else None,
        quantiles={str(q): float(np.quantile(scores, q)) for q in QUANTILES} if len(scores) else {},
        bands={name: bands[name] for name in BAND_NAMES} if bands else {},
        histogram_edges=edges,
        histogram=counts,
        error_reasons=dict(reasons.most_common(SHOWN_ERRORS)),
        model_name=dataset.manifest.settings.model_name,
        model_hash=dataset.manifest.settings.model_hash,
    )


def summarise_groups(folder: str | os.PathLike[str], column: str) -> list[GroupSummary]:
    """Summarise each group, the best mean first.

    Args:
        folder: Of the result.
        column: As `per_group` of `filter.filter_dataset`.

    Raises:
        FileNotFoundError: The folder holds no result.
        ValueError: There is no such column, or it cannot be grouped by.
    """
    dataset = ScoredDataset(folder)
    codes, names = group_codes(dataset, column)
    scores = dataset.scores().astype(np.float64)
    good = ~np.isnan(scores)
    scored = np.bincount(codes[good], minlength=len(names))
    total = np.bincount(codes, minlength=len(names))
    sums = np.bincount(codes[good], weights=scores[good], minlength=len(names))
    best = np.full(len(names), -np.inf)
    np.maximum.at(best, codes[good], scores[good])
    groups = [
        GroupSummary(name, int(count), int(every - count), sum_ / count if count else np.nan, top if count else np.nan)
        for name, count, every, sum_, top in zip(
            names, scored.tolist(), total.tolist(), sums.tolist(), best.tolist(), strict=True
        )
    ]
    return sorted(groups, key=lambda group: (group.mean != group.mean, -group.mean, group.value))


def format_summary(summary: DatasetSummary) -> str:
    """A summary as text for a terminal."""
    lines = [f"{summary.images:,} images: {summary.scored:,} scored, {summary.errors:,} with an error"]
    if summary.done < summary.images:
        lines[0] += f", {summary.images - summary.done:,} still to do"
    if summary.no_content:
        lines.append(f"{summary.no_content:,} of the scored images have no content")
    if summary.mean is not None:
        quantiles = summary.quantiles
        lines.append(
            f"mean {summary.mean:.4f}, standard deviation {summary.std:.4f}, median {quantiles['0.5']:.4f}, "
            f"middle half {quantiles['0.25']:.4f} to {quantiles['0.75']:.4f}"
        )
        if summary.bands:
            lines += [_bar(name, count, summary.scored) for name, count in summary.bands.items()]
        else:
            lines += [
                _bar(f"{low:.2f}", count, summary.scored)
                for low, count in zip(summary.histogram_edges, summary.histogram, strict=False)
            ]
    if summary.error_reasons:
        lines.append("errors:")
        lines += [f"{count:>10,}  {reason}" for reason, count in summary.error_reasons.items()]
    lines.append(f"model {summary.model_name} ({summary.model_hash[:12]})")
    return "\n".join(lines)


def _bar(name: str, count: int, total: int) -> str:
    share = count / total if total else 0.0
    return f"{name:<10}{count:>12,}{share:>8.1%}  {'#' * round(share * BAR_WIDTH)}"


def _histogram(scores: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[list[int], list[float]]:
    if not len(scores):
        return [], []
    low = np.floor(scores.min() * HISTOGRAM_BINS)
    high = max(np.ceil(scores.max() * HISTOGRAM_BINS), low + 1)
    edges = np.arange(low, high + 1) / HISTOGRAM_BINS
    counts, _ = np.histogram(scores, bins=np.clip(edges, min(edges[0], scores.min()), max(edges[-1], scores.max())))
    return counts.tolist(), edges.tolist()


def _reason(uri: str, error: str) -> str:
    """An error without the image's name, so that equal errors are counted together."""
    return error.replace(uri, "").replace(": :", ":").strip(" :\n")[:160]
