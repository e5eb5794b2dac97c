"""A reward function for TRL's `DDPOTrainer` and `AlignPropTrainer` (in TRL up to 0.22)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..scorer import RaliScorer
from .core import RaliReward, make_reward
from .transforms import OnBadSample, Transform


class TrlReward:
    """`reward_function(images, prompts, metadata) -> (rewards, info)`.

    DDPO takes the rewards as numbers. AlignProp differentiates through them to the images
    (`loss = 10 - rewards.mean()`): give it `differentiable=True`.

    Args:
        model: As for `RaliReward`.
        device: As for `RaliReward`.
        transforms: Applied to each batch's scores.
        differentiable: Keep the gradient to the images.
        on_error: How to handle a bad sample, as for `RaliReward`.
    """

    def __init__(
        self,
        model: RaliReward | RaliScorer | str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        transforms: Sequence[Transform] = (),
        differentiable: bool = False,
        on_error: OnBadSample | None = None,
    ) -> None:
        self.reward = make_reward(model, device=device, transforms=transforms, on_error=on_error)
        self.differentiable = differentiable

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Score a batch.

        Args:
            images: (N, 3, H, W) in [0, 1], as the trainers' pipelines give them with `output_type="pt"`.
            prompts: N prompts; ignored, because the score does not depend on the prompt.
            metadata: Ignored.

        Returns:
            (N,) float32 rewards on the images' device, and an empty dictionary.

        Raises:
            ValueError: A different number of prompts than images, or images of another form.
        """
        del metadata
        if len(prompts) != len(images):
            raise ValueError(f"expected a prompt for each of {len(images)} images, got {len(prompts)}")
        rewards = self.reward.differentiable(images) if self.differentiable else self.reward.tensor(images)
        return rewards.to(images.device), {}
