"""Where a training computes, and mixed precision where the processor has it."""

from __future__ import annotations

import torch
from torch import nn

from ..precision import has_bf16_instructions
from ..scorer import choose_device

AUTO = "auto"
"""CUDA where there is a GPU of its kind, else the CPU. Apple's has to be asked for: training was not tried there."""


def training_device(name: str) -> torch.device:
    """The device of a name such as `"cpu"` or `"cuda:1"`; `"auto"` chooses.

    Raises:
        ValueError: There is no such device.
    """
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return choose_device(name)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next(module.parameters()).device


def training_autocast(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """bfloat16 autocast where it is wanted and done in hardware; on other CPUs it is far slower than float32."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=wanted and torch.cuda.is_bf16_supported())
    in_hardware = device.type == "cpu" and has_bf16_instructions()
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted and in_hardware)
