"""Counts what pruning saves; when candidates are compared and how many are kept is in `halving`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..halving import SuccessiveHalving as SuccessiveHalving

_DENOISERS = ("unet", "transformer", "transformer_2", "decoder")
_INPUTS = ("sample", "hidden_states", "x")


class DenoiserCounter:
    """Counts the samples that pass through a pipeline's denoiser, as a context manager.

    One image's step counts 1 without classifier-free guidance and 2 with it, whether both halves go through the
    network together (Stable Diffusion) or one after the other (Flux with `true_cfg_scale`).

    Args:
        pipe: A pipeline; its `unet`, `transformer`, `transformer_2` and `decoder` are counted, whichever it has.

    Attributes:
        calls: Samples so far; None where the pipeline has none of these, or calls one in a way that hides the number
            of samples. A figure that cannot be counted is never guessed.
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
