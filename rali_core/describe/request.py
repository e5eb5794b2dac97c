"""What a source of descriptions gets, gives and must be able to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..images import to_pil_image


@dataclass(frozen=True)
class DescriptionRequest:
    """One image to describe, and what is known about it.

    Attributes:
        image: Its name in the description file.
        source: A file, a PIL image, or a function that returns the PIL image; for worker processes one
            that can be pickled, such as `functools.partial` of a function of a module.
        score: Human score in [0, 1], 1 is best; None without one.
        distortion: Type of a known synthetic distortion, as `rali_core.training.distortions` names it.
        level: Its level, 1 (weakest) to 5; 0 without a distortion.

    Raises:
        ValueError: A score or level that is out of range, or a level without a distortion.
    """

    image: str
    source: Path | Image.Image | Callable[[], Image.Image]
    score: float | None = None
    distortion: str | None = None
    level: int = 0

    def __post_init__(self) -> None:
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"{self.image}: score must lie in [0, 1], or be None, got {self.score}")
        if self.level not in ((0,) if self.distortion is None else range(1, 6)):
            wanted = "be 0 without a distortion" if self.distortion is None else "lie in 1..5 with a distortion"
            raise ValueError(f"{self.image}: level must {wanted}, got {self.level} for {self.distortion!r}")

    def open(self) -> Image.Image:
        """The image as 8-bit RGB, upright, transparency on white.

        Raises:
            FileNotFoundError, ImageError: There is no such file, or it cannot be read.
        """
        return to_pil_image(self.source() if callable(self.source) else self.source)


@dataclass(frozen=True)
class Description:
    """A description of an image's quality, and a score in [0, 1], 1 is best: the source's or the request's."""

    text: str
    score: float | None


class DescriptionError(ValueError):
    """A source could not describe an image; `outputs` are a model's outputs, one string for each attempt."""

    def __init__(self, message: str, *, outputs: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.outputs = outputs


class Describer(Protocol):
    """A source of quality descriptions."""

    @property
    def source(self) -> str:
        """Name of the source with the settings that change its texts; files of different sources are not mixed."""

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        """Describe the quality of one image.

        Args:
            request: The image and what is known about it; a source uses what it can.
            seed: Different seeds give different descriptions; the same seed gives the same one.

        Raises:
            DescriptionError: There is no usable description.
            FileNotFoundError, ImageError: See `DescriptionRequest.open`.
        """
