from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rali_core.diffusers_hook import RaliGuidance, RaliStepCallback, best_of_n
from rali_core.guidance import limit, rms
from rali_core.rewards import RaliLoss


def same(first: Any, second: Any) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_every_step_is_scored_and_nothing_else_changes(
    name: str, get_pipe: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    pipe, call = get_pipe(name), arguments(name)
    expected = alone(pipe, 3, **call)
    with RaliStepCallback(pipe, scorer=contrast, height=32, width=32) as callback:
        image = alone(pipe, 3, **call, callback_on_step_end=callback)
        again = alone(pipe, 3, **call, callback_on_step_end=callback)
    assert same(image, expected)
    assert same(again, expected)
    assert [now.step for now in callback.history] == [0, 1, 2, 3]
    assert [now.timestep for now in callback.history] == sorted((n.timestep for n in callback.history), reverse=True)
    # In the last step these schedulers arrive at what they predict.
    assert callback.history[-1].scores[0] == pytest.approx(contrast([expected])[0], abs=0.3)
    assert not callback.stopped
    assert "step" not in vars(pipe.scheduler)


def test_some_steps_are_scored_where_that_is_enough(sd15: Any, arguments: Any, alone: Any, contrast: Any) -> None:
    with RaliStepCallback(sd15, scorer=contrast, every=3) as callback:
        alone(sd15, 3, **arguments("sd15", num_inference_steps=5), callback_on_step_end=callback)
    assert [now.step for now in callback.history] == [2, 4]


def test_a_run_can_be_stopped_and_returns_the_denoised_preview(
    sd15: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    calls = []
    hook = sd15.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with RaliStepCallback(sd15, scorer=contrast, stop=lambda now: now.step == 1) as callback:
        image = alone(sd15, 3, **arguments("sd15"), callback_on_step_end=callback)
    hook.remove()
    assert callback.stopped
    assert len(calls) == 2
    assert contrast([image])[0] == pytest.approx(callback.history[-1].scores[0], abs=0.01)
    assert same(alone(sd15, 3, **arguments("sd15")), alone(sd15, 3, **arguments("sd15")))  # the next run is whole


def test_batches_are_scored_by_image(sd15: Any, arguments: Any, contrast: Any) -> None:
    with RaliStepCallback(sd15, scorer=contrast) as callback:
        images = sd15(
            **arguments("sd15", num_images_per_prompt=2),
            generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
            callback_on_step_end=callback,
        ).images
    assert callback.history[-1].scores == pytest.approx(contrast(images), abs=0.3)


def test_outside_its_block_a_callback_says_how_to_use_it(sd15: Any, arguments: Any, contrast: Any) -> None:
    callback = RaliStepCallback(sd15, scorer=contrast)
    with pytest.raises(RuntimeError, match=r"with RaliStepCallback\(pipe, ...\) as callback"):
        sd15(**arguments("sd15"), callback_on_step_end=callback)
    with callback, pytest.raises(ValueError, match="in use by a RaliStepCallback"):
        best_of_n(sd15, n=1, scorer=contrast, **arguments("sd15"))
    with pytest.raises(ValueError, match="every must be at least 1"):
        RaliStepCallback(sd15, scorer=contrast, every=0)


def test_another_pipelines_callback_is_noticed(sd15: Any, tiny: Any, arguments: Any, contrast: Any) -> None:
    other = tiny.tiny_sd15()
    with (
        RaliStepCallback(other, scorer=contrast) as callback,
        pytest.raises(RuntimeError, match="no step of this DDIMScheduler has been seen"),
    ):
        sd15(**arguments("sd15"), callback_on_step_end=callback)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_guidance_lowers_the_loss_of_the_finished_image(
    name: str, get_pipe: Any, arguments: Any, tiny_scorer: Any
) -> None:
    pipe, loss = get_pipe(name), RaliLoss(tiny_scorer.model)
    call = arguments(name, output_type="pt", num_inference_steps=8)
    plain = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    with RaliGuidance(pipe, loss, scale=1e4, clip=0.05, height=32, width=32) as guidance:
        guided = pipe(**call, generator=torch.Generator().manual_seed(0), callback_on_step_end=guidance).images
    assert float(loss(guided)) < float(loss(plain))
    assert [bool(value) for value in guidance.losses] == [True] * 5  # steps 2 to 6 of 8: 0.2 <= step / 8 < 0.8
    assert all(parameter.grad is None for parameter in pipe.vae.parameters())


def test_guidance_without_scale_changes_nothing(sd15: Any, arguments: Any, alone: Any, tiny_scorer: Any) -> None:
    with RaliGuidance(sd15, RaliLoss(tiny_scorer.model), scale=0.0) as guidance:
        image = alone(sd15, 0, **arguments("sd15"), callback_on_step_end=guidance)
    assert same(image, alone(sd15, 0, **arguments("sd15")))


def test_each_nudge_is_limited_and_the_regulariser_pulls_back(sd15: Any, tiny_scorer: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, predicted = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))

    class Progress:
        vae, num_timesteps = sd15.vae, 10

    guidance = RaliGuidance(sd15, RaliLoss(tiny_scorer.model), scale=1e9, clip=0.03, regularisation=0.5, start=0.0)
    first = guidance.on_step(Progress(), 0, 0, latents, predicted)["latents"] - latents
    assert torch.allclose(rms(first) / rms(latents), torch.full((2, 1, 1, 1), 0.03), atol=1e-5)
    second = guidance.on_step(Progress(), 1, 0, latents, predicted)["latents"] - latents
    assert torch.allclose(second, first - 0.5 * first, atol=1e-5)


def test_a_small_nudge_is_not_scaled_up() -> None:
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.3, 0.4]])
    limited = limit(values, torch.full((3, 1), 1.0))
    assert torch.allclose(limited[0], values[0] / rms(values[:1])[0])
    assert torch.equal(limited[1:], values[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.8, "stop": 0.2}, "0 <= start < stop <= 1"),
        ({"scale": -1.0}, "scale >= 0"),
        ({"clip": 0.0}, r"clip in \(0, 1\]"),
        ({"regularisation": 2.0}, r"regularisation in \[0, 1\]"),
    ],
)
def test_guidance_out_of_range_is_refused(
    settings: dict[str, float], message: str, sd15: Any, tiny_scorer: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        RaliGuidance(sd15, RaliLoss(tiny_scorer.model), **settings)


def test_guidance_under_inference_mode_says_why_it_cannot(sd15: Any, arguments: Any, tiny_scorer: Any) -> None:
    with (
        torch.inference_mode(),
        RaliGuidance(sd15, RaliLoss(tiny_scorer.model)) as guidance,
        pytest.raises(RuntimeError, match=r"outside torch.inference_mode"),
    ):
        sd15(**arguments("sd15"), callback_on_step_end=guidance)


def test_a_step_callback_and_guidance_share_one_pipeline(
    sd15: Any, arguments: Any, alone: Any, contrast: Any, tiny_scorer: Any
) -> None:
    from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

    plain = alone(sd15, 3, **arguments("sd15"))
    with RaliStepCallback(sd15, scorer=contrast) as scores, RaliGuidance(sd15, RaliLoss(tiny_scorer.model)) as guidance:
        both = MultiPipelineCallbacks([scores, guidance, SDCFGCutoffCallback(cutoff_step_ratio=1.0)])
        assert both.tensor_inputs == ["latents", "latents", "prompt_embeds"]
        image = alone(sd15, 3, **arguments("sd15"), callback_on_step_end=both)
    assert [now.step for now in scores.history] == [0, 1, 2, 3]
    assert len(guidance.losses) == 3
    assert not same(image, plain)
    assert "step" not in vars(sd15.scheduler)
    assert "prepare_latents" not in vars(sd15)


def test_the_callers_own_callback_is_called_with_what_it_wants(sd15: Any, arguments: Any, contrast: Any) -> None:
    from rali_core.diffusers_hook import SuccessiveHalving

    seen: list[tuple[int, list[str]]] = []

    def own(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del timestep
        assert pipe.num_timesteps == 4
        seen.append((step, sorted(tensors)))
        tensors["latents"] = tensors["latents"] * 0.5
        return tensors

    call = arguments("sd15", callback_on_step_end=own, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    result = best_of_n(sd15, n=2, scorer=contrast, **call)
    assert seen == [(step, ["latents", "prompt_embeds"]) for step in range(4)] * 2
    expected = sd15(**call, generator=torch.Generator().manual_seed(result.seeds[0])).images[0]
    assert same(result.images[0], expected)
    for settings in ({"batch_size": 4, "exact": False}, {"batch_size": 1}):
        pruned = best_of_n(sd15, n=4, scorer=contrast, prune=SuccessiveHalving(at=(0.5,)), **settings, **call)
        expected = sd15(**call, generator=torch.Generator().manual_seed(pruned.seeds[0])).images[0]
        assert np.abs(np.asarray(pruned.images[0], float) - np.asarray(expected, float)).max() <= 1


def test_a_callback_of_diffusers_works_in_best_of_n_and_may_end_a_call(
    sd15: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    from diffusers.callbacks import SDCFGCutoffCallback

    call = arguments("sd15", callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    result = best_of_n(sd15, n=2, scorer=contrast, **call)
    assert same(result.images[0], alone(sd15, result.seeds[0], **call))

    def end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del timestep, tensors
        pipe._interrupt = step == 1
        return {}

    ended = best_of_n(sd15, n=2, scorer=contrast, keep_latents=True, **arguments("sd15", callback_on_step_end=end))
    assert ended.report.denoiser_calls == 2 * 2 * 2
    assert ended.latents is not None
    with pytest.raises(TypeError, match="callback_on_step_end must be callable, got 3"):
        best_of_n(sd15, n=2, scorer=contrast, **arguments("sd15", callback_on_step_end=3))


def test_no_float64_is_made_on_the_way_from_a_step_to_a_loss(sd15: Any, tiny_scorer: Any) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoFloat64(TorchDispatchMode):
        """The operations that a GPU would be asked for; Apple's and some others have no float64."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                large = isinstance(value, torch.Tensor) and value.ndim > 1
                assert not (large and value.dtype == torch.float64), function
            return result

    guidance = RaliGuidance(sd15, RaliLoss(tiny_scorer.model), start=0.0)
    predicted = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sd15.scheduler.set_timesteps(4)
    sd15._num_timesteps = 4
    with NoFloat64():
        guidance.on_step(sd15, 1, 1, predicted, predicted)
    assert len(guidance.losses) == 1
