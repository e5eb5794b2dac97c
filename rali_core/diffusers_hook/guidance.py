"""Nudging latents towards a better score while a pipeline runs.

The score's gradient is taken at the denoised preview and applied to the latents; the denoiser's own Jacobian is left
out, as in universal guidance's cheap form (Bansal et al. 2023, section 3.1, and FreeDoM, Yu et al. 2023, differ here:
they differentiate through the denoiser). One decoder and one scorer pass, forward and backward, per guided step.

A warning: a score is not quality. Pushed hard, any scorer is given patterns that please it and nobody else. What is
here against it: a window of steps, a limit per step, and a pull back to the unguided path. Look at the images, and
judge the result by another measure than the one it was guided by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rewards.loss import RaliLoss
from .step_callback import StepHook


class RaliGuidance(StepHook):
    """A `callback_on_step_end` that moves the latents down the gradient of a `RaliLoss`.

    Per step inside the window: nudge = -scale * gradient, limited in its root mean square (RMS) to `clip` times that
    of the latents, sample by sample; minus `regularisation` times all nudges so far.

    Args:
        pipe: The pipeline that will be called.
        loss: The loss to lower.
        scale: Step size. A score's gradient per latent is small and differs between models: try powers of ten and
            see `losses`.
        clip: Largest nudge per step, as a part of the latents' RMS, in (0, 1].
        start: First guided step, as a fraction of all steps; earlier pictures are too vague to judge.
        stop: Where guidance ends, as a fraction; the last steps then repair what it broke.
        regularisation: How much of the nudges so far is taken back at each step, in [0, 1]: the gradient of
            0.5 * regularisation * |nudges so far|^2.
        height: Height in pixels for packed latents, where the pipeline does not tell it.
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
        if not 0.0 <= start < stop <= 1.0:
            raise ValueError(f"expected 0 <= start < stop <= 1, got start = {start} and stop = {stop}")
        if not scale >= 0.0 or not 0.0 < clip <= 1.0 or not 0.0 <= regularisation <= 1.0:
            raise ValueError(
                f"expected scale >= 0, clip in (0, 1] and regularisation in [0, 1], got {scale}, {clip} and "
                f"{regularisation}"
            )
        self._loss = loss
        self._scale, self._clip, self._regularisation = scale, clip, regularisation
        self._start, self._stop = start, stop
        self._moved: Tensor | None = None
        self.losses: list[float] = []

    def on_step(self, pipe: Any, step: int, timestep: Any, latents: Tensor, predicted: Tensor) -> dict[str, Any]:
        """Nudge, inside the window."""
        del timestep
        if step == 0:
            self._moved = None
            self.losses.clear()
        if not self._start <= step / pipe.num_timesteps < self._stop:
            return {}
        if torch.is_inference_mode_enabled():
            raise RuntimeError("guidance needs gradients: call the pipeline outside torch.inference_mode()")
        with torch.enable_grad():
            point = predicted.detach().requires_grad_(True)
            losses = self._loss.per_image(self.decode(pipe, point))
            (gradient,) = torch.autograd.grad(losses.sum(), point)
        self.losses.append(float(losses.detach().mean()))
        nudge = limit(-self._scale * gradient, self._clip * rms(latents.float()))
        if self._moved is not None:
            nudge = nudge - self._regularisation * self._moved
        self._moved = nudge if self._moved is None else self._moved + nudge
        return {"latents": (latents.float() + nudge).to(latents.dtype)}


def rms(values: Tensor) -> Tensor:
    """Root mean square of each sample: (B, ...) to (B, 1, ...)."""
    return values.square().mean(dim=tuple(range(1, values.ndim)), keepdim=True).sqrt()


def limit(values: Tensor, largest: Tensor) -> Tensor:
    """Scale each sample down to an RMS of at most `largest`; smaller ones stay as they are."""
    size = rms(values)
    return values * torch.where(size > largest, largest / size.clamp_min(torch.finfo(size.dtype).tiny), 1.0)
