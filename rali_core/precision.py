"""Arithmetic of the image tower in fewer bits than float32, and which of them a machine is fastest at.

int8 here is dynamic quantisation: the weights of the blocks' linear layers are kept in 8 bits with a scale per output,
and each token that goes into such a layer is rounded to 8 bits with a scale of its own. Attention, norms, the patch
embedding, the last block and the head stay in float32. The products are oneDNN's, which comes with torch.
"""

from __future__ import annotations

import copy
import platform
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .vision_transformer import ClipAttention, ClipTower, DinoAttention, DinoTower, attend

Precision = Literal["float32", "bfloat16", "float16", "int8"]

MIN_GAIN = 1.1
"""Fewer bits are chosen only where they are this much faster than float32; less is within what a probe can tell."""

PROBE_ROUNDS = 3

LEVELS = 256
GELU_LOWEST = -0.171
"""GELU's minimum is -0.16997, QuickGELU's -0.16363."""

TINY = 1e-20
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""As Linux names the instructions on x86 and Arm; elsewhere bfloat16 is computed piecemeal, ten times slower."""


class QuantizedLinear(nn.Module):
    """A linear layer with 8-bit weights, for inference on a CPU; its input is rounded to `LEVELS` levels per row.

    Args:
        weight: (N, M).
        bias: (N,).
        lowest: A lower bound of all inputs, where there is one close to 0; the levels then start there. Without it they
            lie on both sides of 0.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, lowest: float | None = None) -> None:
        super().__init__()
        values = weight.detach().float()
        self.scales = values.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127.0
        whole = (values / self.scales.unsqueeze(1)).round().to(torch.int8)
        self.zeros = torch.zeros(len(values), dtype=torch.int32)
        self.lowest = lowest
        shift = 0.0 if lowest is None else lowest * whole.float().sum(dim=1) * self.scales
        self.bias = bias.detach().float() + shift
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., M) float32 to (..., N) float32.

        Raises:
            RuntimeError: A gradient is asked for.
        """
        if inputs.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("an int8 tower has no gradient: load the model with dtype='float32'")
        rows = inputs.flatten(0, -2)
        if self.lowest is None:
            zero = LEVELS // 2
            steps = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True) / (zero - 1)
            offset = torch.tensor(zero + 0.5)
        else:
            zero = 0
            steps = (rows.amax(dim=1, keepdim=True) - self.lowest) / (LEVELS - 1)
            offset = 0.5 - self.lowest / steps.clamp_min(TINY)
        steps = steps.clamp_min(TINY)
        levels = torch.addcmul(offset, rows, steps.reciprocal()).to(
            torch.uint8
        )  # the half rounds: no level is negative
        sums = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, zero, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        result: Tensor = torch.addcmul(self.bias, sums, steps).view(*inputs.shape[:-1], -1)
        return result


class QuantizedAttention(nn.Module):
    """Self-attention whose linear layers have 8-bit weights."""

    def __init__(self, attention: ClipAttention | DinoAttention) -> None:
        super().__init__()
        if isinstance(attention, ClipAttention):
            self.heads = attention.heads
            self.qkv = QuantizedLinear(attention.in_proj_weight, attention.in_proj_bias)
            last = attention.out_proj
        else:
            self.heads = attention.num_heads
            self.qkv = QuantizedLinear(attention.qkv.weight, attention.qkv.bias)
            last = attention.proj
        self.proj = QuantizedLinear(last.weight, last.bias)

    def forward(self, tokens: Tensor, *, first_only: bool = False) -> Tensor:
        """(B, N, W) to (B, N, W); `first_only` is for the last block, which is not turned to int8."""
        if first_only:
            raise ValueError("the last block of a tower stays in float32")
        attended: Tensor = self.proj(attend(tokens, lambda part, _: self.qkv(part), self.heads, first_only=False))
        return attended


def _blocks(tower: nn.Module) -> Any:
    if isinstance(tower, ClipTower):
        return tower.transformer.resblocks
    return tower.trunk.blocks if isinstance(tower, DinoTower) else None


def quantize_block(block: Any) -> None:
    """Replace the linear layers of a block of a plain vision transformer, in place."""
    block.attn = QuantizedAttention(block.attn)
    (name, first), (last_name, last) = ((n, m) for n, m in block.mlp.named_children() if isinstance(m, nn.Linear))
    setattr(block.mlp, name, QuantizedLinear(first.weight, first.bias))
    setattr(block.mlp, last_name, QuantizedLinear(last.weight, last.bias, lowest=GELU_LOWEST))


def quantize_tower(tower: nn.Module) -> None:
    """Turn a tower's blocks, but for the last one, to int8, in place.

    Raises:
        ValueError: It is not a plain vision transformer on a CPU, or was turned before.
    """
    blocks = _blocks(tower)
    if blocks is None:
        raise ValueError("int8 is there for plain vision transformers, and this model's tower is another: use float32")
    if not has_int8_kernels():
        raise ValueError("this build of torch has no int8 products for the processor (oneDNN): use float32")
    if next(tower.parameters()).device.type != "cpu":
        raise ValueError("int8 is there for the CPU: use bfloat16 or float16 on a GPU")
    if any(isinstance(block.attn, QuantizedAttention) for block in blocks):
        raise ValueError("the tower is in int8 already: load the model again")
    tower.float()
    for block in blocks[:-1]:
        quantize_block(block)


def fastest_precision(tower: nn.Module, device: torch.device) -> Precision:
    """What a tower runs fastest in on this machine, tried on one of its blocks.

    Args:
        tower: In float32, on the CPU.
        device: Where it is to run.

    Returns:
        bfloat16 on a CUDA device with the arithmetic for it, and on a CPU where a block of a plain vision transformer
        was at least 1.1 times as fast as in float32; else float32. Never int8: its scores are too far off.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
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


def has_int8_kernels() -> bool:
    """Whether torch was built with oneDNN's int8 products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


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
