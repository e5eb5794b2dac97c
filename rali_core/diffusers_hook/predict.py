"""What a denoiser's output says about the finished picture: the predicted x0, for each kind of scheduler.

Every scheduler writes its noisy sample as `x = a * x0 + s * noise`; they differ in where `a` and `s` come from and in
what the network predicts:

    epsilon          x0 = (x - s * output) / a
    v_prediction     x0 = (a * x - s * output) / (a^2 + s^2)      output = (a * noise - s * x0) / sqrt(a^2 + s^2)
    sample           x0 = output
    flow             x0 = x - s * output                          a = 1 - s, output = noise - x0
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# By class name, so that diffusers need not be imported; subclasses count through their bases.
_BY_TIMESTEP = frozenset({"DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler"})
_VARIANCE_EXPLODING = frozenset(
    {"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"}
)
_VARIANCE_PRESERVING = frozenset(
    {
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    }
)
_FLOW_MATCHING = frozenset(
    {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"}
)
SUPPORTED_SCHEDULERS = tuple(sorted(_BY_TIMESTEP | _VARIANCE_EXPLODING | _VARIANCE_PRESERVING | _FLOW_MATCHING))


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler whose x0 cannot be told.

    Raises:
        ValueError: An unknown scheduler class.
    """
    if not any(base.__name__ in SUPPORTED_SCHEDULERS for base in type(scheduler).__mro__):
        raise ValueError(
            f"the predicted picture of {type(scheduler).__name__} is not known here; set pipe.scheduler to one of "
            f"{', '.join(SUPPORTED_SCHEDULERS)}"
        )


def predict_original(scheduler: Any, sample: Tensor, output: Tensor, timestep: Any, step_index: int | None) -> Tensor:
    """The latents that the denoiser expects at the end.

    Args:
        scheduler: A diffusers scheduler, one of `SUPPORTED_SCHEDULERS` or a subclass.
        sample: (B, ...) latents that went into the step.
        output: (B, ...) the denoiser's output for them, guidance already applied.
        timestep: What `scheduler.step` was given.
        step_index: 0-based index of the step in `scheduler.sigmas`; not needed where the timestep says it all.

    Returns:
        (B, ...) predicted clean latents, float32.

    Raises:
        ValueError: An unknown scheduler class or prediction type.
    """
    check_scheduler(scheduler)
    names = {base.__name__ for base in type(scheduler).__mro__}
    sample, output = sample.float(), output.float()
    if names & _BY_TIMESTEP:
        index = torch.as_tensor(timestep).long().cpu()
        alpha_bar = scheduler.alphas_cumprod[index].to(sample.device, torch.float32)
        a, s = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
        if output.shape[1] == 2 * sample.shape[1]:  # the second half is a learned variance
            output = output[:, : sample.shape[1]]
    else:
        if step_index is None:
            raise ValueError(f"{type(scheduler).__name__} counts no steps: was its step() called?")
        sigma = scheduler.sigmas[step_index].to(sample.device, torch.float32)
        if names & _FLOW_MATCHING or getattr(scheduler.config, "use_flow_sigmas", False):
            a, s = 1.0 - sigma, sigma
        elif names & _VARIANCE_PRESERVING:
            a = 1.0 / (1.0 + sigma**2).sqrt()
            s = sigma * a
        else:
            a, s = torch.ones_like(sigma), sigma
    # The flow matching schedulers have no prediction_type: there is only one.
    kind = "flow_prediction" if names & _FLOW_MATCHING else scheduler.config.prediction_type
    original: Tensor
    if kind == "epsilon":
        original = (sample - s * output) / a
    elif kind == "v_prediction":
        original = a * sample / (a**2 + s**2) - s * output / (a**2 + s**2).sqrt()
    elif kind == "flow_prediction":
        original = sample - s * output
    elif kind == "sample":
        original = output
    else:
        raise ValueError(f"prediction_type {kind!r} of {type(scheduler).__name__} is not known here")
    return original
