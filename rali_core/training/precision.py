"""Mixed precision where the processor has it."""

from __future__ import annotations

import torch


def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies in bfloat16 by instructions of its own; elsewhere it is several times slower."""
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return probe is not None and bool(probe())


def training_autocast(*, wanted: bool = True) -> torch.autocast:
    """bfloat16 autocast on the CPU where it is wanted and faster than float32; does nothing elsewhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted and has_bfloat16_units())
