"""The `measured` source: descriptions of what was measured on the image itself; no other model is needed."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .describer import Description, open_image
from .measurements import Measurements, measure_image
from .sentences import describe_image

__all__ = ["MeasuredDescriber", "Measurements", "describe_image", "measure_image"]


class MeasuredDescriber:
    """Measures an image and says what was measured, with the quality word of the score where one is given.

    Example:
        >>> from skimage import data
        >>> describer = MeasuredDescriber()
        >>> description = describer.describe(Image.fromarray(data.astronaut()), score=0.9, seed=1)
        >>> "excellent" in description.text
        True
    """

    source = "measured"

    def __init__(self) -> None:
        self._last: tuple[Path, Measurements] | None = None

    def describe(
        self,
        image: Path | Image.Image,
        *,
        score: float | None = None,
        distortion: str | None = None,
        level: int = 0,
        seed: int = 0,
    ) -> Description:
        """See `Describer.describe`; the description's score is the one that was given."""
        text = describe_image(self._measure(image), score=score, distortion=distortion, level=level, seed=seed)
        return Description(text, score)

    def _measure(self, image: Path | Image.Image) -> Measurements:
        if isinstance(image, Image.Image):
            return measure_image(image)
        if self._last is None or self._last[0] != image:  # the seeds of one file come one after the other
            self._last = (image, measure_image(open_image(image)))
        return self._last[1]
