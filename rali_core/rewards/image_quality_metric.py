"""Mean quality over a data set, as a torchmetrics metric."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ..scorer import Images, RaliScorer
from .core import RaliReward, make_reward
from .transforms import OnBadSample

try:
    from torchmetrics import Metric
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "RaliImageQuality needs torchmetrics: pip install 'rali-score[diffusers]'", name="torchmetrics"
    ) from missing


UNITS = 2**32


class RaliImageQuality(Metric):
    """The mean score of all images so far.

    The state is two integers, the scores' sum in units of 2^-32 and their count, so that processes (DDP) can be
    reduced in any order, on any device.

    Args:
        model: As for `RaliReward`.
        device: Where to score, as for `RaliReward`; the metric's own `.to()` moves its sums only.
        on_error: How to handle a bad sample, as for `RaliReward`; with `"nan"` it is not counted.
        kwargs: torchmetrics' own settings.

    Examples:
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
        on_error: OnBadSample | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._reward = make_reward(model, device=device, on_error=on_error)
        # Integers: the mean must not depend on how the images were spread over batches and processes, and
        # float64 does not exist on every device.
        self.add_state("total", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Images) -> None:
        """Add images, in any form that `RaliScorer.score` takes.

        Raises:
            TypeError, ImageError: An image cannot be used; then none of this call counts.
        """
        scores = self._reward.tensor(images)  # on the CPU
        scores = scores[torch.isfinite(scores)].double()
        self.total += (scores * UNITS).round().long().sum().to(self.total)
        self.count += len(scores)

    def compute(self) -> Tensor:
        """() float32 mean score.

        Raises:
            ValueError: No image was added.
        """
        if self.count == 0:
            raise ValueError("no image was added: call update first")
        mean = int(self.total) / UNITS / int(self.count)
        return torch.tensor(mean, dtype=torch.float32, device=self.total.device)
