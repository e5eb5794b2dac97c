"""What a batch costs on the CPU in one pass of the tower, and in as many passes as `RaliModel.embed` makes of it.

    python bench/cpu_passes.py [--model FILE] [--batch 8] [--rounds 5]

Both take turns on the same random input, so that a busy machine slows both; the ratio is the rounds' median.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rali_core import RaliScorer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="rali-small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'dtype':<10}{'passes':>8}{'one pass, s/picture':>21}{'ours':>8}{'ours / one pass':>17}")
    for dtype in ("float32", "bfloat16"):
        model = RaliScorer.from_pretrained(options.model, device="cpu", dtype=dtype).model
        size = model.preprocess_config.image_size
        inputs = torch.randn(options.batch, 3, size, size).to(next(model.encoder.parameters()).dtype)
        passes: list[int] = []
        hook = model.encoder.register_forward_pre_hook(lambda _, given, seen=passes: seen.append(len(given[0])))
        with torch.inference_mode():
            model.embed(inputs)
            hook.remove()
            rounds = [
                [seconds(work, inputs) / options.batch for work in (model.encoder, model.embed)]
                for _ in range(options.rounds)
            ]
        whole, ours = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratio = statistics.median(split / one for one, split in rounds)
        print(f"{dtype:<10}{len(passes):>8}{whole:>21.3f}{ours:>8.3f}{ratio:>17.2f}")


def seconds(work: Callable[[Tensor], object], inputs: Tensor) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work(inputs)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
