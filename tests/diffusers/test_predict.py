from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from rali_core.diffusers_hook.predicted_x0 import SUPPORTED_SCHEDULERS, StepRecorder, predict_original

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TIMESTEP = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler"]
EXPLODING = [
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
]
PRESERVING = [
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
]
FLOW = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]


def make(name: str, prediction: str) -> Any:
    kind = getattr(diffusers, name)
    scheduler = kind() if name in FLOW else kind(**BETAS, prediction_type=prediction)
    scheduler.set_timesteps(8)
    return scheduler


def mix(name: str, scheduler: Any, step: int) -> tuple[float, float]:
    """How the scheduler mixes image and noise at a step, from the definitions and not from the code under test."""
    if name in FLOW:
        sigma = float(scheduler.sigmas[step])
        return 1 - sigma, sigma
    if name in TIMESTEP:
        alpha_bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    sigma = float(scheduler.sigmas[step])
    return (1.0, sigma) if name in EXPLODING else ((1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", [*TIMESTEP, *EXPLODING, *PRESERVING, *FLOW])
def test_a_perfect_denoiser_gives_the_image_back_at_every_step(name: str, prediction: str) -> None:
    if name in FLOW and prediction != "epsilon":
        pytest.skip("flow matching has one prediction type")
    scheduler = make(name, prediction)
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(2, 4, 8, 8, generator=generator)
    recorder = StepRecorder(scheduler)
    recorder.attach()
    for step, timestep in enumerate(scheduler.timesteps):
        noise = torch.randn(clean.shape, generator=generator)
        a, s = mix(name, scheduler, step)
        noisy = a * clean + s * noise
        norm = (a**2 + s**2) ** 0.5
        output = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": (a * noise - s * clean) / norm,
        }[prediction]
        if name in FLOW:
            output = noise - clean
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(noisy, timestep)  # LMS warns without
        try:
            scheduler.step(output, timestep, noisy)
        except (NotImplementedError, ValueError) as error:
            if prediction != "sample":
                raise
            pytest.skip(f"{name} does not implement it: {error}")
        tolerance = 1e-4 * max(1.0, s / a if a else 1.0)
        if a:
            assert torch.allclose(recorder.predicted(), clean, atol=tolerance), (step, timestep)
    recorder.detach()
    assert "step" not in vars(scheduler)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_agrees_with_the_schedulers_own_prediction(name: str, prediction: str) -> None:
    kind = getattr(diffusers, name)
    scheduler = kind(**BETAS, prediction_type=prediction, **({"clip_sample": False} if name == "DDIMScheduler" else {}))
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(1)
    recorder = StepRecorder(scheduler)
    recorder.attach()
    sample = torch.randn(1, 4, 8, 8, generator=generator)
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, timestep)
        result = scheduler.step(torch.randn(sample.shape, generator=generator), timestep, sample, generator=generator)
        assert torch.allclose(recorder.predicted(), result.pred_original_sample, atol=1e-4)
        sample = result.prev_sample


def test_learned_variance_is_left_out() -> None:
    scheduler = make("DDPMScheduler", "epsilon")
    sample, noise = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    both = torch.cat([noise, torch.ones_like(noise)], dim=1)
    timestep = scheduler.timesteps[3]
    with_variance = predict_original(scheduler, sample, both, timestep, None)
    assert torch.equal(with_variance, predict_original(scheduler, sample, noise, timestep, None))


def test_an_unknown_scheduler_or_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no denoised preview .*IPNDMScheduler; set pipe\.scheduler to one of DDIM"):
        StepRecorder(diffusers.IPNDMScheduler())
    scheduler = make("DDIMScheduler", "epsilon")
    scheduler.register_to_config(prediction_type="other")
    with pytest.raises(ValueError, match="prediction_type 'other' of DDIMScheduler"):
        predict_original(scheduler, torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), 1, None)
    assert len(SUPPORTED_SCHEDULERS) == 16


def test_several_listen_to_one_scheduler_and_leave_it_as_it_was() -> None:
    scheduler = make("DDIMScheduler", "epsilon")
    first, second = StepRecorder(scheduler), StepRecorder(scheduler)
    first.attach()
    second.attach()
    with pytest.raises(RuntimeError, match="no step of this DDIMScheduler has been seen"):
        first.predicted()
    sample, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    scheduler.step(model_output=noise, timestep=scheduler.timesteps[0], sample=sample)
    assert torch.equal(first.predicted(), second.predicted())
    first.detach()
    assert "step" in vars(scheduler)  # the second one still listens, whichever came first
    scheduler.step(noise, scheduler.timesteps[1], sample)
    second.predicted()
    second.detach()
    assert "step" not in vars(scheduler)


def test_a_step_method_replaced_by_others_stays_replaced() -> None:
    scheduler = make("DDIMScheduler", "epsilon")
    original, seen = scheduler.step, []

    def own(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return original(*args, **kwargs)

    scheduler.step = own
    recorder = StepRecorder(scheduler)
    recorder.attach()
    scheduler.step(torch.zeros(1, 4, 8, 8), scheduler.timesteps[0], torch.zeros(1, 4, 8, 8))
    recorder.predicted()
    recorder.detach()
    assert scheduler.step is own
    assert seen == [1]
