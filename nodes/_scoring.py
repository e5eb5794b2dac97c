"""Score IMAGEs: ComfyUI's memory, progress and interrupt around one call into the core; scores cached by content."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..rali_core.calibration import Calibration
from ..rali_core.combine import Aggregation
from ..rali_core.images import ImageError
from ..rali_core.score_cache import ScoreCache
from ..rali_core.selection import rank
from ._convert import to_core
from ._models import ModelHandle, get_model, load_on_device

AGGREGATIONS: list[Aggregation] = ["mean", "median", "minimum", "maximum"]
COVERAGES = ["model's own", "center", "tiles"]

_cache = ScoreCache()


@dataclass(frozen=True)
class Scores:
    """Scores of N images in input order.

    Attributes:
        values: N scores.
        calibration: The model's bands and percentiles, where it has them.
    """

    values: list[float]
    calibration: Calibration | None

    def bands(self) -> list[str]:
        """N names of bands; empty texts without a calibration."""
        return list(self.calibration.bands(self.values)) if self.calibration else [""] * len(self.values)

    def report(self) -> str:
        """One line per image, best first."""
        calibration, bands, lines = self.calibration or Calibration(), self.bands(), []
        for place, index in enumerate(rank(self.values), start=1):
            line = f"{place}. image {index}: {self.values[index]:.4f} {bands[index]}".rstrip()
            compared = calibration.describe(self.values[index])
            lines.append(f"{line}, {compared}" if compared else line)
        if calibration.populations:
            lines.append(f"Percentages: compared with {calibration.reference}")
        return "\n".join(lines)


def progress_reporter(total: int) -> Any:
    """A callback for the core: moves the node's progress bar, and raises where the user pressed interrupt."""
    import comfy.model_management as management
    from comfy.utils import ProgressBar

    bar = ProgressBar(total)

    def report(done: int, _total: int | None) -> bool:
        bar.update_absolute(done)
        management.throw_exception_if_processing_interrupted()
        return True

    return report


def score_images(images: list[Tensor], model: ModelHandle | None = None, coverage: str = COVERAGES[0]) -> Scores:
    """Score single images (1, H, W, C) of any sizes.

    Raises:
        ImageError: One cannot be scored; the message names it.
        FileNotFoundError, CheckpointError: `model` is None and the bundled one cannot be used.
    """
    handle = model or get_model()
    chosen = handle.scorer.model.coverage if coverage == COVERAGES[0] else coverage

    def compute(unknown: list[Tensor]) -> list[float]:
        load_on_device(handle)
        scorer = handle.scorer
        before, scorer.coverage = scorer.coverage, chosen
        try:
            result = scorer.score(unknown, on_error="record", progress=progress_reporter(len(unknown)))
        finally:
            scorer.coverage = before
        for image, error in zip(unknown, result.errors, strict=True):
            if error is not None:
                number = next(index for index, other in enumerate(pixels) if other is image)
                raise ImageError(f"image {number} (of {len(pixels)}, counted from 0) cannot be scored: {error}")
        return [float(value) for value in result.scores]

    pixels = [to_core(image) for image in images]
    values = _cache.score(pixels, compute, namespace=f"{handle.key}|{chosen}")
    return Scores(values, handle.scorer.info.calibration)


def with_values(scores: Scores, values: list[float]) -> Scores:
    """The same calibration on other values."""
    return replace(scores, values=values)


def show(
    values: list[float], *, threshold: float | None = None, chosen: list[int] | None = None, note: str = ""
) -> dict[str, Any]:
    """What the page's extension draws on the node: bars and numbers in input order.

    Args:
        values: Scores.
        threshold: Colours pass and fail.
        chosen: 0-based indexes that are marked.
        note: A line above the bars.
    """
    return {
        "rali": [
            {
                "scores": [round(value, 6) if value == value else None for value in values],
                "threshold": threshold,
                "chosen": chosen,
                "note": note,
            }
        ]
    }


def first(values: list[Any] | None, default: Any = None) -> Any:
    """A widget's value where the node takes lists; `default` where nothing is wired."""
    return values[0] if values else default


def indexes_text(indexes: list[int]) -> str:
    """0-based indexes as other packs write them: "2,0,1"."""
    return ",".join(str(index) for index in indexes)
