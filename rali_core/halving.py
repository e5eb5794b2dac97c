"""Successive halving: when candidates are compared, and how many are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .selection import top_k


@dataclass(frozen=True)
class SuccessiveHalving:
    """Drops the weaker candidates at some steps (Jamieson and Talwalkar, 2016).

    With the default, 16 candidates and 20 steps: 16 go to step 4, 8 to step 8, 4 to step 12 and 2 to the end, which is
    128 of 320 denoiser calls (40 %).

    Attributes:
        at: Where to compare, as ascending fractions of the denoising steps, each in (0, 1).
        keep_fraction: The fraction of the candidates that is kept, in (0, 1); rounded up, never fewer than are wanted
            at the end.
        vae: A cheaper decoder for the comparisons, such as an `AutoencoderTiny` of the same latent space; by default
            the pipeline's own VAE.

    Raises:
        ValueError: A fraction is out of range or `at` does not ascend.
    """

    at: tuple[float, ...] = (0.2, 0.4, 0.6)
    keep_fraction: float = 0.5
    vae: Any = None

    def __post_init__(self) -> None:
        fractions = tuple(float(value) for value in self.at)
        ascending = all(low < high for low, high in pairwise(fractions))
        if not fractions or not ascending or not all(0.0 < value < 1.0 for value in fractions):
            raise ValueError(f"at must be ascending fractions of the steps, each between 0 and 1, got {self.at!r}")
        if not 0.0 < self.keep_fraction < 1.0:
            raise ValueError(f"keep_fraction must lie between 0 and 1, got {self.keep_fraction!r}")
        object.__setattr__(self, "at", fractions)

    def rungs(self, steps: int) -> tuple[int, ...]:
        """0-based steps after which candidates are compared; fewer than `at` if steps coincide.

        Never the last step, where there is nothing left to save.
        """
        wanted = {max(1, round(fraction * steps)) - 1 for fraction in self.at}
        return tuple(sorted(step for step in wanted if step < steps - 1))

    def survivors(self, candidates: int, keep: int) -> int:
        """How many of `candidates` are kept when `keep` are wanted at the end."""
        return min(candidates, max(keep, math.ceil(candidates * self.keep_fraction)))

    def choose(self, scores: Sequence[float], keep: int) -> list[int]:
        """0-based indexes of the candidates that are kept, best first.

        Args:
            scores: One per candidate, of its preview; one that is not finite ranks last.
            keep: How many are wanted at the end.
        """
        ranked = [score if math.isfinite(score) else -math.inf for score in scores]
        return top_k(ranked, self.survivors(len(ranked), keep))
