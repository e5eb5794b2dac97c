"""Counting what the denoiser computes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_DENOISERS = ("unet", "transformer", "transformer_2")


class DenoiserCounter:
    """Counts the samples that pass through a pipeline's denoiser, as a context manager.

    One picture's step counts 1 without classifier-free guidance and 2 with it, whether both halves go through the
    network together (Stable Diffusion) or one after the other (Flux with `true_cfg_scale`).

    Args:
        pipe: A pipeline; its `unet`, `transformer` and `transformer_2` are counted, whichever it has.

    Attributes:
        calls: Samples so far; None where the pipeline has none of these.
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
        sample = next((value for value in (*args, kwargs.get("sample"), kwargs.get("hidden_states"))
                       if isinstance(value, Tensor)), None)  # fmt: skip
        if sample is None or self.calls is None:
            raise RuntimeError(f"cannot tell the batch size of a call of {type(module).__name__}")
        self.calls += len(sample)
