"""Mixed precision where the processor has it."""

from __future__ import annotations

import torch

from ..precision import has_bf16_instructions


def training_autocast(*, wanted: bool = True) -> torch.autocast:
    """bfloat16 autocast on the CPU where it is wanted and done in hardware; elsewhere it is far slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted and has_bf16_instructions())
