"""Blank images never win, and one fault costs its own candidate only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.diffusers_hook import SuccessiveHalving, best_of_n

PRUNES = [None, SuccessiveHalving(at=(0.5,))]


def bright(images: list[Image.Image]) -> list[float]:
    """A scorer that likes a blank white or black image best of all."""
    return [100.0 - float(np.asarray(image, dtype=np.float64).std()) for image in images]


@pytest.mark.parametrize("prune", PRUNES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_seeds_whose_latents_are_not_finite_have_no_content(
    prune: Any, batch_size: int, tiny: Any, arguments: Any
) -> None:
    pipe = tiny.tiny_sd15()
    unet = pipe.unet
    forward = unet.forward

    def overflow(sample: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(sample, *args, **kwargs)[0].clone()
        for index in range(len(sample)):
            # the samples of seeds 1 and 2 overflow, wherever in the batch they stand
            if any(torch.equal(sample[index], noise) for noise in noises):
                output[index] = float("nan")
        return (output,)

    noises = [
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))[0] * pipe.scheduler.init_noise_sigma
        for seed in (1, 2)
    ]
    unet.forward = overflow
    result = best_of_n(
        pipe, n=4, keep=4, batch_size=batch_size, scorer=bright, prune=prune, exact=False, **arguments("sd15")
    )
    assert set(result.seeds) <= {0, 3}
    outcomes = {candidate.seed: candidate.outcome for candidate in result.report.candidates}
    assert {outcomes[1], outcomes[2]} <= {"no_content", "pruned"}
    flawed = [candidate for candidate in result.report.candidates if candidate.outcome == "no_content"]
    assert all("no content: its latents hold NaN or infinite values" in str(candidate.reason) for candidate in flawed)
    assert all(candidate.score is None for candidate in flawed)


@pytest.mark.parametrize("prune", PRUNES)
def test_where_all_latents_are_nan_the_error_says_so(prune: Any, tiny: Any, arguments: Any, contrast: Any) -> None:
    pipe = tiny.tiny_sd15()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"none of the 2 candidates .*no content.*NaN or infinite.*bfloat16"):
        best_of_n(pipe, n=2, scorer=contrast, prune=prune, **arguments("sd15"))


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
@pytest.mark.parametrize("value", [-1.0, 1.0, 0.1, float("nan")])
def test_a_blank_image_is_never_chosen_while_another_exists(value: float, kind: str, tiny: Any, arguments: Any) -> None:
    pipe = tiny.tiny_sd15()
    decode, calls = pipe.vae.decode, 0

    def blank(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        decoded = decode(*args, **kwargs)[0]
        return (torch.full_like(decoded, value) if calls in (1, 3) else decoded,)

    pipe.vae.decode = blank
    with np.errstate(all="ignore"):  # diffusers casts NaN to 8 bits
        call = arguments("sd15", num_inference_steps=1, output_type=kind)
        result = best_of_n(pipe, n=4, keep=4, scorer=bright, **call)
    assert sorted(result.seeds) == [1, 3]
    assert [candidate.outcome for candidate in result.report.candidates] == ["no_content", "kept"] * 2
    assert result.report.candidates[0].reason == "no content: the image is blank"


def test_a_score_that_is_not_finite_costs_its_image_only(sd15: Any, arguments: Any, contrast: Any) -> None:
    result = best_of_n(
        sd15, n=3, keep=3, batch_size=3, exact=False,
        scorer=lambda images: [float("nan"), *contrast(images[1:])], **arguments("sd15", num_inference_steps=1),
    )  # fmt: skip
    assert sorted(result.seeds) == [1, 2]
    assert result.report.candidates[0].outcome == "failed"
    assert result.report.candidates[0].reason == "the scorer gave no finite score"
    with pytest.raises(RuntimeError, match="2 x the scorer gave no finite score"):
        best_of_n(sd15, n=2, scorer=lambda _: [float("inf")], **arguments("sd15", num_inference_steps=1))


@pytest.mark.parametrize("prune", PRUNES)
def test_an_error_in_one_candidate_keeps_the_others(
    prune: Any, tiny: Any, arguments: Any, contrast: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tiny.tiny_sd15()
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:  # in the second candidate (4 steps each, or 2 up to the comparison)
            raise torch.OutOfMemoryError("CUDA out of memory, on purpose")

    hook = pipe.unet.register_forward_pre_hook(fail)
    result = best_of_n(pipe, n=3, keep=3, scorer=contrast, prune=prune, **arguments("sd15"))
    hook.remove()
    assert len(result) == 2
    failed = [candidate for candidate in result.report.candidates if candidate.outcome == "failed"]
    assert [candidate.reason for candidate in failed] == ["OutOfMemoryError: CUDA out of memory, on purpose"]
    assert "no image of seed" in caplog.text
    hook = pipe.unet.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the first one: nothing is lost
        best_of_n(pipe, n=3, scorer=contrast, prune=prune, **arguments("sd15"))
    hook.remove()


def test_a_prompt_without_an_image_does_not_cost_the_other_prompts(tiny: Any, arguments: Any, contrast: Any) -> None:
    pipe, made = tiny.tiny_sd15(), 0

    def score(images: list[Image.Image]) -> list[float]:
        nonlocal made
        made += len(images)
        return contrast(images) if made <= 2 else [float("nan")] * len(images)

    call = arguments("sd15", prompt=["a cat", "a dog"], num_inference_steps=1)
    result = best_of_n(pipe, n=2, scorer=score, **call)
    assert result.prompts == (0,)
    assert [candidate.outcome for candidate in result.report.candidates][2:] == ["failed", "failed"]
