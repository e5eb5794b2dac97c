"""One adapter for all scorers: a RaliScorer, or any callable from PIL images to numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from PIL import Image

from ..content import has_content
from ..images import to_pil_image, to_pixels
from ..scorer import RaliScorer

Scorer: TypeAlias = RaliScorer | Callable[[list[Image.Image]], Sequence[float]]


class ScoreFunction:
    """From a list of images (PIL, arrays, tensors) to as many scores, higher is better.

    An image that cannot be scored gets NaN and affects no other.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def __call__(self, images: list[Any]) -> list[float]:
        """The scores alone."""
        return self.with_words(images)[0]

    def with_words(self, images: list[Any]) -> tuple[list[float], list[tuple[str, ...]]]:
        """Scores, and what is wrong with each image; without words if the scorer does not tell attributes."""
        nothing: list[tuple[str, ...]] = [()] * len(images)
        if not isinstance(self._scorer, RaliScorer):
            return check_scores(self._scorer([to_pil(image) for image in images]), len(images)), nothing
        result = self._scorer.score(images, on_error="record")
        words = [each.words if each else () for each in result.attributes] or nothing
        return check_scores(result.scores, len(images)), words


def make_score_function(scorer: Scorer | None) -> ScoreFunction:
    """One interface for all scorers.

    Args:
        scorer: A `RaliScorer`; or a callable that takes a list of PIL images (a reward of `rali_core.rewards`, or
            your own); None for the bundled model.

    Raises:
        TypeError: Not callable.
    """
    if scorer is None:
        scorer = RaliScorer.from_pretrained()
    if not isinstance(scorer, RaliScorer) and not callable(scorer):
        raise TypeError(f"scorer must be a RaliScorer or a callable on a list of PIL images, got {scorer!r}")
    return ScoreFunction(scorer)


def check_scores(scores: Iterable[float], expected: int) -> list[float]:
    """The scores as floats; NaN for those that are not finite.

    Raises:
        ValueError: There are more or fewer than `expected`.
    """
    values = [float(score) for score in scores]
    if len(values) != expected:
        raise ValueError(f"the scorer gave {len(values)} scores for {expected} images")
    return [value if math.isfinite(value) else math.nan for value in values]


def shows_content(image: Any) -> bool:
    """Whether a finished image has content, see `rali_core.content`; False for NaN pixels too."""
    if not isinstance(image, Image.Image):
        values = torch.as_tensor(image)
        if values.is_floating_point() and not torch.isfinite(values).all():
            return False
    return has_content(to_pixels(image))


def frames_of(image: Any, count: int) -> list[Any]:
    """At most `count` frames, spread evenly, of a video: a list of images, or an array or tensor with one more axis.

    An image counts as one frame.
    """
    if not isinstance(image, list | tuple) and getattr(image, "ndim", 0) != 4:
        return [image]
    places = range(len(image)) if len(image) <= count else [place * len(image) // count for place in range(count)]
    return [image[place] for place in places]


def to_pil(image: Any) -> Image.Image:
    """Any image that `RaliScorer.score` takes as 8-bit RGB, NaN pixels as black; PIL images unchanged."""
    if isinstance(image, Image.Image):
        return image
    values = torch.as_tensor(image)
    if values.is_floating_point():
        values = torch.nan_to_num(values.float(), nan=0.0, posinf=1.0, neginf=0.0)
    return to_pil_image(values if isinstance(image, torch.Tensor) else values.numpy())
