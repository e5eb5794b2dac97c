from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rali_core.calibration import Calibration, Population
from rali_core.selection import at_least, rank, top_k

SCORES = st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=30)


@settings(deadline=None)
@given(SCORES)
def test_ranking_is_stable_best_first_and_leaves_out_what_has_no_score(scores: list[float]) -> None:
    numbered = [(index, score) for index, score in enumerate(scores) if score == score]
    assert rank(scores) == [index for index, _ in sorted(numbered, key=lambda item: -item[1])]


@settings(deadline=None)
@given(SCORES, st.integers(1, 40))
def test_top_k_is_the_start_of_the_ranking(scores: list[float], k: int) -> None:
    assert top_k(scores, k) == rank(scores)[:k]


def test_a_threshold_includes_scores_that_equal_it() -> None:
    assert at_least([0.2, 0.5, float("nan"), 0.7], 0.5) == [1, 3]


def test_invalid_selections_are_refused() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_k([0.1], 0)
    with pytest.raises(ValueError, match=r"expected a list of scores, got an array of shape \(1, 1\)"):
        rank([[0.1]])


def test_percentiles_are_the_share_of_reference_images_that_score_lower() -> None:
    reference = np.linspace(0.0, 1.0, 1001)
    calibration = Calibration.from_scores({"made up": (reference, "made up")})
    assert calibration.percentiles([0.25, 0.5, -1.0, 2.0]) == pytest.approx([25.0, 50.0, 0.0, 100.0], abs=0.2)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=200), st.lists(st.floats(-1, 2), min_size=2, max_size=20))
def test_percentiles_rise_with_the_score(reference: list[float], scores: list[float]) -> None:
    percentiles = Calibration.from_scores({"made up": (reference, "made up")}).percentiles(sorted(scores))
    assert (np.diff(percentiles) >= -1e-4).all()  # interpolation rounds
    assert ((percentiles >= 0) & (percentiles <= 100)).all()


def test_bands_are_the_five_equal_parts_of_the_scale_and_include_their_lower_limit() -> None:
    calibration = Calibration.from_scores({"made up": ([0.0, 1.0], "made up")})
    assert calibration.bands([0.0, 0.19, 0.2, 0.4, 0.6, 0.8, 1.0]) == (
        "bad", "bad", "poor", "fair", "good", "excellent", "excellent",
    )  # fmt: skip


def two_populations() -> Calibration:
    return Calibration.from_scores({
        "photographs": (np.linspace(0, 1, 101), "made up"), "generated images": (np.linspace(0.5, 1, 101), "made up too"),
    })  # fmt: skip


def test_percentiles_are_given_among_each_kind_of_image() -> None:
    calibration = two_populations()
    assert calibration.percentiles([0.75]) == pytest.approx([75], abs=0.1)
    assert calibration.percentiles([0.75], "generated images") == pytest.approx([50], abs=0.1)
    assert calibration.describe(0.75) == "better than 75 % of photographs, 50 % of generated images"
    assert calibration.reference == "photographs: made up; generated images: made up too"
    assert Calibration().describe(0.5) == ""
    with pytest.raises(ValueError, match="no population 'paintings'; there are: photographs, generated images"):
        calibration.percentiles([0.5], "paintings")


def test_a_calibration_survives_the_way_through_json() -> None:
    assert Calibration.from_dict(two_populations().to_dict()) == two_populations()
    old = {
        "quantiles": np.linspace(0, 1, 101).tolist(),
        "reference": "1000 photographs",
        "band_thresholds": [0.2, 0.4, 0.6, 0.8],
    }
    assert Calibration.from_dict(old).reference == "reference images: 1000 photographs", "a file of version 0.1"
    assert Calibration.from_dict({**old, "quantiles": None}).populations == ()


def test_unusable_calibrations_are_refused() -> None:
    with pytest.raises(ValueError, match="quantiles must be 101 ascending finite numbers"):
        Population("a", "x", (0.1, 0.2))
    with pytest.raises(ValueError, match="quantiles must be 101 ascending finite numbers"):
        Population("a", "x", tuple(np.linspace(1, 0, 101)))
    with pytest.raises(ValueError, match="band_thresholds must be 4 ascending"):
        Calibration(band_thresholds=(0.2, 0.1, 0.6, 0.8))
    with pytest.raises(ValueError, match="each population needs its own name"):
        Calibration(two_populations().populations[:1] * 2)
    with pytest.raises(ValueError, match="expected the keys"):
        Calibration.from_dict({"quantiles": []})
    with pytest.raises(ValueError, match="must be a list of name, reference and quantiles"):
        Calibration.from_dict({"populations": [{}], "band_thresholds": [0.2, 0.4, 0.6, 0.8]})
