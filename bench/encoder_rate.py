"""Which share of this machine's matrix rate an encoder's pass reaches, by dtype and batch, and where the rest goes.

    python bench/encoder_rate.py                        # on the CPU: the official encoder (random weights), the bundled
    python bench/encoder_rate.py --device cuda --batches 1 16 64 256 --dtypes bfloat16 float16
    python bench/encoder_rate.py --tiny                 # small models: does the script work?

The machine's rate is that of torch's own matrix product in the same arithmetic, the fastest of several square ones. The
encoder's operations are those of its matrix products, convolutions and attention as torch counts them
(`torch.utils.flop_counter`); a multiplication and an addition are two. Both are measured in turns in one run, and
what is printed are medians of the rounds' ratios. The table behind each model tells which operators the time of its
last batch went to.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from rali_core.benchmark import OFFICIAL_SHAPE, random_model
from rali_core.model import RaliModel
from rali_core.scorer import RaliScorer

TINY_SHAPE = {"image_size": 56, "layers": 2, "width": 64, "head_width": 32, "patch_size": 14}
SIDES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192)}
"""Sides of the matrices whose fastest product is the machine's rate."""
DTYPES = ("float32", "bfloat16")
BATCHES = (1, 8)
ROUNDS = 5
OPERATORS = 8
"""Operators in the table of where the time goes."""


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work()`, the device's queue empty before and after."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def matrix_rate(device: torch.device, dtype: torch.dtype, sides: Sequence[int]) -> float:
    """Operations per second of torch's matrix product, the fastest of these square sizes, one call each."""
    rates = []
    for side in sides:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates.append(2 * side**3 / seconds(lambda left=left, right=right: left @ right, device))  # type: ignore[misc]
    return max(rates)


def encoder_operations(model: RaliModel) -> int:
    """Operations of the encoder's matrix products, convolutions and attention for one image; float32, on the CPU."""
    size = model.preprocess_config.image_size
    # By plain products: the fused kernels' operations are counted by some versions of torch on some processors only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.encoder(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def measure_batch(
    model: RaliModel, operations: int, batch: int, *, sides: Sequence[int], rounds: int = ROUNDS
) -> dict[str, Any]:
    """Images per second and share of the matrix rate of one model at one batch.

    Args:
        model: On its device, its encoder in the arithmetic to be measured.
        operations: Of one image, `encoder_operations`.
        batch: Images per pass.
        sides: For `matrix_rate`.
        rounds: How often both are measured, after one round that does not count.
    """
    device, dtype = model.device, next(model.encoder.parameters()).dtype
    size = model.preprocess_config.image_size
    inputs = torch.randn(batch, 3, size, size, device=device).to(dtype)
    took, rates = [], []
    for number in range(rounds + 1):
        rate = matrix_rate(device, dtype, sides)
        passed = seconds(lambda: model.embed(inputs), device)
        if number:
            took.append(passed)
            rates.append(rate)
    shares = [batch * operations / one / rate for one, rate in zip(took, rates, strict=True)]
    return {
        "batch": batch, "images_per_s": batch / statistics.median(took), "gflop_per_s": statistics.median(rates) / 1e9,
        "share": statistics.median(shares),
    }  # fmt: skip


def find_operators(model: RaliModel, batch: int) -> list[dict[str, Any]]:
    """The operators that a pass spends most of its own time in: name, calls, share of the time."""
    size = model.preprocess_config.image_size
    inputs = torch.randn(batch, 3, size, size, device=model.device).to(next(model.encoder.parameters()).dtype)
    cuda = model.device.type == "cuda"
    activities = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        model.embed(inputs)
    events: list[Any] = list(profiler.key_averages())
    own = [(event.self_device_time_total if cuda else event.self_cpu_time_total, event) for event in events]
    total = sum(spent for spent, _ in own)
    most = sorted(own, key=lambda pair: -pair[0])[:OPERATORS]
    return [{"operator": event.key, "calls": event.count, "share": spent / total} for spent, event in most]


def measure(
    models: dict[str, Callable[[str], RaliModel]], device: torch.device, *, dtypes: Sequence[str],
    batches: Sequence[int], sides: Sequence[int], rounds: int = ROUNDS,
) -> dict[str, Any]:  # fmt: skip
    """All figures; JSON.

    Args:
        models: By name, a function from a dtype's name to the model on `device`.
        device: Where they compute.
        dtypes: Names of the encoder's arithmetic.
        batches: Images per pass.
        sides: For `matrix_rate`.
        rounds: See `measure_batch`.
    """
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    result: dict[str, Any] = {
        "machine": card, "threads": torch.get_num_threads(), "torch": torch.__version__, "models": [],
    }  # fmt: skip
    for name, make in models.items():
        operations = encoder_operations(make("float32").float().cpu())
        for dtype in dtypes:
            model = make(dtype)
            with torch.inference_mode():
                rows = [measure_batch(model, operations, batch, sides=sides, rounds=rounds) for batch in batches]
                operators = find_operators(model, batches[-1])
            result["models"].append({
                "model": name, "dtype": dtype, "gflop_per_image": operations / 1e9, "batches": rows,
                "operators": operators,
            })  # fmt: skip
    return result


def show(result: dict[str, Any]) -> None:
    """Print the figures as tables in Markdown."""
    print(f"{result['machine']}, {result['threads']} threads, torch {result['torch']}\n")
    print("| encoder | dtype | batch | images/s | matrix rate, GFLOP/s | share of it |\n|---|---|---|---|---|---|")
    for entry in result["models"]:
        for row in entry["batches"]:
            print(
                f"| {entry['model']} | {entry['dtype']} | {row['batch']} | {row['images_per_s']:.2f} "
                f"| {row['gflop_per_s']:,.0f} | {row['share']:.0%} |"
            )
    for entry in result["models"]:
        parts = ", ".join(f"{row['operator']} {row['share']:.1%} ({row['calls']})" for row in entry["operators"])
        print(f"\n{entry['model']}, {entry['dtype']}, {entry['gflop_per_image']:.1f} GFLOP per image: {parts}")


def tiny_models(device: torch.device) -> dict[str, Callable[[str], RaliModel]]:
    """One small model with random weights."""
    return {"tiny": lambda dtype: _on(random_model(TINY_SHAPE), device, dtype)}


def full_models(path: str | None, device: torch.device) -> dict[str, Callable[[str], RaliModel]]:
    """The official architecture with random weights, and a model file; by default the bundled one."""

    def load(dtype: str) -> RaliModel:
        scorer = RaliScorer.from_pretrained(path, device=str(device), dtype=dtype)  # type: ignore[arg-type]
        return scorer.model

    return {"official": lambda dtype: _on(random_model(OFFICIAL_SHAPE), device, dtype), path or "bundled": load}


def _on(model: RaliModel, device: torch.device, dtype: str) -> RaliModel:
    model.to(device)
    model.encoder.to(getattr(torch, dtype))
    return model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", metavar="FILE", help="instead of the bundled model")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), metavar="DTYPE")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), metavar="N")
    parser.add_argument("--tiny", action="store_true", help="small models; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    device = torch.device(options.device)
    models = tiny_models(device) if options.tiny else full_models(options.model, device)
    sides = (256,) if options.tiny else SIDES.get(device.type, SIDES["cuda"])
    result = measure(models, device, dtypes=options.dtypes, batches=options.batches, sides=sides)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
