"""Which arithmetic of the image tower a machine is fastest at.

Not among them is int8. Dynamic quantisation of the blocks' linear layers (8-bit weights with a scale per output, inputs
rounded per token, oneDNN's products) was tried on the bundled model: on 24 photographs scores moved by up to 0.05 and
SRCC with float32 fell to 0.98, for a gain of a tenth to a third; see `docs/benchmarks.md`.
"""

from __future__ import annotations

import copy
import platform
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .vision_transformer import ClipTower, DinoTower

Precision = Literal["float32", "bfloat16", "float16"]

MIN_GAIN = 1.1
"""Fewer bits are chosen only where they are this much faster than float32; less is within what a probe can tell."""

PROBE_ROUNDS = 3
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""As Linux names the instructions on x86 and Arm; elsewhere bfloat16 is computed piecemeal, ten times slower."""


def _blocks(tower: nn.Module) -> Any:
    if isinstance(tower, ClipTower):
        return tower.transformer.resblocks
    return tower.trunk.blocks if isinstance(tower, DinoTower) else None


def fastest_precision(tower: nn.Module, device: torch.device) -> Precision:
    """What a tower runs fastest in on this machine, tried on one of its blocks.

    Args:
        tower: In float32, on the CPU.
        device: Where it is to run.

    Returns:
        float16 on a CUDA device; bfloat16 on a CPU where a block of a plain vision transformer was at least 1.1 times
        as fast as in float32; else float32.
    """
    if device.type == "cuda":
        return "float16"
    blocks = _blocks(tower) if device.type == "cpu" else None
    if blocks is None:
        return "float32"
    positions = tower.positional_embedding if isinstance(tower, ClipTower) else tower.trunk.pos_embed[0]  # type: ignore[union-attr,index]
    tokens = torch.randn(1, *positions.shape, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    if not has_bf16_instructions():
        return "float32"
    narrow = _block_seconds(copy.deepcopy(blocks[0]).bfloat16(), tokens.bfloat16())
    return "bfloat16" if _block_seconds(blocks[0], tokens) >= MIN_GAIN * narrow else "float32"


def _block_seconds(block: nn.Module, tokens: Tensor) -> float:
    times = []
    with torch.inference_mode():
        block(tokens)
        for _ in range(PROBE_ROUNDS):
            begun = time.perf_counter()
            block(tokens)
            times.append(time.perf_counter() - begun)
    return min(times)  # other work on the machine only ever adds


def has_bf16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 in hardware, as far as the system tells."""
    if platform.system() == "Darwin":
        return False  # Apple's processors from the M2 on can, but torch's kernels do not use it
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not BF16_FLAGS.isdisjoint(flags.split())
