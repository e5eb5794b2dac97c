"""Choosing by score: rank, best k, at least a threshold. Indexes are 0-based; higher scores are better."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rank(scores: ArrayLike) -> list[int]:
    """Indexes from the best score to the worst; equal scores keep their order, NaN (not scored) is left out.

    Args:
        scores: (N,) scores.

    Examples:
        >>> rank([0.2, 0.9, float("nan"), 0.5])
        [1, 3, 0]
    """
    values = _as_vector(scores)
    order = np.argsort(-values, kind="stable")
    return [int(index) for index in order if not np.isnan(values[index])]


def top_k(scores: ArrayLike, k: int) -> list[int]:
    """Indexes of the `k` best scores, best first; all of them if there are fewer.

    Raises:
        ValueError: `k` is less than 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return rank(scores)[:k]


def at_least(scores: ArrayLike, threshold: float) -> list[int]:
    """Indexes of the scores that reach `threshold`, in the given order; NaN never does."""
    return [int(index) for index in np.flatnonzero(_as_vector(scores) >= threshold)]


def _as_vector(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected a list of scores, got an array of shape {values.shape}")
    return values
