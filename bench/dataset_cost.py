"""What a million 1-megapixel images cost: processor seconds of each step, and the arithmetic from them.

    python bench/dataset_cost.py [--model FILE] [--cores 8] [--images 24]

Processor time, not wall time, is measured for decoding, preprocessing and (without a GPU) the model, each with
one thread, so that other work on the machine does not count. With a GPU the model's wall time is measured.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from rali_core.images import decode_image
from rali_core.scorer import RaliScorer

SIDE = 1000
MILLION = 1_000_000


def make_jpeg(seed: int) -> bytes:
    """A megapixel of coarse and fine structure, about as large as a photograph at this quality."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    noise = generator.normal(0, 8, (SIDE, SIDE, 1))
    pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def processor_seconds(work: Callable[[int], object], count: int) -> float:
    """Median processor time of `work(number)`, the first call left out."""
    work(0)
    times = []
    for number in range(count):
        begun = time.process_time()
        work(number)
        times.append(time.process_time() - begun)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--cores", type=int, default=8, help="of the machine that is computed for")
    parser.add_argument("--images", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    jpegs = [make_jpeg(seed) for seed in range(options.images)]
    scorer = RaliScorer.from_pretrained(options.model)
    size = scorer.batch_size
    pixels = [decode_image(jpeg, "jpeg").unsqueeze(0) for jpeg in jpegs]
    with torch.inference_mode():
        crops = [scorer.model.preprocess(image, coverage=scorer.coverage)[0] for image in pixels]
        decoding = processor_seconds(lambda n: decode_image(jpegs[n], "jpeg"), options.images)
        preparing = processor_seconds(
            lambda n: scorer.model.preprocess(pixels[n], coverage=scorer.coverage), options.images
        )
    print(f"{scorer.info.name}, {sum(map(len, jpegs)) / len(jpegs) / 1e6:.2f} MB per JPEG, torch {torch.__version__}")
    print(f"decoding       {decoding * 1e3:8.1f} ms of a processor")
    print(f"preprocessing  {preparing * 1e3:8.1f} ms of a processor")
    cpu = decoding + preparing
    if scorer.device.type == "cpu":
        model = processor_seconds(lambda n: scorer.score_crops(crops[:size]), max(options.images // size, 3)) / size  # noqa: ARG005
        print(f"model          {model * 1e3:8.1f} ms of a processor, in batches of {size}")
        hours = MILLION * (cpu + model) / options.cores / 3600
        print(
            f"a million images: 1,000,000 x ({decoding:.4f} + {preparing:.4f} + {model:.4f}) s / {options.cores} cores "
            f"/ 3600 = {hours:.1f} hours"
        )
    else:
        scorer.score_crops(crops[:size])
        begun = time.perf_counter()
        rounds = 50
        for _ in range(rounds):
            scorer.score_crops(crops[:size])
        model = (time.perf_counter() - begun) / rounds / size
        print(f"model          {model * 1e3:8.2f} ms of {torch.cuda.get_device_name()}, in batches of {size}")
        print(f"a million images on the GPU: 1,000,000 x {model:.5f} s / 3600 = {MILLION * model / 3600:.2f} hours")
    print(
        f"decoding for a GPU: {options.cores} cores give {options.cores / cpu:.0f} images per second; "
        f"1,000,000 x ({decoding:.4f} + {preparing:.4f}) s / {options.cores} cores / 3600 = "
        f"{MILLION * cpu / options.cores / 3600:.2f} hours"
    )


if __name__ == "__main__":
    main()
