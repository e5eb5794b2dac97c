"""How far scores move where large JPEGs are decoded at a half, a quarter or an eighth (Pillow's draft mode).

    python bench/jpeg_draft.py FOLDER [--model FILE] [--limit 10] [--margin 2]

Draft mode is used as far as the shorter side stays at least --margin times the encoder's input. It would save time and
memory, but a JPEG and the same image in any other form would get other scores: the reader does not use it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rali_core.files import find_images
from rali_core.images import decode_pil
from rali_core.scorer import RaliScorer


def read(path: Path, shortest: int | None) -> tuple[torch.Tensor, float]:
    """Pixels, and the processor time that they took; `shortest` is what draft mode must leave of the shorter side."""
    begun = time.process_time()
    with Image.open(path) as image:
        if shortest is not None:
            scale = next((n for n in (8, 4, 2) if min(image.size) >= n * shortest), 1)
            image.draft("RGB", (image.width // scale, image.height // scale))
        pixels = decode_pil(image)
    return pixels, time.process_time() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--margin", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scorer = RaliScorer.from_pretrained(options.model, device="cpu")
    shortest = round(options.margin * scorer.model.preprocess_config.image_size)
    moved, saved = [], []
    for path in find_images([options.folder], recursive=True):
        whole, seconds = read(path, None)
        draft, seconds_draft = read(path, shortest)
        if draft.shape == whole.shape:
            continue
        before, after = scorer.score([whole, draft]).scores.tolist()
        moved.append(abs(after - before))
        saved.append(seconds_draft / seconds)
        print(f"{path.name:<40}{before:8.4f}{after:8.4f}  {tuple(whole.shape[1:])} as {tuple(draft.shape[1:])}")
        if len(moved) == options.limit:
            break
    if moved:
        print(f"{len(moved)} JPEGs: scores move by {np.mean(moved):.4f} in the mean, {max(moved):.4f} at most; "
              f"decoding takes {np.median(saved):.2f} of the time")  # fmt: skip


if __name__ == "__main__":
    main()
