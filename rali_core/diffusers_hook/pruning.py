"""Successive halving (when candidates are compared, how many go on) and the count of what that saves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class SuccessiveHalving:
    """Drop the weaker part of the candidates at some steps (Jamieson and Talwalkar, 2016).

    With the default, 16 candidates and 20 steps: 16 go to step 4, 8 to step 8, 4 to step 12 and 2 to the end, which is
    128 of 320 denoiser calls (40 %).

    Attributes:
        at: Where to compare, as ascending fractions of the denoising steps, each in (0, 1).
        keep_fraction: The part of the candidates that goes on, in (0, 1); rounded up, never fewer than are kept at
            the end.
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
        """0-based steps after which candidates are compared; fewer than `at` where steps fall together.

        The last step is never one: there is nothing left to save.
        """
        wanted = {max(1, round(fraction * steps)) - 1 for fraction in self.at}
        return tuple(sorted(step for step in wanted if step < steps - 1))

    def survivors(self, candidates: int, keep: int) -> int:
        """How many of `candidates` go on when `keep` are wanted at the end."""
        return min(candidates, max(keep, math.ceil(candidates * self.keep_fraction)))


_DENOISERS = ("unet", "transformer", "transformer_2", "decoder")
_INPUTS = ("sample", "hidden_states", "x")


class DenoiserCounter:
    """Counts the samples that pass through a pipeline's denoiser, as a context manager.

    One image's step counts 1 without classifier-free guidance and 2 with it, whether both halves go through the
    network together (Stable Diffusion) or one after the other (Flux with `true_cfg_scale`).

    Args:
        pipe: A pipeline; its `unet`, `transformer`, `transformer_2` and `decoder` are counted, whichever it has.

    Attributes:
        calls: Samples so far; None where the pipeline has none of these, or calls one in a way that does not tell how
            many samples there are. A figure that cannot be counted is never guessed.
    """

    def __init__(self, pipe: Any) -> None:
        candidates = [getattr(pipe, name, None) for name in _DENOISERS]
        self._modules = [module for module in candidates if isinstance(module, nn.Module)]
        self._handles: list[Any] = []
        self.calls: int | None = 0 if self._modules else None

    def __enter__(self) -> DenoiserCounter:
        self._handles = [module.register_forward_pre_hook(self._count, with_kwargs=True) for module in self._modules]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        if self.calls is None:
            return
        given = args[0] if args else next((kwargs[name] for name in _INPUTS if kwargs.get(name) is not None), None)
        # Z-Image hands its transformer a list with a tensor per sample.
        batched = isinstance(given, Tensor) and given.ndim > 0
        several = isinstance(given, list | tuple) and bool(given)
        self.calls = self.calls + len(given) if given is not None and (batched or several) else None
