"""Mean quality over a data set, as a torchmetrics metric."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ..scorer import Images, RaliScorer
from .core import RaliReward, make_reward

try:
    from torchmetrics import Metric
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "RaliImageQuality needs torchmetrics: pip install 'rali-score[diffusers]'", name="torchmetrics"
    ) from missing


class RaliImageQuality(Metric):
    """The mean score of all images so far.

    Two sums are kept, so that processes can be joined in any order and of any sizes (DDP).

    Args:
        model: As for `RaliReward`.
        device: Where to score, as for `RaliReward`; the metric's own `.to()` moves its sums only.
        kwargs: torchmetrics' own settings.

    Example:
        >>> metric = RaliImageQuality()  # doctest: +SKIP
        >>> metric.update(torch.rand(4, 3, 64, 64))  # doctest: +SKIP
        >>> metric.compute()  # doctest: +SKIP
        tensor(0.31)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self,
        model: RaliReward | RaliScorer | str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._reward = make_reward(model, device=device)
        # float64: the mean must not depend on how the images were spread over batches and processes.
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Images) -> None:
        """Add images, in any form that `RaliScorer.score` takes.

        Raises:
            TypeError, ImageError: An image cannot be used; then none of this call counts.
        """
        scores = self._reward.tensor(images).double()
        self.total += scores.sum().to(self.total)
        self.count += len(scores)

    def compute(self) -> Tensor:
        """() float32 mean score.

        Raises:
            ValueError: No image was added.
        """
        if self.count == 0:
            raise ValueError("no image was added: call update first")
        return (self.total / self.count).float()
