"""A reward loss for ReNO (`ExplainableML/ReNO`, Eyring et al. 2024), which optimises the initial noise.

Its trainer resizes and crops the image to 224 pixels, normalises it with CLIP's mean and standard deviation, and
calls each loss as `loss(image, prompt)`; it reads `.name` and multiplies by `.weighting` itself.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
from torch import Tensor

from ..constants import CLIP_MEAN, CLIP_STD
from ..scorer import RaliScorer
from .core import RaliReward, make_reward
from .transforms import OnBadSample

RenoInput = Literal["clip", "pixels"]


class RenoLoss:
    """`loss(image, prompt) -> scalar tensor`: 1 - score, or the shortfall below a target.

    Args:
        weighting: What ReNO multiplies the loss by.
        model: As for `RaliReward`.
        device: As for `RaliReward`.
        target: None, or the score at which the loss becomes 0.
        image_input: `"clip"` for images as ReNO gives them, normalised with CLIP's constants; `"pixels"` for [0, 1].
        on_error: How to handle a bad sample, as for `RaliReward`; with `"nan"` it is left out of the mean.

    Attributes:
        name: The name that ReNO logs it under.
        weighting: As given.

    Raises:
        ValueError: An unknown `image_input`.
    """

    def __init__(
        self,
        weighting: float = 1.0,
        *,
        model: RaliReward | RaliScorer | str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        target: float | None = None,
        image_input: RenoInput = "clip",
        on_error: OnBadSample | None = None,
    ) -> None:
        if image_input not in get_args(RenoInput):
            raise ValueError(f"image_input must be one of {', '.join(get_args(RenoInput))}, got {image_input!r}")
        self.name = "RALI"
        self.weighting = weighting
        self.target = target
        self._reward = make_reward(model, device=device, on_error=on_error)
        self._image_input = image_input

    def __call__(self, image: Tensor, prompt: str) -> Tensor:
        """The loss, mean over the batch, with a gradient to the image.

        Args:
            image: (B, 3, H, W).
            prompt: Ignored, because the score does not depend on the prompt.

        Raises:
            TypeError, ValueError: As for `RaliModel.forward`.
        """
        del prompt
        pixels = image
        if self._image_input == "clip":
            values = image.float()
            pixels = values * values.new_tensor(CLIP_STD).view(3, 1, 1) + values.new_tensor(CLIP_MEAN).view(3, 1, 1)
            if pixels.detach().min() < -0.5 or pixels.detach().max() > 1.5:
                raise ValueError(
                    "expected an image normalised with CLIP's constants; for [0, 1] say image_input='pixels'"
                )
            pixels = pixels.clamp(0.0, 1.0)  # bicubic resizing overshoots at edges
        scores = self._reward.differentiable(pixels)
        losses = 1.0 - scores if self.target is None else (self.target - scores).clamp_min(0.0)
        return losses.nanmean().to(image.device)
