"""Best of N where everybody can see which images are better: one photograph, blurred as the seed has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core import RaliScorer
from rali_core.diffusers_hook import SuccessiveHalving, best_of_n
from rali_core.images import pixels_from_pil

CALL: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 20, "guidance_scale": 1.0}
SEEDS = range(12)


@pytest.fixture(scope="module")
def graded(load_example: Callable[[str], Any]) -> Any:
    pytest.importorskip("skimage")
    return load_example("graded_pipeline")


@pytest.fixture(scope="module")
def pipe(graded: Any) -> Any:
    return graded.graded_pipeline()


@pytest.fixture(scope="module")
def levels_of(graded: Any, photographs: dict[str, Image.Image]) -> Callable[[list[Image.Image]], list[int]]:
    """The blur level of each image that the pipeline made; 0 is the photograph itself."""
    pixels = graded.graded_pixels(photographs["cat"])

    def find(images: list[Image.Image]) -> list[int]:
        distances = [(pixels_from_pil(image) - pixels).abs().mean(dim=(1, 2, 3)) for image in images]
        assert max(float(distance.min()) for distance in distances) < 0.005
        return [int(distance.argmin()) for distance in distances]

    return find


@pytest.fixture(scope="module")
def levels(pipe: Any, levels_of: Any, alone: Any) -> dict[int, int]:
    """Of each seed's image, made without best_of_n."""
    return dict(zip(SEEDS, levels_of([alone(pipe, seed, **CALL) for seed in SEEDS]), strict=True))


def sharpness(images: list[Image.Image]) -> list[float]:
    """Mean difference of neighbouring pixels: falls with each level of blur."""
    arrays = [np.asarray(image, dtype=np.float64) for image in images]
    return [float(np.abs(np.diff(array, axis=0)).mean() + np.abs(np.diff(array, axis=1)).mean()) for array in arrays]


def test_quality_truly_differs_between_the_seeds(levels: dict[int, int], graded: Any) -> None:
    assert max(levels.values()) - min(levels.values()) > len(graded.BLUR) // 2
    assert len(set(levels.values())) > len(SEEDS) // 2


def test_the_autoencoder_shows_a_level_as_it_is(pipe: Any, graded: Any, photographs: dict[str, Image.Image]) -> None:
    pixels = graded.graded_pixels(photographs["cat"])[[0, 20]]
    clean = pipe.unet.clean[[0, 20]].view_as(pixels)
    with torch.no_grad():
        decoded = pipe.vae.decode(clean / pipe.vae.config.scaling_factor).sample
    assert torch.allclose(decoded / 2 + 0.5, pixels, atol=1e-5)


def test_the_sharpest_image_wins_and_its_seed_alone_makes_it_again(
    pipe: Any, levels: dict[int, int], levels_of: Any, alone: Any
) -> None:
    result = best_of_n(pipe, n=len(SEEDS), keep=3, scorer=sharpness, **CALL)
    assert levels_of(list(result.images)) == sorted(levels.values())[:3]
    assert [levels[seed] for seed in result.seeds] == sorted(levels.values())[:3]
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(alone(pipe, result.seeds[0], **CALL)))


def test_the_bundled_model_picks_among_the_sharpest_and_leaves_the_most_blurred_last(
    pipe: Any, levels: dict[int, int], bundled_scorer: RaliScorer
) -> None:
    result = best_of_n(pipe, n=len(SEEDS), keep=len(SEEDS), scorer=bundled_scorer, **CALL)
    order = [levels[seed] for seed in result.seeds]
    assert order[0] in sorted(order)[:3]
    assert np.mean(order[:4]) < np.mean(order[4:8]) < np.mean(order[8:])


def test_pruning_sixteen_uses_less_than_half_of_the_denoiser_and_finds_the_best(
    pipe: Any, levels_of: Any, alone: Any
) -> None:
    calls: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    result = best_of_n(pipe, n=16, scorer=sharpness, prune=SuccessiveHalving(), **CALL)
    hook.remove()
    # 16 to step 4, 8 to step 8, 4 to step 12, 2 to step 20
    assert sum(calls) == result.report.denoiser_calls == 16 * 4 + 8 * 4 + 4 * 4 + 2 * 8
    assert result.report.full_denoiser_calls == 16 * 20
    known = sorted(levels_of([alone(pipe, seed, **CALL) for seed in range(16)]))
    assert levels_of(list(result.images))[0] in known[:2]


@pytest.mark.slow
def test_in_fifty_trials_pruning_halves_the_cost_and_keeps_one_of_the_best_two(graded: Any, alone: Any) -> None:
    pipe = graded.graded_pipeline(size=96)
    call = {**CALL, "num_inference_steps": 10}
    good = 0
    for trial in range(50):
        seeds = list(range(trial * 16, trial * 16 + 16))
        finals = sorted(sharpness([alone(pipe, seed, **call) for seed in seeds]))
        result = best_of_n(pipe, n=16, seeds=seeds, scorer=sharpness, prune=SuccessiveHalving(), **call)
        assert result.report.full_denoiser_calls == 160
        assert result.report.denoiser_calls is not None
        assert result.report.denoiser_calls <= 80
        good += result.scores[0] >= finals[-2]
    print(f"{good} of 50 trials")
    assert good >= 45
