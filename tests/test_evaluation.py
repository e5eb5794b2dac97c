from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from rali_core.evaluation import draw_scatter, measure_agreement, srcc_within_groups


def test_the_figures_are_those_of_scipy_and_the_intervals_hold_them() -> None:
    random = np.random.default_rng(0)
    human = random.random(200)
    predicted = human + random.normal(0, 0.1, 200)
    agreement = measure_agreement(predicted, human, resamples=300)
    assert agreement.srcc == pytest.approx(stats.spearmanr(predicted, human)[0])
    assert agreement.plcc == pytest.approx(np.corrcoef(predicted, human)[0, 1])
    assert agreement.krcc == pytest.approx(stats.kendalltau(predicted, human)[0])
    assert agreement.mae == pytest.approx(np.abs(predicted - human).mean())
    for name, (low, high) in agreement.intervals.items():
        assert low < getattr(agreement, name) < high
        assert high - low < 0.2
    assert measure_agreement(predicted, human, resamples=300) == agreement


@pytest.mark.parametrize(
    ("predicted", "human", "message"),
    [
        ([0.1, 0.2], [0.1, 0.2], "at least three images, got 2"),
        ([0.1, 0.2, 0.3], [0.1, 0.2], "two lists of one length"),
        ([0.1, float("nan"), 0.3], [0.1, 0.2, 0.3], "NaN or infinite"),
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], "a correlation is not defined"),
    ],
)
def test_figures_that_would_mean_nothing_are_refused(predicted: list[float], human: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_agreement(predicted, human)


def test_correlations_within_groups_do_not_see_the_difference_between_them() -> None:
    predicted = [0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.5, 0.5]
    human = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9, 0.4, 0.6]
    groups = ["a"] * 3 + ["b"] * 3 + ["c"] * 2
    assert srcc_within_groups(predicted, human, groups) == pytest.approx({"a": 1.0, "b": -1.0})
    assert measure_agreement(predicted, human).srcc > 0.8
    with pytest.raises(ValueError, match="lists of one length, got 8, 8 and 7"):
        srcc_within_groups(predicted, human, groups[:-1])


def test_a_scatter_plot_shows_its_points(tmp_path: Path) -> None:
    human = np.linspace(0, 1, 50)
    draw_scatter(human, human, measure_agreement(human, human), tmp_path / "plot.png", title="perfect")
    with Image.open(tmp_path / "plot.png") as image:
        blue = np.asarray(image.convert("RGB"), dtype=int)
    assert ((blue[..., 2] - blue[..., 0]) > 40).sum() > 500
