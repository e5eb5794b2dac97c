"""Score guidance: how each step of a sampler is nudged along a score's gradient.

A warning: a score is not quality. Pushed hard, any scorer is fooled by patterns that only it likes. The
guards are: a window of steps, a limit per step, and a pull back to the unguided path. Look at the images, and
judge the result by another measure than the one it was guided by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GuidanceSettings:
    """Strength and limits.

    Attributes:
        scale: Step size. A score's gradient per latent is small and differs between models: try powers of ten.
        clip: Largest nudge per step, as a part of the latents' RMS, in (0, 1].
        start: First guided step, as a fraction of all steps; earlier images are too vague to judge.
        stop: Where guidance ends, as a fraction; the last steps then repair artifacts.
        regularisation: The fraction of the nudges so far that is taken back at each step, in [0, 1]: the gradient of
            0.5 * regularisation * |nudges so far|^2.

    Raises:
        ValueError: One is out of range.
    """

    scale: float = 100.0
    clip: float = 0.05
    start: float = 0.2
    stop: float = 0.8
    regularisation: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise ValueError(f"expected 0 <= start < stop <= 1, got start = {self.start} and stop = {self.stop}")
        if not self.scale >= 0.0 or not 0.0 < self.clip <= 1.0 or not 0.0 <= self.regularisation <= 1.0:
            raise ValueError(
                f"expected scale >= 0, clip in (0, 1] and regularisation in [0, 1], got {self.scale}, {self.clip} and "
                f"{self.regularisation}"
            )

    def covers(self, fraction: float) -> bool:
        """Whether a position between the first step (0) and the end (1) is guided."""
        return self.start <= fraction < self.stop


class Guide:
    """Nudges one run of a sampler.

    Args:
        settings: Strength and limits.

    Attributes:
        moved: The sum of the nudges so far; None before the first.
    """

    def __init__(self, settings: GuidanceSettings) -> None:
        self.settings = settings
        self.moved: Tensor | None = None

    def reset(self) -> None:
        """Start a new run."""
        self.moved = None

    def nudge(self, gradient: Tensor, latents: Tensor) -> Tensor:
        """The nudge to add to the latents of a step.

        Args:
            gradient: (B, ...) of the loss at the denoised preview.
            latents: (B, ...) that are nudged; the limit is relative to their RMS, sample by sample.

        Returns:
            (B, ...) float32: -scale * gradient, limited, minus `regularisation` times all nudges so far.
        """
        settings = self.settings
        nudge = limit(-settings.scale * gradient.float(), settings.clip * rms(latents.float()))
        if self.moved is not None:
            nudge = nudge - settings.regularisation * self.moved
        self.moved = nudge if self.moved is None else self.moved + nudge
        return nudge


def rms(values: Tensor) -> Tensor:
    """Root mean square of each sample: (B, ...) to (B, 1, ...)."""
    return values.square().mean(dim=tuple(range(1, values.ndim)), keepdim=True).sqrt()


def limit(values: Tensor, largest: Tensor) -> Tensor:
    """Scale each sample down to an RMS of at most `largest`; smaller ones are unchanged."""
    size = rms(values)
    return values * torch.where(size > largest, largest / size.clamp_min(torch.finfo(size.dtype).tiny), 1.0)
