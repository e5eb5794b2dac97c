"""Where to compute, and in which arithmetic: devices by name, the fastest precision, mixed precision for training.

int8 was tried and rejected: with dynamic quantisation of the blocks' linear layers (8-bit weights with a scale per
output, inputs rounded per token, oneDNN's products) scores of the bundled model moved by up to 0.05 on 24 photographs
and SRCC with float32 fell to 0.98, for a gain of a tenth to a third; see `bench/notes.md`.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .vision_transformer import ClipTower, DinoTower

Precision = Literal["float32", "bfloat16", "float16"]

AUTO = "auto"
"""CUDA where there is a GPU of its kind, else the CPU. Apple's has to be asked for: training was not tried there."""

MIN_GAIN = 1.1
"""Fewer bits are chosen only where they are this much faster than float32; less is within what a probe can tell."""

PROBE_ROUNDS = 20
PROBE_SECONDS = 0.4
"""How often a block is tried in either, and after how long no further round begins; two are made in any case."""
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""As Linux names the instructions on x86 and Arm. Without them bfloat16 took ten times as long as float32."""


def narrowest_precision(device: torch.device) -> Precision:
    """What `fastest_precision` may choose besides float32; models are loaded in it, and again where float32 wins."""
    if device.type == "cuda":
        return "float16"
    return "bfloat16" if device.type == "cpu" and has_bf16_instructions() else "float32"


def fastest_precision(tower: nn.Module, device: torch.device) -> Precision:
    """What a tower runs fastest in on this machine, tried on one of its blocks.

    Args:
        tower: In any floating dtype, on the CPU.
        device: Where it is to run.

    Returns:
        float16 on a CUDA device; bfloat16 on a CPU where a block of a plain vision transformer was at least 1.1 times
        as fast as in float32; else float32.
    """
    narrowest = narrowest_precision(device)
    if narrowest != "bfloat16":
        return narrowest
    block, positions = _first_block(tower)
    if block is None or positions is None:
        return "float32"
    tokens = torch.randn(1, *positions.shape[-2:], generator=torch.Generator().manual_seed(0))
    blocks = [copy.deepcopy(block).float(), copy.deepcopy(block).bfloat16()]
    wide, narrow = _fastest_seconds(blocks, [tokens, tokens.bfloat16()])
    return "bfloat16" if wide >= MIN_GAIN * narrow else "float32"


def _first_block(tower: nn.Module) -> tuple[nn.Module | None, Tensor | None]:
    """A block of a plain vision transformer, and the position embeddings, whose shape its input has."""
    if isinstance(tower, ClipTower):
        return tower.transformer.resblocks[0], tower.positional_embedding
    if isinstance(tower, DinoTower):
        return tower.trunk.blocks[0], tower.trunk.keep_own(tower.trunk.pos_embed)
    return None, None


def _fastest_seconds(blocks: list[nn.Module], inputs: list[Tensor]) -> list[float]:
    """Of each block its fastest run on its own input; they take turns, so that other work slows all of them."""
    fastest = [float("inf")] * len(blocks)
    with torch.inference_mode():
        for block, tokens in zip(blocks, inputs, strict=True):
            block(tokens)
        begun = time.perf_counter()
        for number in range(PROBE_ROUNDS):
            if number >= 2 and time.perf_counter() - begun > PROBE_SECONDS:
                break
            for place, (block, tokens) in enumerate(zip(blocks, inputs, strict=True)):
                started = time.perf_counter()
                block(tokens)
                fastest[place] = min(fastest[place], time.perf_counter() - started)
    return fastest


def has_bf16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 in hardware, as far as Linux tells; False on other systems."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not BF16_FLAGS.isdisjoint(flags.split())


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None is the GPU where there is one (CUDA, then Apple's), else the CPU.

    Raises:
        ValueError: There is no such device here.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; examples: cpu, cuda, cuda:1, mps") from error
    if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"device {str(chosen)!r} is not available: torch sees {torch.cuda.device_count()} CUDA device(s)"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available on this machine")
    return chosen


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
