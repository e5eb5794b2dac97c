"""The summary beside the shards: numbers (JSON), a histogram and a contact sheet (PNG).

Their names begin with `_`, which readers of Parquet folders skip.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import atomic_write
from ..frames import FrameReader
from ..images import open_image, to_pil_image
from ..sheet import draw_contact_sheet, make_thumbnail
from .items import Item
from .result import ContentReader, ScoredDataset
from .stats import DatasetSummary, summarise

logger = logging.getLogger("rali")

SUMMARY = "_summary.json"
HISTOGRAM = "_histogram.png"
SHEET = "_contact-sheet.png"

SHEET_COLUMNS = 4


def write_summary(folder: Path) -> DatasetSummary:
    """Summarise a result and draw its histogram and contact sheet.

    Args:
        folder: Of the result. An image that was deleted since it was scored is left out of the sheet; without
            matplotlib there is no histogram.

    Raises:
        FileNotFoundError: The folder holds no result.
        OSError: The files cannot be written.
    """
    summary = summarise(folder)
    with atomic_write(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary.to_dict(), indent=1) + "\n", encoding="utf-8")
    if summary.scored:
        try:
            with atomic_write(folder / HISTOGRAM) as temporary:
                draw_histogram(summary, temporary)
        except ModuleNotFoundError as error:
            logger.warning("%s is not drawn: %s", HISTOGRAM, error)
        sheet = draw_extremes(ScoredDataset(folder))
        if sheet is not None:
            with atomic_write(folder / SHEET) as temporary:
                sheet.save(temporary, format="PNG")
    return summary


def draw_histogram(summary: DatasetSummary, path: Path) -> None:
    """Draw the histogram of scores as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    edges = np.asarray(summary.histogram_edges)
    axes.bar(edges[:-1], summary.histogram, width=np.diff(edges), align="edge", color="#3b6ea5", edgecolor="white")
    axes.axvline(summary.quantiles["0.5"], color="#b22830", label=f"median {summary.quantiles['0.5']:.3f}")
    axes.set(xlabel="score (higher is better)", ylabel="images", xlim=(min(0.0, edges[0]), max(1.0, edges[-1])))
    axes.set_title(f"{summary.scored:,} images scored by {summary.model_name}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=120)


def draw_extremes(dataset: ScoredDataset) -> Image.Image | None:
    """The best, median and worst images, a row each; all images if there are few. None if none can be read."""
    scores = dataset.scores()
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")[: int((~np.isnan(scores)).sum())]
    middle = max(len(order) // 2 - SHEET_COLUMNS // 2, 0)
    rows = {
        "best": order[:SHEET_COLUMNS],
        "median": order[middle : middle + SHEET_COLUMNS],
        "worst": order[-SHEET_COLUMNS:],
    }
    chosen: dict[int, str] = {}
    for name, positions in rows.items():
        for position in positions.tolist():
            chosen.setdefault(position, name)
    images, values, names, times = [], [], [], dataset.best_times()
    with ContentReader(dataset.manifest) as reader:
        for position, item in zip(chosen, dataset.items(list(chosen)), strict=True):
            image = _thumbnail(reader, item, float(times[position]))
            if image is not None:
                images.append(image)
                values.append(float(scores[position]))
                names.append(f"{chosen[position]}: {item.id}")
    return draw_contact_sheet(images, values, names=names, columns=SHEET_COLUMNS) if images else None


def _thumbnail(reader: ContentReader, item: Item, seconds: float) -> Image.Image | None:
    """A thumbnail, for a video of its frame at that time; NaN for an image."""
    try:
        if seconds == seconds:
            return make_thumbnail(to_pil_image(FrameReader(reader.read(item), name=item.uri).at(seconds)))
        with open_image(reader.read(item)) as image:
            return make_thumbnail(image)
    except Exception:  # it was scored, but has been deleted or changed since, or its URL has expired
        return None
