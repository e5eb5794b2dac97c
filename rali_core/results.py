"""Results of a scorer: the score of one image, and the scores of several."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .attributes import ImageAttributes as ImageAttributes
from .content import NO_CONTENT
from .selection import rank


@dataclass(frozen=True)
class ImageScore:
    """One image's score.

    Attributes:
        index: 0-based position in the input.
        score: In the model's range, by default 0..1, higher is better; NaN if `error` is set.
        band: bad, poor, fair, good or excellent; empty without a score.
        percentile: Percentage of the model's reference images that score lower; NaN without calibration.
        error: Why the image has no score, or None.
        reason: `"no content"` if the image is blank and the score not the model's, see `content`; else None.
        attributes: What is wrong with the image, if it was asked for; None without a score of the model's.
    """

    index: int
    score: float
    band: str
    percentile: float
    error: str | None = None
    reason: str | None = None
    attributes: ImageAttributes | None = None


@dataclass(frozen=True)
class ScoreResult:
    """The scores of several images, in input order.

    Attributes:
        scores: (N,) float32 in the model's range, by default 0..1, higher is better; NaN for an image with an error.
        bands: N names: bad, poor, fair, good, excellent; empty for an image with an error.
        percentiles: (N,) float32, 0..100; NaN if the model file has no calibration.
        errors: N texts, None for each image that was scored.
        stopped: True if the progress callback ended the run; N then counts only what was done.
        reasons: N texts; `"no content"` if the image is blank and the score not the model's (see `content`), None for
            all others.
        attributes: What is wrong with each image, if it was asked for, else empty; None for images without a score of
            the model's.
    """

    scores: NDArray[np.float32]
    bands: tuple[str, ...]
    percentiles: NDArray[np.float32]
    errors: tuple[str | None, ...]
    stopped: bool = False
    reasons: tuple[str | None, ...] = ()
    attributes: tuple[ImageAttributes | None, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def ranking(self) -> list[int]:
        """0-based indexes of the scored images, best first; images without content come after all others."""
        order = rank(self.scores)
        return sorted(order, key=lambda index: bool(self.reasons) and self.reasons[index] == NO_CONTENT)
