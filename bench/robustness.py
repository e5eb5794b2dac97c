"""How a model file orders distorted versions of one image, and how little flips and re-encoding move its score.

No human scores are needed: each image is distorted at five known levels, and a more severe level should score lower.

    python bench/robustness.py weights/rali-small.safetensors --images FOLDER [--graphics 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rali_core.files import find_images
from rali_core.images import to_rgb
from rali_core.scorer import RaliScorer
from rali_core.training.distortion_triplets import MILD_DISTORTIONS, render_graphic
from rali_core.training.distortions import DISTORTIONS, LEVELS, Distortion, distort, recode

LARGEST_SIDE = 768
"""Larger images are reduced to this before they are distorted."""
USUAL: frozenset[Distortion] = frozenset({
    "blur", "lens_blur", "motion_blur", "noise", "chroma_noise", "poisson_noise", "impulse_noise", "speckle_noise",
    "jpeg", "webp", "low_resolution", "upscaler", "checkerboard", "oversharpen", "saturation_high", "brighten",
    "darken", "banding",
})  # fmt: skip
"""What images meet most: blur, noise, JPEG, WebP, enlarging, sharpening, saturation, exposure, banding, upscalers."""
SEVERE = 4
"""From this level on, a distorted image should score lower than any undistorted one."""
FIRST_GRAPHIC = 2**31
"""Training draws its seeds below 2**30."""


def main() -> None:
    """Print a table of pair accuracies, worst first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("--images", action="append", default=[], metavar="FOLDER", help="undistorted images")
    parser.add_argument("--graphics", type=int, default=20, metavar="N", help="synthetic graphics (default: 20)")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N images of the folders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--dtype", default="float32", help="arithmetic of the encoder (default: float32)")
    parser.add_argument("--domain", help="what the images are, see `rali info`")
    options = parser.parse_args()
    scorer = RaliScorer.from_pretrained(options.model, dtype=options.dtype, domain=options.domain)
    files = find_images(options.images, recursive=True)[: options.limit] if options.images else []
    images = [_open(path) for path in files]
    figures = {"images": measure(scorer, images)} if images else {}
    if options.graphics:
        drawn = [render_graphic(FIRST_GRAPHIC + number) for number in range(options.graphics)]
        figures["graphics"] = measure(scorer, drawn)
    for name, result in figures.items():
        print(f"\n{name}")
        for key, value in result.items():
            print(f"{key:40s} {value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(scorer: RaliScorer, images: list[Image.Image]) -> dict[str, float]:
    """Figures of one set: pair accuracy over all types and by type, largest and mean moves of the score."""
    undistorted = scorer.score(images).scores
    right: dict[str, float] = {}
    across: list[NDArray[np.bool_]] = []
    for kind in DISTORTIONS:
        distorted = [
            scorer.score([distort(image, kind, level, seed=7) for image in images]).scores
            for level in range(1, LEVELS + 1)
        ]
        right[kind] = float((np.diff(np.stack([undistorted, *distorted]), axis=0) < 0).mean())
        if kind not in MILD_DISTORTIONS:
            severe = np.concatenate(distorted[SEVERE - 1 :])
            across.append(undistorted[:, None] > severe[None, :])
        print(f"{kind}: {right[kind]:.3f}", file=sys.stderr, flush=True)
    flips = np.abs(scorer.score([image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]).scores
                   - undistorted)  # fmt: skip
    recoded = np.abs(scorer.score([recode(image, "JPEG", quality=95) for image in images]).scores - undistorted)
    strict = [value for kind, value in right.items() if kind not in MILD_DISTORTIONS]
    return {
        "count": len(images),
        "adjacent pairs, all types": float(np.mean(list(right.values()))),
        "adjacent pairs, without mild types": float(np.mean(strict)),
        "adjacent pairs, usual types": float(np.mean([right[kind] for kind in USUAL])),
        "undistorted above severely distorted, any two": float(np.mean(across)),
        **{f"  {kind}": value for kind, value in sorted(right.items(), key=lambda item: item[1])},
        "flip, largest move": float(flips.max()),
        "flip, mean move": float(flips.mean()),
        "JPEG at quality 95, largest move": float(recoded.max()),
        "JPEG at quality 95, mean move": float(recoded.mean()),
        "score of the undistorted, mean": float(undistorted.mean()),
        "score of the undistorted, lowest": float(undistorted.min()),
    }


def _open(path: Path) -> Image.Image:
    with Image.open(path) as file:
        image = to_rgb(file)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BICUBIC)
    return image


if __name__ == "__main__":
    main()
