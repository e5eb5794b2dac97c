"""Scores of other scorers: range and direction."""

from __future__ import annotations

from math import inf, nan

import pytest

from rali_core.scales import Scale, share_a_scale


def test_lower_is_better_turns_ranking_threshold_and_aggregation() -> None:
    scale = Scale(0.0, 100.0, lower_is_better=True)
    assert [scale.reaches(score, 20.0) for score in (10.0, 20.0, 30.0, nan)] == [True, True, False, False]
    assert scale.upwards([1.0, 5.0]) == [-1.0, -5.0]
    assert scale.aggregate([10.0, 40.0], "minimum") == 40.0
    assert scale.aggregate([10.0, nan], "mean") == 55.0
    assert scale.to_unit([0.0, 25.0, 100.0]) == [1.0, 0.75, 0.0]


def test_ralis_own_scale_changes_nothing() -> None:
    scale = Scale()
    assert scale.upwards([0.25, 0.5]) == scale.to_unit([0.25, 0.5]) == [0.25, 0.5]
    assert scale.aggregate([0.5, nan], "minimum") == 0.0


def test_invalid_scores_and_score_ranges_are_reported() -> None:
    with pytest.raises(ValueError, match=r"scores: 5.4 lies outside 0 to 1, .* set scores_low and scores_high"):
        Scale().to_unit([0.5, 5.4])
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, inf), (nan, 1.0)):
        with pytest.raises(ValueError, match="lowest and the highest score"):
            Scale(low, high)


@pytest.mark.parametrize(
    ("lists", "same"),
    [
        ([[0.2, 0.9], [0.1, nan]], True),
        ([[0.2, 0.9], [-0.3, 0.4]], True),
        ([[5.4, 6.1], [21.0, 19.0]], True),
        ([[0.2, 0.9], [5.4, 6.1]], False),
        ([[0.2], [0.3], [-4.0]], False),
    ],
)
def test_lists_of_different_scales_are_distinguished(lists: list[list[float]], same: bool) -> None:
    assert share_a_scale(lists) is same
