"""Scores of other scorers: their range, and which end of it is the better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from .combine import Aggregation, aggregate_scores

UNIT_SLACK = 1.0
"""Scores between -1 and 1 are taken for one scale with those between 0 and 1: similarities, z-scores of a reward."""


@dataclass(frozen=True)
class Scale:
    """What a scorer's numbers mean.

    Attributes:
        low: Lowest score that it gives.
        high: Highest.
        lower_is_better: Whether `low` is the best of them, as with NIQE, BRISQUE or LPIPS.

    Raises:
        ValueError: `low` is not less than `high`, or one is not finite.

    Example:
        >>> scale = Scale(0.0, 10.0, lower_is_better=True)
        >>> scale.reaches(2.5, 3.0), scale.to_unit([2.5, 10.0])
        (True, [0.75, 0.0])
    """

    low: float = 0.0
    high: float = 1.0
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"scores_low and scores_high: expected the lowest and the highest score that the scorer gives, got "
                f"{self.low:g} and {self.high:g}"
            )

    def upwards(self, scores: Sequence[float]) -> list[float]:
        """The scores, or their negatives, so that higher is better: for ranking."""
        return [-score if self.lower_is_better else score for score in scores]

    def reaches(self, score: float, threshold: float) -> bool:
        """Whether a score is at least as good as the threshold; NaN never is."""
        return score <= threshold if self.lower_is_better else score >= threshold

    def to_unit(self, scores: Sequence[float]) -> list[float]:
        """The scores mapped to 0 (worst) to 1 (best); NaN stays NaN.

        Raises:
            ValueError: One lies outside the range.
        """
        outside = [score for score in scores if not isnan(score) and not self.low <= score <= self.high]
        if outside:
            raise ValueError(
                f"scores: {outside[0]:g} lies outside {self.low:g} to {self.high:g}, so it cannot be averaged with "
                "RALI's, which lie in 0 to 1: set scores_low and scores_high to the range that the other scorer gives"
            )
        shares = [(score - self.low) / (self.high - self.low) for score in scores]
        return [1.0 - share if self.lower_is_better else share for share in shares]

    def aggregate(self, scores: Sequence[float], how: Aggregation) -> float:
        """One number for several: the minimum is the worst of them; NaN counts as the worst that the scorer gives."""
        worst = self.high if self.lower_is_better else self.low
        number = aggregate_scores(self.upwards([worst if isnan(score) else score for score in scores]), how)
        return self.upwards([number])[0]


def share_a_scale(lists: Sequence[Sequence[float]]) -> bool:
    """Whether several scorers' scores look as if they had one scale: all within -1 to 1, or none of them.

    Args:
        lists: Each scorer's scores; NaN does not count.
    """
    small = [all(abs(score) <= UNIT_SLACK for score in scores if not isnan(score)) for scores in lists]
    return all(small) or not any(small)
