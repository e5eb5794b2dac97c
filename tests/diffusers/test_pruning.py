from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.diffusers_hook import SuccessiveHalving, best_of_n
from rali_core.diffusers_hook.shrink import shrink_tensors

MULTISTEP = [
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
]


def same(first: Any, second: Any) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


def batch_sizes(module: torch.nn.Module) -> tuple[list[int], Any]:
    sizes: list[int] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        sizes.append(len(args[0] if args else kwargs["hidden_states"]))

    return sizes, module.register_forward_pre_hook(note, with_kwargs=True)


def test_sixteen_candidates_are_halved_three_times() -> None:
    halving = SuccessiveHalving()
    assert halving.rungs(20) == (3, 7, 11)
    assert [halving.survivors(count, 1) for count in (16, 8, 4)] == [8, 4, 2]
    assert halving.survivors(8, 6) == 6
    assert halving.survivors(3, 5) == 3
    assert halving.rungs(2) == (0,)
    assert halving.rungs(1) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": ()}, "at must be ascending fractions"),
        ({"at": (0.5, 0.5)}, "at must be ascending fractions"),
        ({"at": (0.5, 1.0)}, "at must be ascending fractions"),
        ({"keep_fraction": 1.0}, "keep_fraction must lie between 0 and 1"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuccessiveHalving(**settings)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_pruning_saves_what_it_reports_and_leaves_the_winner_bit_for_bit(
    name: str, get_pipe: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    pipe, call = get_pipe(name), arguments(name, num_inference_steps=5)
    guided = 1 if name == "flux" else 2
    denoiser = pipe.transformer if name in ("sd3", "flux") else pipe.unet
    sizes, hook = batch_sizes(denoiser)
    result = best_of_n(pipe, n=8, scorer=contrast, prune=SuccessiveHalving(), keep_latents=True, **call)
    hook.remove()
    # 8 to step 1, 4 to step 2, 2 to step 3, 1 to step 5
    assert sum(sizes) == guided * (8 + 4 + 2 + 1 * 2)
    assert result.report.denoiser_calls == sum(sizes)
    assert result.report.full_denoiser_calls == guided * 8 * 5
    assert result.report.fraction_saved == pytest.approx(1 - 16 / 40)
    assert result.report.previews == 8 + 4 + 2
    assert sum(candidate.outcome == "pruned" for candidate in result.report.candidates) == 7
    assert sorted(len(candidate.step_scores) for candidate in result.report.candidates) == [1] * 4 + [2] * 2 + [3] * 2
    assert same(result.images[0], alone(pipe, result.seeds[0], **call))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_a_batch_really_shrinks_and_its_survivors_are_what_they_would_be_alone(
    name: str, get_pipe: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    pipe, call = get_pipe(name), arguments(name, num_inference_steps=5, output_type="np")
    prune = SuccessiveHalving(at=(0.2, 0.6))
    if name == "sd3" and "pooled_prompt_embeds" not in pipe._callback_tensor_inputs:  # the oldest diffusers
        with pytest.raises(ValueError, match="does not reach pooled_prompt_embeds; update diffusers"):
            best_of_n(pipe, n=8, batch_size=8, scorer=contrast, prune=prune, **call)
        return
    sizes, hook = batch_sizes(pipe.transformer if name == "sd3" else pipe.unet)
    result = best_of_n(pipe, n=8, keep=2, batch_size=8, exact=False, scorer=contrast, prune=prune, **call)
    hook.remove()
    assert sizes == [16, 8, 8, 4, 4]
    for image, seed in zip(result.images, result.seeds, strict=True):
        assert np.abs(image - alone(pipe, seed, **call)).max() < 1e-3
    exact = best_of_n(pipe, n=8, keep=2, batch_size=8, scorer=contrast, prune=prune, **call)
    for image, seed in zip(exact.images, exact.seeds, strict=True):
        assert same(image, alone(pipe, seed, **call))


@pytest.mark.parametrize("scheduler", MULTISTEP)
def test_a_schedulers_state_shrinks_with_the_batch(
    scheduler: str, tiny: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    import diffusers

    pipe = tiny.tiny_sd15()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(
        {key: value for key, value in pipe.scheduler.config.items() if key != "set_alpha_to_one"}
    )
    call = arguments("sd15", num_inference_steps=6, output_type="np")
    prune = SuccessiveHalving(at=(0.5,))
    result = best_of_n(pipe, n=4, keep=2, batch_size=4, exact=False, scorer=contrast, prune=prune, **call)
    assert sum(candidate.outcome == "pruned" for candidate in result.report.candidates) == 2
    for image, seed in zip(result.images, result.seeds, strict=True):
        assert np.abs(image - alone(pipe, seed, **call)).max() < 1e-3


def test_a_batch_spread_over_several_calls_is_compared_as_one(sd15: Any, arguments: Any, contrast: Any) -> None:
    call = arguments("sd15", num_inference_steps=5)
    wide = best_of_n(sd15, n=6, keep=2, batch_size=4, scorer=contrast, prune=SuccessiveHalving(), **call)
    narrow = best_of_n(sd15, n=6, keep=2, scorer=contrast, prune=SuccessiveHalving(), **call)
    assert wide.seeds == narrow.seeds
    assert same(wide.images[0], narrow.images[0])


def test_image_to_image_batches_shrink_too(sd15: Any, contrast: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    components = {name: part for name, part in sd15.components.items() if name != "image_encoder"}
    pipe = StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    call = {"prompt": "x", "image": start, "num_inference_steps": 6, "strength": 0.7, "output_type": "np"}
    sizes, hook = batch_sizes(pipe.unet)
    result = best_of_n(
        pipe, n=4, batch_size=4, scorer=contrast, prune=SuccessiveHalving(at=(0.5,)), exact=False, **call
    )
    hook.remove()
    assert sizes == [8, 8, 4, 4]
    expected = pipe(**call, generator=torch.Generator().manual_seed(result.seeds[0])).images[0]
    assert np.abs(result.images[0] - expected).max() < 1e-3


def test_a_batch_that_cannot_shrink_is_refused_with_the_remedy(
    get_pipe: Any, sd15: Any, arguments: Any, contrast: Any
) -> None:
    with pytest.raises(ValueError, match=r"a batch inside FluxPipeline cannot be made smaller.*batch_size=1"):
        best_of_n(get_pipe("flux"), n=4, batch_size=2, scorer=contrast, prune=SuccessiveHalving(), **arguments("flux"))
    with pytest.raises(ValueError, match=r"made with cross_attention_kwargs cannot.*batch_size=1"):
        best_of_n(
            sd15, n=4, batch_size=2, scorer=contrast, prune=SuccessiveHalving(),
            **arguments("sd15", cross_attention_kwargs={"scale": 1.0}),
        )  # fmt: skip


def test_a_tensor_without_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="expected mask with a batch axis of 4 or 8, got"):
        shrink_tensors({"mask": torch.zeros(3, 1)}, [0], 4)


def test_guidance_halves_are_shrunk_each() -> None:
    tensors = {"latents": torch.arange(4.0), "prompt_embeds": torch.arange(8.0)}
    shrunk = shrink_tensors(tensors, [0, 3], 4)
    assert shrunk["latents"].tolist() == [0, 3]
    assert shrunk["prompt_embeds"].tolist() == [0, 3, 4, 7]


def test_a_cheaper_decoder_judges_the_previews(sd15: Any, arguments: Any, contrast: Any) -> None:
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cheap = AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ).eval()  # fmt: skip
    calls = []
    hook = cheap.decoder.register_forward_hook(lambda *_: calls.append(1))
    best_of_n(sd15, n=4, scorer=contrast, prune=SuccessiveHalving(at=(0.5,), vae=cheap), **arguments("sd15"))
    hook.remove()
    assert len(calls) == 1 + 4  # the first noise, before any step, and a preview of each


def test_an_error_inside_a_suspended_call_comes_out_and_leaves_no_thread(sd15: Any, arguments: Any) -> None:
    def broken(images: list[Image.Image]) -> list[float]:
        raise ZeroDivisionError(f"on purpose, for {len(images)}")

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        best_of_n(sd15, n=4, scorer=broken, prune=SuccessiveHalving(), **arguments("sd15"))
    with pytest.raises(TypeError, match="no_such_argument"):
        best_of_n(sd15, n=4, scorer=broken, prune=SuccessiveHalving(), **arguments("sd15", no_such_argument=1))
    assert threading.active_count() == before


def test_ctrl_c_while_pruning_leaves_no_thread(sd15: Any, arguments: Any) -> None:
    calls = 0

    def score(images: list[Image.Image]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return [float(calls)] * len(images)

    before = threading.active_count()
    last = 2
    with pytest.raises(KeyboardInterrupt):
        best_of_n(sd15, n=4, scorer=score, prune=SuccessiveHalving(at=(0.5,)), **arguments("sd15"))
    calls, last = 0, 6  # 4 previews, one finished image, then Ctrl-C
    result = best_of_n(sd15, n=4, keep=2, scorer=score, prune=SuccessiveHalving(at=(0.5,)), **arguments("sd15"))
    assert result.report.stopped == "interrupt"
    assert len(result) == 1
    assert [candidate.outcome for candidate in result.report.candidates].count("skipped") == 1
    assert threading.active_count() == before


def test_the_callers_autocast_and_inference_mode_hold_in_the_suspended_calls(
    sd15: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = best_of_n(sd15, n=4, scorer=contrast, prune=SuccessiveHalving(), **arguments("sd15"))
        expected = alone(sd15, result.seeds[0], **arguments("sd15"))
    assert same(result.images[0], expected)
    assert not same(expected, alone(sd15, result.seeds[0], **arguments("sd15")))


def test_a_scheduler_without_a_known_preview_is_refused(tiny: Any, arguments: Any, contrast: Any) -> None:
    from diffusers import IPNDMScheduler

    pipe = tiny.tiny_sd15()
    pipe.scheduler = IPNDMScheduler()
    with pytest.raises(ValueError, match="denoised preview .* is known for IPNDMScheduler"):
        best_of_n(pipe, n=2, scorer=contrast, prune=SuccessiveHalving(), **arguments("sd15"))
