"""One face for whatever scores: a RaliScorer, or any callable from PIL images to numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from PIL import Image

from ..images import to_picture
from ..scorer import RaliScorer

ScoreImages: TypeAlias = Callable[[list[Any]], list[float]]
Scorer: TypeAlias = RaliScorer | Callable[[list[Image.Image]], Sequence[float]]


def make_score_function(scorer: Scorer | None) -> ScoreImages:
    """A function from a list of images (PIL, arrays, tensors) to as many finite scores, higher is better.

    Args:
        scorer: A `RaliScorer`; or a callable that takes a list of PIL images (a reward of `rali_core.rewards`, or
            your own); None for the bundled model.

    Raises:
        TypeError: Not callable.
    """
    if scorer is None:
        scorer = RaliScorer.from_pretrained()
    if isinstance(scorer, RaliScorer):
        rali = scorer
        return lambda images: check_scores([float(score) for score in rali.score(images).scores], len(images))
    if not callable(scorer):
        raise TypeError(f"scorer must be a RaliScorer or a callable on a list of PIL images, got {scorer!r}")
    function = scorer
    return lambda images: check_scores(function([to_pil(image) for image in images]), len(images))


def check_scores(scores: Sequence[float], expected: int) -> list[float]:
    """The scores as floats.

    Raises:
        ValueError: There are more or fewer than `expected`, or one is NaN or infinite.
    """
    values = [float(score) for score in scores]
    if len(values) != expected:
        raise ValueError(f"the scorer gave {len(values)} scores for {expected} images")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"the scorer gave a score that is not finite: {values}")
    return values


def to_pil(image: Any) -> Image.Image:
    """A PIL image as it is; an 8-bit RGB picture of any other image that `RaliScorer.score` takes."""
    return image if isinstance(image, Image.Image) else to_picture(image)
