"""Denoised previews: the clean latents (predicted x0) that a denoiser's output implies, for each kind of scheduler.

Every scheduler writes its noisy sample as `x = a * x0 + s * noise`; they differ in where `a` and `s` come from and in
what the network predicts:

    epsilon          x0 = (x - s * output) / a
    v_prediction     x0 = (a * x - s * output) / (a^2 + s^2)      output = (a * noise - s * x0) / sqrt(a^2 + s^2)
    sample           x0 = output
    flow             x0 = x - s * output                          a = 1 - s, output = noise - x0
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .arguments import descends_from

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
    """Refuse a scheduler whose predicted x0 is not known.

    Raises:
        ValueError: An unknown scheduler class.
    """
    if not descends_from(type(scheduler), SUPPORTED_SCHEDULERS):
        raise ValueError(
            f"no denoised preview (predicted x0) is known for {type(scheduler).__name__}; set pipe.scheduler to one of "
            f"{', '.join(SUPPORTED_SCHEDULERS)}"
        )


def predict_original(scheduler: Any, sample: Tensor, output: Tensor, timestep: Any, step_index: int | None) -> Tensor:
    """The latents that the denoiser expects at the end.

    Args:
        scheduler: A diffusers scheduler, one of `SUPPORTED_SCHEDULERS` or a subclass.
        sample: (B, ...) latents that went into the step.
        output: (B, ...) the denoiser's output for them, guidance already applied.
        timestep: What `scheduler.step` was given.
        step_index: 0-based index of the step in `scheduler.sigmas`; not needed if the timestep is enough.

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


def listen(owner: Any, name: str, heard: Callable[[tuple[Any, ...], dict[str, Any], Any], None]) -> Callable[[], None]:
    """Call `heard(args, kwargs, result)` after each call of a method of one object; the method is not changed.

    Any number of listeners may share a method, and another replacement of it stays in place.

    Args:
        owner: The object.
        name: Its method.
        heard: Called after each call; its exceptions reach the caller of the method.

    Returns:
        A function that stops this; calling it twice does nothing.
    """
    listeners = getattr(vars(owner).get(name), "_rali_listeners", None)
    if listeners is None:
        listeners = []
        before, original = vars(owner).get(name), getattr(owner, name)

        @wraps(original)  # pipelines inspect the signature to see whether a step takes eta and generator
        def method(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for listener in tuple(method._rali_listeners):  # type: ignore[attr-defined]
                listener(args, kwargs, result)
            return result

        method._rali_listeners = listeners  # type: ignore[attr-defined]
        method._rali_before = before  # type: ignore[attr-defined]
        setattr(owner, name, method)
    listeners.append(heard)

    def end() -> None:
        if heard in listeners:
            listeners.remove(heard)
        current = vars(owner).get(name)
        if not listeners and getattr(current, "_rali_listeners", None) is listeners:
            del vars(owner)[name]
            if current._rali_before is not None:
                setattr(owner, name, current._rali_before)

    return end


class StepRecorder:
    """Remembers sample, denoiser output and timestep of a scheduler's last step.

    diffusers' callback sees the latents after a step only; the denoiser's output passes through `scheduler.step`
    alone, so that is where it is read. The step itself is not changed, and any number of recorders may listen.

    Args:
        scheduler: One scheduler object; `attach` starts listening to this object and `detach` stops.

    Raises:
        ValueError: A scheduler whose predicted x0 is not known.
    """

    def __init__(self, scheduler: Any) -> None:
        check_scheduler(scheduler)
        self._scheduler = scheduler
        self._last: tuple[Tensor, Tensor, Any, int | None] | None = None
        self._end: Callable[[], None] | None = None

    def attach(self) -> None:
        """Start listening."""
        if self._end is None:
            self._end = listen(self._scheduler, "step", self._heard)

    def detach(self) -> None:
        """Stop listening, and forget."""
        if self._end is not None:
            self._end()
        self._end, self._last = None, None

    def predicted(self) -> Tensor:
        """(B, ...) float32 clean latents, as the last step's denoiser output predicts them.

        Raises:
            RuntimeError: No step has been taken since `attach`.
        """
        if self._last is None:
            raise RuntimeError(
                f"no step of this {type(self._scheduler).__name__} has been seen; pass the callback to the pipeline "
                "it was made for, inside the `with` block, and do not exchange pipe.scheduler in between"
            )
        sample, output, timestep, index = self._last
        return predict_original(self._scheduler, sample.detach(), output.detach(), timestep, index)

    def _heard(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        del result
        names = ("model_output", "timestep", "sample")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        index = getattr(self._scheduler, "step_index", None)
        self._last = (given["sample"], given["model_output"], given["timestep"], None if index is None else index - 1)
