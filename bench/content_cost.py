"""What the content check costs beside scoring: processor time of each, and their ratio.

    python bench/content_cost.py [--model FILE] [--side 1000] [--repeats 20]

One thread, medians. The ratio matters: both run on the same machine in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from rali_core.content import has_content
from rali_core.scorer import RaliScorer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--side", type=int, default=1000, help="pixels (default: 1000, one megapixel)")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scorer = RaliScorer.from_pretrained(options.model, device="cpu")
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.random((1, 3, 12, 12), dtype=np.float32))
    image = torch.nn.functional.interpolate(coarse, (options.side, options.side), mode="bicubic")[0].clamp(0, 1)
    image = (image * 255).to(torch.uint8)
    black = torch.zeros_like(image)

    def score() -> None:
        with torch.inference_mode():
            crops = scorer.model.preprocess(image.unsqueeze(0), coverage=scorer.coverage)
            scorer.model.head(scorer.model.embed(crops.flatten(0, 1)))

    works: dict[str, Callable[[], object]] = {
        "preprocessing and model": score,
        "content check": lambda: has_content(image),
        "content check, black image": lambda: has_content(black),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(options.repeats + 1):
        for name, work in works.items():
            begun = time.process_time()
            work()
            if repeat:  # the first call of each is left out
                times[name].append(time.process_time() - begun)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        share = seconds / medians["preprocessing and model"]
        print(f"{name:<28}{1000 * seconds:8.2f} ms of a processor{share:9.2%}")


if __name__ == "__main__":
    main()
