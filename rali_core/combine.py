"""Combines several scores into one: of the images of a batch, or of different scorers of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Aggregation = Literal["mean", "median", "minimum", "maximum"]
Normalisation = Literal["none", "min-max", "z-score", "rank"]
Combination = Literal["mean", "minimum", "geometric mean"]


def aggregate_scores(scores: ArrayLike, how: Aggregation = "mean") -> float:
    """One number for a batch.

    Args:
        scores: (N,) scores, higher is better.
        how: `"minimum"` is the worst image, `"maximum"` the best.

    Raises:
        ValueError: There is no score, one of them is NaN, or `how` is unknown.

    Examples:
        >>> aggregate_scores([0.2, 0.4, 0.9], "median")
        0.4
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected at least one score, got an array of shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError("the scores include an image without a score (NaN): there is no aggregate")
    if how not in get_args(Aggregation):
        raise ValueError(f"aggregation must be one of {', '.join(get_args(Aggregation))}, got {how!r}")
    # Quantiles 0, 0.5 and 1 are the minimum, the median and the maximum.
    quantile = {"minimum": 0.0, "median": 0.5, "maximum": 1.0}.get(how)
    return float(values.mean() if quantile is None else np.quantile(values, quantile))


def normalise_scores(scores: ArrayLike, how: Normalisation) -> NDArray[np.float64]:
    """Normalise one scorer's scores of one batch to a scale that is comparable with another's.

    Args:
        scores: (N,) scores, higher is better; NaN stays NaN and does not count.
        how: `"none"`; `"min-max"`, worst 0 and best 1; `"z-score"`, mean 0 and deviation 1; `"rank"`, worst 0 and
            best 1 in even steps, equal scores share their mean rank.

    Returns:
        (N,). All but `"none"` compare within this batch: the numbers are no longer absolute. Where all scores are
        equal they become 0.5 (z-score: 0), so that such a scorer has no influence.

    Raises:
        ValueError: `how` is unknown.

    Examples:
        >>> normalise_scores([3.0, 9.0, 5.0], "rank").tolist()
        [0.0, 1.0, 0.5]
    """
    if how not in get_args(Normalisation):
        raise ValueError(f"normalisation must be one of {', '.join(get_args(Normalisation))}, got {how!r}")
    values = np.asarray(scores, dtype=np.float64)
    known = ~np.isnan(values)
    result: NDArray[np.float64] = values.copy()
    if how == "none" or not known.any():
        return result
    present = values[known]
    if how == "rank":
        ordered = np.sort(present)
        mean_rank = (np.searchsorted(ordered, present, "left") + np.searchsorted(ordered, present, "right") - 1) / 2
        result[known] = mean_rank / (len(present) - 1) if len(present) > 1 else 0.5
        return result
    spread = float(np.ptp(present)) if how == "min-max" else float(present.std())
    flat = spread <= 1e-12 * max(1.0, float(np.abs(present).max()))
    if how == "min-max":
        result[known] = 0.5 if flat else (present - present.min()) / spread
    else:
        result[known] = 0.0 if flat else (present - present.mean()) / spread
    return result


def combine_scores(
    lists: Sequence[ArrayLike],
    *,
    weights: Sequence[float] | None = None,
    normalisation: Normalisation = "none",
    combination: Combination = "mean",
) -> NDArray[np.float64]:
    """Combine several scorers' scores of the same images; two that disagree are harder to fool than one.

    Args:
        lists: M lists of N scores each, higher is better.
        weights: M weights of at least 0; by default 1 each. A list of weight 0 has no influence.
        normalisation: How each list is normalised first, see `normalise_scores`.
        combination: `"mean"`, weighted; `"minimum"`, an image is as good as its worst score, weights only switch
            lists off; `"geometric mean"`, weighted, needs scores of at least 0.

    Returns:
        (N,) combined scores, NaN where one of the scores is.

    Raises:
        ValueError: No list, lengths differ, a weight is negative or not finite, all weights are 0, a negative score
            in a geometric mean, or an unknown choice.

    Examples:
        >>> combine_scores([[0.2, 0.8], [0.6, 0.4]], weights=[3, 1]).round(6).tolist()
        [0.3, 0.7]
    """
    if combination not in get_args(Combination):
        raise ValueError(f"combination must be one of {', '.join(get_args(Combination))}, got {combination!r}")
    arrays = [np.asarray(scores, dtype=np.float64) for scores in lists]
    if not arrays:
        raise ValueError("expected at least one list of scores")
    if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 1:
        raise ValueError(
            f"expected lists of equal length, one score per image, got {', '.join(str(a.size) for a in arrays)} scores"
        )
    factors = np.asarray([1.0] * len(arrays) if weights is None else list(weights), dtype=np.float64)
    if factors.shape != (len(arrays),):
        raise ValueError(f"expected one weight per list, got {len(factors)} weights for {len(arrays)} lists")
    if not np.isfinite(factors).all() or (factors < 0).any() or not factors.any():
        raise ValueError(f"expected weights of at least 0, not all of them 0, got {factors.tolist()}")
    used = factors > 0
    stacked = np.stack([normalise_scores(array, normalisation) for array in arrays])[used]
    factors = factors[used] / factors[used].sum()
    if combination == "minimum":
        lowest: NDArray[np.float64] = stacked.min(axis=0)
        return lowest
    if combination == "mean":
        mean: NDArray[np.float64] = factors @ stacked
        return mean
    if (stacked < 0).any():
        raise ValueError("a geometric mean needs scores of at least 0; z-scores are not: use the mean or the minimum")
    with np.errstate(divide="ignore"):  # log 0 = -inf, and exp brings it back to 0
        geometric: NDArray[np.float64] = np.exp(factors @ np.log(stacked))
    return geometric
