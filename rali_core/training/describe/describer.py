"""What all sources of descriptions have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from ...images import load_image


@dataclass(frozen=True)
class Description:
    """One description.

    Attributes:
        text: What is said about the image's quality.
        score: In [0, 1], 1 is best: the source's own, or the one that it was told; None without either.
    """

    text: str
    score: float | None


class DescriptionError(ValueError):
    """A source could not describe an image.

    Attributes:
        outputs: What a model wrote instead, one string for each attempt.
    """

    def __init__(self, message: str, *, outputs: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.outputs = outputs


class Describer(Protocol):
    """A source of quality descriptions."""

    @property
    def source(self) -> str:
        """Name of the source and of what makes its texts differ; files of different sources are not mixed."""

    def describe(
        self,
        image: Path | Image.Image,
        *,
        score: float | None = None,
        distortion: str | None = None,
        level: int = 0,
        seed: int = 0,
    ) -> Description:
        """Describe the quality of one image.

        Args:
            image: A file or a PIL image.
            score: Human score in [0, 1] where there is one.
            distortion: Type of a known synthetic distortion; sources that read the image only ignore it.
            level: Its level, 1 to 5; 0 without a distortion.
            seed: Different seeds give different descriptions; the same seed gives the same one.

        Raises:
            DescriptionError: No description came out.
            FileNotFoundError: There is no such file.
            ImageError: It cannot be read.
        """


def open_image(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright, transparency on white.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It is not an image that can be read.
    """
    pixels = load_image(path)
    return Image.fromarray((pixels * 255.0).round().byte().permute(1, 2, 0).numpy())
