"""Several rewards as one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..lazy import DEPRECATED
from .transforms import OnBadSample, Ranks, Standardise, Transform, apply_all, check_on_error

Normalisation = Literal["none", "z-score", "rank"]
Reward: TypeAlias = Callable[[Any], Sequence[float]]
_TRANSFORMS: dict[str, tuple[Transform, ...]] = {"none": (), "z-score": (Standardise(),), "rank": (Ranks(),)}
_OLD_NAMES = {"standardise": "z-score", "ranks": "rank"}
"""Of version 0.1."""


@dataclass(frozen=True)
class CombinedReward:
    """A weighted sum of rewards: `reward(images) -> list[float]`.

    Attributes:
        rewards: By name, each with its weight; each is called as `reward(images)` and gives a number per image.
        normalise: How each reward's batch is normalised before it is weighted: `"none"` where all share a scale (then
            the sum is absolute); `"z-score"` (`Standardise`) or `"rank"` (`Ranks`) where they do not.
        on_error: How to handle an image with a reward that is not finite: `"raise"`; or its sum is NaN (`"nan"`) or
            this number, and it is left out of the normalisation.

    Raises:
        ValueError: No reward, a weight that is not finite, or an unknown normalisation.

    Examples:
        >>> bright = lambda images: [0.2, 0.8]
        >>> sharp = lambda images: [30.0, 10.0]
        >>> CombinedReward({"bright": (bright, 1.0), "sharp": (sharp, 0.5)}, normalise="rank")(["a", "b"])
        [0.5, 1.0]
    """

    rewards: Mapping[str, tuple[Reward, float]]
    normalise: Normalisation = "none"
    on_error: OnBadSample = "raise"

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("expected at least one reward")
        for name, (_, weight) in self.rewards.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name} must be finite, got {weight}")
        check_on_error(self.on_error)
        if self.normalise in _OLD_NAMES:
            new = _OLD_NAMES[self.normalise]
            warnings.warn(DEPRECATED.format(old=f"normalise={self.normalise!r}", new=repr(new)), DeprecationWarning, 3)
            object.__setattr__(self, "normalise", new)
        if self.normalise not in get_args(Normalisation):
            raise ValueError(f"normalise must be one of {', '.join(get_args(Normalisation))}, got {self.normalise!r}")

    def __call__(self, images: Any) -> list[float]:
        """The weighted sum for each image."""
        return [float(value) for value in self.parts(images)[1]]

    def parts(self, images: Any) -> tuple[dict[str, list[float]], Tensor]:
        """Each reward as it was given, by name, and the weighted sum (N,).

        Raises:
            ValueError: The rewards are not finite, or not as many for each name.
        """
        raw = {name: [float(value) for value in reward(images)] for name, (reward, _) in self.rewards.items()}
        counts = {name: len(values) for name, values in raw.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"expected as many rewards from each, got {counts}")
        # float64 on the CPU, wherever torch puts new tensors by default.
        values = {name: torch.tensor(raw[name], dtype=torch.float64, device="cpu") for name in raw}
        weighted = [
            weight
            * apply_all(_TRANSFORMS[self.normalise], values[name], "raise" if self.on_error == "raise" else "nan")
            for name, (_, weight) in self.rewards.items()
        ]
        return raw, apply_all((), torch.stack(weighted).sum(dim=0), self.on_error)
