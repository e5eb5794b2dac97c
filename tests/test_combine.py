from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rali_core.combine import aggregate_scores, combine_scores, normalise_scores

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def test_scores_of_a_batch_are_aggregated() -> None:
    scores = [0.1, 0.2, 0.9]
    found = [aggregate_scores(scores, how) for how in ("mean", "median", "minimum", "maximum")]
    assert found == pytest.approx([0.4, 0.2, 0.1, 0.9])


@pytest.mark.parametrize(
    ("scores", "how", "message"),
    [
        ([], "mean", "expected at least one score"),
        ([0.1, float("nan")], "mean", "an image without a score"),
        ([0.1], "best", "aggregation must be one of mean, median, minimum, maximum, got 'best'"),
    ],
)
def test_there_is_no_aggregate_of_nothing(scores: list[float], how: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate_scores(scores, how)  # type: ignore[arg-type]


@settings(deadline=None)
@given(SCORES)
def test_normalising_keeps_the_order(scores: list[float]) -> None:
    order = np.argsort(scores, kind="stable")
    for how in ("min-max", "z-score", "rank"):
        assert (np.diff(normalise_scores(scores, how)[order]) >= -1e-9).all()


def test_normalised_scales_are_as_documented() -> None:
    scores = [2.0, 4.0, 4.0, float("nan"), 10.0]
    assert normalise_scores(scores, "min-max") == pytest.approx([0, 0.25, 0.25, float("nan"), 1], nan_ok=True)
    assert normalise_scores(scores, "rank") == pytest.approx([0, 0.5, 0.5, float("nan"), 1], nan_ok=True)
    standard = normalise_scores([1.0, 3.0], "z-score")
    assert standard == pytest.approx([-1, 1])


def test_a_scorer_with_equal_scores_has_no_influence() -> None:
    for how in ("min-max", "z-score", "rank"):
        combined = combine_scores([[0.3, 0.3, 0.3], [0.1, 0.9, 0.5]], normalisation=how)
        assert np.argsort(-combined).tolist() == [1, 2, 0]


def test_combinations_have_their_known_values() -> None:
    lists = [[0.2, 0.8], [0.9, 0.5]]
    assert combine_scores(lists, weights=[3, 1]) == pytest.approx([0.375, 0.725])
    assert combine_scores(lists, combination="minimum") == pytest.approx([0.2, 0.5])
    assert combine_scores(lists, combination="geometric mean") == pytest.approx([0.18**0.5, 0.4**0.5])
    assert combine_scores([[0.0], [1.0]], combination="geometric mean") == pytest.approx([0.0])


def test_a_list_of_weight_zero_has_no_influence_not_even_by_its_gaps() -> None:
    lists = [[0.2, 0.8], [float("nan"), 0.0]]
    for combination in ("mean", "minimum", "geometric mean"):
        assert combine_scores(lists, weights=[1, 0], combination=combination) == pytest.approx([0.2, 0.8])
    assert np.isnan(combine_scores(lists)[0])


@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        ([], {}, "expected at least one list of scores"),
        ([[0.1], [0.1, 0.2]], {}, "one score per image, got 1, 2 scores"),
        ([[0.1]], {"weights": [1, 2]}, "expected one weight per list, got 2 weights for 1 lists"),
        ([[0.1]], {"weights": [-1]}, "expected weights of at least 0"),
        ([[0.1]], {"weights": [0]}, "not all of them 0"),
        ([[0.1]], {"combination": "best"}, "combination must be one of mean, minimum, geometric mean, got 'best'"),
        ([[0.1]], {"normalisation": "best"}, "normalisation must be one of none, min-max, z-score, rank, got 'best'"),
        ([[-0.1]], {"combination": "geometric mean"}, "a geometric mean needs scores of at least 0"),
    ],
)
def test_scores_that_cannot_be_combined_are_refused(
    lists: list[list[float]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        combine_scores(lists, **options)  # type: ignore[arg-type]
