"""Where to compute, and in which arithmetic: devices by name, the fastest precision, mixed precision for training.

int8 was tried and rejected: with dynamic quantisation of the blocks' linear layers (8-bit weights with a scale per
output, inputs rounded per token, oneDNN's products) scores of the bundled model moved by up to 0.05 on 24 photographs
and SRCC with float32 fell to 0.98, for a gain of a tenth to a third; see `docs/experiments.md`.
"""

from __future__ import annotations

import copy
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .constants import Precision
from .vision_transformer import ClipEncoder, DinoEncoder

CPU = torch.device("cpu")

ASYNCHRONOUS = frozenset({"cuda"})
"""Types of devices to which small tensors of pageable memory can be copied without waiting for the device's queue."""

AUTO = "auto"
"""CUDA if available, else the CPU. Apple's GPU has to be named: training was not tested there."""

MIN_GAIN = 1.1
"""16 bits are chosen only if they are this much faster than float32; less is within the probe's noise."""

PROBE_ROUNDS = 20
PROBE_SECONDS = 0.4
"""Rounds of the probe, and the time in seconds after which no further round begins; there are always two."""
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Linux's names of the instructions on x86 and Arm. Without them bfloat16 took ten times as long as float32."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in main memory, copied to a device without waiting for what is computed there, where that is possible.

    torch's own copy to a GPU ends when all that was queued before it has ended.
    """
    return tensor.to(device, non_blocking=device.type in ASYNCHRONOUS)


def narrowest_precision(device: torch.device) -> Precision:
    """The alternative of `fastest_precision` to float32; models are loaded in it, then again if float32 wins."""
    if device.type == "cuda":
        return "float16"
    return "bfloat16" if device.type == "cpu" and has_bf16_instructions() else "float32"


def fastest_precision(encoder: nn.Module, device: torch.device) -> Precision:
    """The fastest precision of an encoder on this machine, measured on one of its blocks.

    Args:
        encoder: In any floating dtype, on the CPU.
        device: Where it will run.

    Returns:
        float16 on a CUDA device; bfloat16 on a CPU if a block of a plain vision transformer was at least 1.1 times
        as fast as in float32; else float32.
    """
    narrowest = narrowest_precision(device)
    if narrowest != "bfloat16":
        return narrowest
    block, positions = _first_block(encoder)
    if block is None or positions is None:
        return "float32"
    tokens = torch.randn(1, *positions.shape[-2:], generator=torch.Generator().manual_seed(0))
    blocks = [copy.deepcopy(block).float(), copy.deepcopy(block).bfloat16()]
    wide, narrow = _fastest_seconds(blocks, [tokens, tokens.bfloat16()])
    return "bfloat16" if wide >= MIN_GAIN * narrow else "float32"


def _first_block(encoder: nn.Module) -> tuple[nn.Module | None, Tensor | None]:
    """A block of a plain vision transformer, and the position embeddings, whose shape its input has."""
    if isinstance(encoder, ClipEncoder):
        return encoder.transformer.resblocks[0], encoder.positional_embedding
    if isinstance(encoder, DinoEncoder):
        return encoder.trunk.blocks[0], encoder.trunk.select_patches(encoder.trunk.pos_embed)
    return None, None


def _fastest_seconds(blocks: list[nn.Module], inputs: list[Tensor]) -> list[float]:
    """Each block's fastest run on its own input; the blocks take turns, so that other load slows all of them."""
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
    """Whether the processor multiplies bfloat16 in hardware, as far as Linux reports it; False on other systems."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not BF16_FLAGS.isdisjoint(flags.split())


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, tested with one small sum; None is the fastest that works here, else the CPU.

    Args:
        device: A name such as `cpu`, `cuda`, `cuda:1`, `xpu`, `mps`, any other that this torch knows, or `directml`
            (with the package torch-directml). None tries CUDA, Intel's and Apple's GPUs and whatever accelerator
            torch names.

    Raises:
        ValueError: There is no such device, or it cannot be used here; one line says why.
    """
    if device is None:
        return next((chosen for chosen in map(torch.device, _accelerators()) if _problem(chosen) is None), CPU)
    if str(device).split(":")[0] in ("directml", "dml"):
        return _directml(str(device))
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; examples: cpu, cuda, cuda:1, mps, xpu") from error
    if chosen.type == "meta":
        raise ValueError("device 'meta' computes nothing; examples: cpu, cuda, cuda:1, mps, xpu")
    if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"device {str(chosen)!r} is not available: torch sees {torch.cuda.device_count()} CUDA device(s)"
        )
    problem = _problem(chosen)
    if problem is not None:
        raise ValueError(f"device {str(chosen)!r} is not available on this machine: {problem}")
    return chosen


def _accelerators() -> list[str]:
    """Types of device besides the CPU that torch reports, the usual ones first."""
    xpu = getattr(torch, "xpu", None)
    here = {
        "cuda": torch.cuda.is_available(),
        "xpu": xpu is not None and xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    names = [name for name, available in here.items() if available]
    accelerator = getattr(torch, "accelerator", None)  # from torch 2.6 on
    if accelerator is not None and accelerator.is_available():
        current = accelerator.current_accelerator()
        names += [current.type] if current is not None and current.type not in here else []
    return names


def _problem(device: torch.device) -> str | None:
    """Why a device cannot be used, in one line; None if it can."""
    if device.type == "cpu":
        return None
    try:
        total = float(torch.ones(2, device=device).sum().cpu())
    except Exception as error:  # each type of device raises its own errors
        lines = str(error).strip().splitlines()
        return (lines[0] if lines else type(error).__name__)[:200]
    return None if total == 2.0 else "it computes 1 + 1 wrongly"


def _directml(name: str) -> torch.device:
    try:
        package = import_module("torch_directml")
    except ImportError as error:
        raise ValueError(f"device {name!r} needs the package torch-directml (Windows)") from error
    index = name.partition(":")[2]
    if index and not index.isdigit():
        raise ValueError(f"unknown device {name!r}; examples: directml, directml:1")
    chosen: torch.device = package.device(int(index)) if index else package.device()
    return chosen


def without_gradient(device: torch.device) -> Any:
    """A context without gradients: `torch.inference_mode`, but `torch.no_grad` on DirectML, which lacks the former."""
    return torch.no_grad() if device.type == "privateuseone" else torch.inference_mode()


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
    """bfloat16 autocast if requested and supported in hardware; on other CPUs it is far slower than float32."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=wanted and torch.cuda.is_bf16_supported())
    in_hardware = device.type == "cpu" and has_bf16_instructions()
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted and in_hardware)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that any device ran out of memory."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate" in text)
