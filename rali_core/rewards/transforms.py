"""Transforms of a batch of scores before a trainer sees them: (N,) to (N,), higher stays better.

A trainer that follows a score without limit ends in images that only the scorer likes. `Clip` removes the incentive
beyond a value; `Ranks` keeps only the order within the batch; `Standardise` puts rewards of
different units on one scale before they are added. The last two depend on the batch: use them where the trainer
compares samples within it (GRPO does), not for an absolute measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Transform: TypeAlias = Callable[[Tensor], Tensor]
OnBadSample: TypeAlias = Literal["raise", "nan"] | float
"""How to handle a sample that cannot be scored: raise, or use NaN or this number as its reward."""


@dataclass(frozen=True)
class Clip:
    """Limit scores to [low, high]; with a gradient of 0 outside.

    Examples:
        >>> Clip(low=0.2, high=0.8)(torch.tensor([0.1, 0.5, 0.9]))
        tensor([0.2000, 0.5000, 0.8000])
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("Clip needs low, high or both")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")

    def __call__(self, scores: Tensor) -> Tensor:
        """(N,) scores, limited."""
        return scores.clamp(self.low, self.high)


@dataclass(frozen=True)
class Ranks:
    """Replace scores by their rank in the batch: 0 for the lowest to 1 for the highest, equal scores share the mean
    rank.

    Examples:
        >>> Ranks()(torch.tensor([0.3, 0.9, 0.3]))
        tensor([0.2500, 1.0000, 0.2500])
    """

    def __call__(self, scores: Tensor) -> Tensor:
        """(N,) ranks in [0, 1]; 0.5 for a single score. No gradient."""
        values = scores.detach()
        if len(values) < 2:
            return torch.full_like(values, 0.5)
        lower = (values[None, :] < values[:, None]).sum(dim=1)
        equal = (values[None, :] == values[:, None]).sum(dim=1)
        return (lower + (equal - 1) / 2).to(values.dtype) / (len(values) - 1)


@dataclass(frozen=True)
class Standardise:
    """Shift and scale the batch's scores to mean 0 and standard deviation 1.

    Attributes:
        epsilon: Added to the standard deviation, so that a batch of equal scores becomes 0 instead of NaN.

    Examples:
        >>> Standardise(epsilon=0.0)(torch.tensor([1.0, 3.0]))
        tensor([-1.,  1.])
    """

    epsilon: float = 1e-4

    def __call__(self, scores: Tensor) -> Tensor:
        """(N,) standardised scores."""
        return (scores - scores.mean()) / (scores.std(unbiased=False) + self.epsilon)


def check_on_error(on_error: OnBadSample) -> OnBadSample:
    """Check the setting and return it.

    Raises:
        ValueError: It is neither `"raise"`, `"nan"` nor a finite number.
    """
    number = isinstance(on_error, int | float) and not isinstance(on_error, bool) and math.isfinite(on_error)
    if on_error not in ("raise", "nan") and not number:
        raise ValueError(
            f"on_error must be 'raise', 'nan' or a finite number (the reward of a bad sample), got {on_error!r}"
        )
    return on_error


def apply_all(transforms: Iterable[Transform], scores: Tensor, on_error: OnBadSample = "raise") -> Tensor:
    """Apply transforms in order.

    Args:
        transforms: What to apply.
        scores: (N,) scores; NaN or infinite for bad samples.
        on_error: `"raise"`; or the reward of bad samples: NaN, or a number. They are then left out of the transforms
            (a bad sample shifts neither ranks nor means), and the number is not transformed.

    Returns:
        (N,) rewards, with a gradient where the scores have one.

    Raises:
        ValueError: The scores are not finite, with `on_error="raise"`.
    """
    transforms = tuple(transforms)
    finite = torch.isfinite(scores.detach())
    if not finite.all():
        if on_error == "raise":
            raise ValueError(f"a score is not finite: {scores.detach().tolist()}")
        value = math.nan if on_error == "nan" else float(on_error)
        good = apply_all(transforms, scores[finite]) if finite.any() else scores[finite]
        return torch.full_like(scores.detach(), value, dtype=good.dtype).masked_scatter(finite, good)
    for transform in transforms:
        scores = transform(scores)
    return scores
