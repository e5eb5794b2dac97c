"""A reward for flow_grpo (`yifan123/flow_grpo`).

Its `rewards.multi_score(device, {"rali": 1.0})` looks a name up in a dictionary of factories, hands the factory the
device where the factory has an argument of that name, and calls what comes back as
`fn(images, prompts, metadata) -> (scores, info)`. So one line there is enough: `"rali": flow_grpo_score,`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scorer import RaliScorer
from .core import RaliReward, make_reward
from .transforms import OnBadSample, Transform


class FlowGrpoReward:
    """`fn(images, prompts, metadata) -> (scores, info)`; picklable, and may be called from a thread pool.

    Args:
        reward: The reward that it adapts.
    """

    def __init__(self, reward: RaliReward) -> None:
        self.reward = reward

    def __call__(
        self, images: Tensor | NDArray[np.uint8], prompts: Sequence[str], metadata: Any
    ) -> tuple[list[float], dict[str, Any]]:
        """Score a batch.

        Args:
            images: (N, 3, H, W) float tensor in [0, 1], or (N, H, W, 3) uint8 array.
            prompts: N prompts; ignored, because the score does not depend on the prompt.
            metadata: Ignored.

        Returns:
            N rewards, and an empty dictionary.

        Raises:
            ValueError: Images of another form, or a different number of prompts.
        """
        del metadata
        if images.ndim != 4:
            raise ValueError(f"expected a batch of images, (N, 3, H, W) or (N, H, W, 3), got {tuple(images.shape)}")
        if len(prompts) != len(images):
            raise ValueError(f"expected a prompt for each of {len(images)} images, got {len(prompts)}")
        return self.reward(images), {}


def flow_grpo_score(
    device: str | torch.device | None = None,
    *,
    model: RaliReward | RaliScorer | str | os.PathLike[str] | None = None,
    transforms: Sequence[Transform] = (),
    on_error: OnBadSample | None = None,
) -> FlowGrpoReward:
    """The factory for flow_grpo's dictionary of rewards.

    Args:
        device: Where to score; flow_grpo gives its accelerator's device.
        model: As for `RaliReward`.
        transforms: Applied to each batch's scores.
        on_error: How to handle a bad sample, as for `RaliReward`.
    """
    return FlowGrpoReward(make_reward(model, device=device, transforms=transforms, on_error=on_error))
