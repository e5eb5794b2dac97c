"""Gradients through models whose weights were made under `torch.inference_mode()`.

ComfyUI runs all nodes in inference mode, so the weights that its loaders make are "inference tensors", which autograd
refuses to save for the backward pass. For the duration of one call they are replaced by copies that it accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def input_gradient(modules: Sequence[nn.Module], function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of the sum of `function(x)` to `x`, in or out of inference mode.

    Args:
        modules: The modules that the function uses; their weights get no gradient and are not changed.
        function: From (B, ...) to any shape.
        x: (B, ...) floating point.

    Returns:
        (B, ...) a normal tensor.

    Example:
        >>> with torch.inference_mode():
        ...     layer = nn.Linear(2, 1)
        ...     gradient = input_gradient([layer], layer, torch.ones(3, 2))
        >>> torch.equal(gradient, layer.weight.clone().expand(3, 2))
        True
    """
    with torch.inference_mode(False), torch.enable_grad():
        holder = _Holder(modules, function)
        named = [*holder.named_parameters(), *holder.named_buffers()]
        copies = {name: tensor.detach().clone() for name, tensor in named if tensor.is_inference()}
        point = x.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional_call(holder, copies, (point,)).sum(), point)
    made: Tensor = gradient
    return made


class _Holder(nn.Module):
    """Modules and a function that uses them, as one module whose weights can be replaced."""

    def __init__(self, modules: Sequence[nn.Module], function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)
