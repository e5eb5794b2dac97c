"""Explains a score by its prototypes, and by the parts of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .attributes import ImageAttributes
from .lazy import renamed_attribute
from .preprocess import View


@dataclass(frozen=True)
class PrototypeShare:
    """One prototype's contribution to a score.

    Attributes:
        prototype: 0-based index of the prototype; -1 for all that are not listed individually.
        weight: Its softmax weight; the weights of all shares sum to 1.
        score: Its own score (for -1: the weighted mean of theirs).
        contribution: weight * score; the contributions of all shares sum to the image's score.
    """

    prototype: int
    weight: float
    score: float
    contribution: float

    part = renamed_attribute("part", "contribution")


@dataclass(frozen=True)
class ViewScore:
    """What a part of an image adds to its score.

    Attributes:
        view: Where it lies.
        score: Its own score.
        share: What it counts for; the shares of all parts sum to 1.
        attributes: What is wrong with it; None for a model without probes.
    """

    view: View
    score: float
    share: float
    attributes: ImageAttributes | None = None


def share_score(weights: NDArray[np.float64], scores: NDArray[np.float64], *, top: int) -> tuple[PrototypeShare, ...]:
    """Split a score among its prototypes.

    Args:
        weights: (K,) softmax weights of an image, summing to 1.
        scores: (K,) scores of the prototypes.
        top: How many prototypes to list individually, by weight.

    Returns:
        `top` shares, heaviest first, and one with `prototype=-1` for all others, if there are any.

    Raises:
        ValueError: `top` is less than 1.

    Examples:
        >>> share_score(np.array([0.25, 0.75]), np.array([0.4, 0.8]), top=1)[0].prototype
        1
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    order = np.argsort(-weights, kind="stable")
    shares = [
        PrototypeShare(int(i), float(weights[i]), float(scores[i]), float(weights[i] * scores[i])) for i in order[:top]
    ]
    rest = order[top:]
    if len(rest):
        weight, contribution = float(weights[rest].sum()), float(weights[rest] @ scores[rest])
        mean = contribution / weight if weight > 0 else float("nan")
        shares.append(PrototypeShare(-1, weight, mean, contribution))
    return tuple(shares)
