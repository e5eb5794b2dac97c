"""Nudging latents towards a better score while a pipeline runs.

The score's gradient is taken at the denoised preview and applied to the latents; the denoiser's own Jacobian is left
out, as in universal guidance's cheap form (Bansal et al. 2023, section 3.1, and FreeDoM, Yu et al. 2023, differ here:
they differentiate through the denoiser). One decoder and one scorer pass, forward and backward, per guided step.

The size of each nudge, and the guards against reward hacking, are in the core's `guidance`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..guidance import GuidanceSettings, Guide
from ..rewards.loss import RaliLoss
from .step_callback import StepHook


class RaliGuidance(StepHook):
    """A `callback_on_step_end` that moves the latents down the gradient of a `RaliLoss`.

    Per step inside the window: nudge = -scale * gradient, limited in its root mean square (RMS) to `clip` times that
    of the latents, sample by sample; minus `regularisation` times the sum of all nudges so far.

    Args:
        pipe: The pipeline that will be called.
        loss: The loss to lower.
        scale: Step size. A score's gradient per latent is small and differs between models: try powers of ten and
            see `losses`.
        clip: Largest nudge per step, as a part of the latents' RMS, in (0, 1].
        start: First guided step, as a fraction of all steps; earlier images are too vague to judge.
        stop: Where guidance ends, as a fraction; the last steps then repair artifacts.
        regularisation: The fraction of the nudges so far that is taken back at each step, in [0, 1]: the gradient of
            0.5 * regularisation * |nudges so far|^2.
        height: Height in pixels for packed latents, if the pipeline does not know it.
        width: Width, likewise.

    Attributes:
        losses: The loss before each guided step of the last run, mean over the batch.

    Raises:
        ValueError: An argument is out of range, or there is no denoised preview for this pipeline or scheduler.

    Examples:
        >>> with RaliGuidance(pipe, RaliLoss(scorer.model), scale=100.0) as guidance:  # doctest: +SKIP
        ...     image = pipe("a lighthouse", callback_on_step_end=guidance).images[0]
    """

    def __init__(
        self,
        pipe: Any,
        loss: RaliLoss,
        *,
        scale: float = 100.0,
        clip: float = 0.05,
        start: float = 0.2,
        stop: float = 0.8,
        regularisation: float = 0.1,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__(pipe, height=height, width=width)
        self._guide = Guide(GuidanceSettings(scale, clip, start, stop, regularisation))
        self._loss = loss
        self.losses: list[float] = []

    def on_step(self, pipe: Any, step: int, timestep: Any, latents: Tensor, predicted: Tensor) -> dict[str, Any]:
        """Nudge, inside the window."""
        del timestep
        if step == 0:
            self._guide.reset()
            self.losses.clear()
        if not self._guide.settings.covers(step / pipe.num_timesteps):
            return {}
        if torch.is_inference_mode_enabled():
            raise RuntimeError("guidance needs gradients: call the pipeline outside torch.inference_mode()")
        with torch.enable_grad():
            point = predicted.detach().requires_grad_(True)
            losses = self._loss.per_image(self.decode(pipe, point))
            (gradient,) = torch.autograd.grad(losses.sum(), point)
        self.losses.append(float(losses.detach().mean()))
        return {"latents": (latents.float() + self._guide.nudge(gradient, latents)).to(latents.dtype)}
