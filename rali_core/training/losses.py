"""Terms that compare predicted with human scores, beside the mean squared error of RALI's stage 3."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

SMOOTH_L1_BETA = 0.1
"""Error from which on the loss grows linearly, in units of the score."""
ORDER_MARGIN_PER_LEVEL = 0.03
"""How much lower each stronger distortion level should score."""
RANK_TEMPERATURE = 0.1
"""Difference of two scores at which the ranking term takes their order as fairly sure."""


def plcc_loss(predicted: Tensor, human: Tensor) -> Tensor:
    """1 - Pearson's correlation over the batch, 0 (best) to 2; both (B,). The scale of `human` does not matter."""
    x, y = predicted - predicted.mean(), human - human.mean()
    loss: Tensor = 1 - (x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-8)
    return loss


def rank_loss(predicted: Tensor, human: Tensor) -> Tensor:
    """Mean logistic loss over all pairs that people scored differently.

    Source: RankNet, Burges et al., ICML 2005. Only the order of `human` matters, not its scale.

    Args:
        predicted: (B,) scores of the model.
        human: (B,) human scores.

    Returns:
        (), 0 (best) or more; 0 where all human scores are equal.
    """
    better = human[:, None] > human[None, :]
    margin = (predicted[:, None] - predicted[None, :]) / RANK_TEMPERATURE
    loss: Tensor = (functional.softplus(-margin) * better).sum() / better.sum().clamp_min(1)
    return loss
