"""Scales of other scorers: their range, and whether higher or lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from .combine import Aggregation, aggregate_scores

UNIT_SLACK = 1.0
"""Scores in -1..1 count as one scale with those in 0..1: similarities, z-scores of a reward."""


@dataclass(frozen=True)
class Scale:
    """The scale of a scorer's numbers.

    Attributes:
        low: Lowest score that it gives.
        high: Highest score that it gives.
        lower_is_better: Whether lower scores are better, as with NIQE, BRISQUE or LPIPS.

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
        """The scores, negated if lower is better: for ranking."""
        return [-score if self.lower_is_better else score for score in scores]

    def reaches(self, score: float, threshold: float) -> bool:
        """Whether a score is at least as good as the threshold; NaN never is."""
        return score <= threshold if self.lower_is_better else score >= threshold

    def to_unit(self, scores: Sequence[float]) -> list[float]:
        """The scores mapped to 0 (worst) to 1 (best); NaN stays NaN.

        Raises:
            ValueError: A score is outside the range.
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
        """Aggregate scores; the minimum is the worst of them, and NaN counts as the worst score of the scale."""
        worst = self.high if self.lower_is_better else self.low
        number = aggregate_scores(self.upwards([worst if isnan(score) else score for score in scores]), how)
        return self.upwards([number])[0]


def share_a_scale(lists: Sequence[Sequence[float]]) -> bool:
    """Whether several scorers' scores seem to share a scale: all within -1 to 1, or none of them.

    Args:
        lists: Each scorer's scores; NaN is ignored.
    """
    small = [all(abs(score) <= UNIT_SLACK for score in scores if not isnan(score)) for scores in lists]
    return all(small) or not any(small)
