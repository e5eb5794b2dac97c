"""Measure how far our scores are from the official recipe's, on releases with seeded random weights.

Run from the repository's root, with the package importable:

    python bench/parity.py --size small --size official

prints the table of `docs/parity.md`. The official size makes a release of 1.7 GB in a temporary folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image, ImageFilter
from skimage import data

from rali_core import RaliScorer
from rali_core.official.convert import convert

HELPERS = Path(__file__).resolve().parent.parent / "tests" / "official"
SAME_TENSOR, SAME_IMAGE, HALF = "same tensor, float32 file", "same picture, float32 file", "same picture, float16 file"
TALL, TALL_PILLOW_13 = "same tall picture, float32 file", "the same, order of Pillow 13"
LIMITS = {SAME_TENSOR: 1e-5, SAME_IMAGE: 5e-4, HALF: 2e-3, TALL: 5e-4, TALL_PILLOW_13: math.inf}
SIZES = (
    *((24, 24), (31, 57), (56, 56), (64, 48), (100, 75), (1024, 128), (150, 150), (200, 301), (224, 224), (240, 80)),
    *((256, 384), (333, 500), (336, 336), (337, 335), (300, 400), (512, 512), (427, 640), (700, 180), (800, 600)),
    *((1024, 768), (720, 1280), (1100, 90)),
)
TALL_SIZES = ((128, 1024), (90, 1100), (400, 1300), (700, 1900))
"""More than twice as high as wide: from version 13 on Pillow shrinks these along y first, before that along x. The
official scores are older than that, and our order is the older one."""


@dataclass(frozen=True)
class Row:
    """One line of the table: differences of the scores, absolute."""

    size: str
    comparison: str
    images: int
    largest: float
    mean: float
    limit: float
    spread: float


def load_helper(name: str) -> ModuleType:
    """A module of `tests/official`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"parity_{name}", HELPERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_images(count: int = 54, sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 0) -> list[Image.Image]:
    """Photographs of scikit-image in many sizes (width, height), some noisy, blurred, compressed, or drawn."""
    generator = np.random.default_rng(seed)
    photographs = [Image.fromarray(array) for array in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())]
    images = []
    for number in range(count):
        size = sizes[number % len(sizes)]
        image = photographs[number % len(photographs)].resize(size, Image.Resampling.LANCZOS)
        kind = number // len(sizes)
        if kind == 1:
            noise = generator.normal(0, 25, (size[1], size[0], 3))
            image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        elif kind == 2 and number % 3 == 0:
            image = image.filter(ImageFilter.GaussianBlur(3))
        elif kind == 2 and number % 3 == 1:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=8)
            image = Image.open(buffer).convert("RGB")
        elif kind == 2:  # hard edges, where resampling overshoots
            image = Image.fromarray((np.indices((size[1], size[0])).sum(0) // 9 % 2 * 255).astype(np.uint8)).convert(
                "RGB"
            )
        images.append(image)
    return images


def measure(release: Path, work: Path, images: list[Image.Image], size: str, *, tall: int = 12) -> list[Row]:
    """Convert a release and compare the scores of `images` with the reference's.

    Args:
        release: A release of the official layout.
        work: Folder for the converted files.
        images: At least one RGB picture.
        size: Name for the table.
        tall: How many pictures of `TALL_SIZES` besides.
    """
    single = convert(release, work / "float32.safetensors", dtype="float32").path
    half = convert(release, work / "float16.safetensors", dtype="float16").path
    tall_images = make_images(tall, TALL_SIZES)
    reference = load_helper("reference").Reference(release)
    pixels = [reference.pixels(image) for image in images]
    expected = torch.cat([reference.score(tensor) for tensor in pixels]).double().numpy()
    tall_scores = {
        TALL: np.array([float(reference.score(reference.pixels_of_older_pillow(image))) for image in tall_images]),
        TALL_PILLOW_13: np.array([float(reference.score(reference.pixels(image))) for image in tall_images]),
    }
    del reference
    scorer = RaliScorer.from_pretrained(single, device="cpu")
    with torch.inference_mode():
        tensor = torch.cat([scorer.model.head(scorer.model.embed(item)) for item in pixels]).double().numpy()
    found = {SAME_TENSOR: (tensor, expected), SAME_IMAGE: (scorer.score(images).scores, expected)}
    if tall:
        scores = scorer.score(tall_images).scores
        found |= {comparison: (scores, expected) for comparison, expected in tall_scores.items()}
    del scorer
    found[HALF] = (RaliScorer.from_pretrained(half, device="cpu").score(images).scores, expected)
    return [compare(size, comparison, *pair) for comparison, pair in found.items()]


def compare(size: str, comparison: str, scores: np.ndarray, expected: np.ndarray) -> Row:
    """A line of the table from (N,) scores and the reference's."""
    difference = np.abs(scores - expected)
    spread = float(expected.max() - expected.min())
    return Row(size, comparison, len(scores), difference.max(), difference.mean(), LIMITS[comparison], spread)


def format_rows(rows: list[Row]) -> str:
    """The table in Markdown."""
    lines = ["| tower | compared | pictures | largest difference | mean difference | limit | range of the scores |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [
        f"| {row.size} | {row.comparison} | {row.images} | {row.largest:.1e} | {row.mean:.1e} "
        f"| {'none' if math.isinf(row.limit) else f'{row.limit:.0e}'} | {row.spread:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=("small", "official"), help="which towers (default: small)")
    parser.add_argument("--tall", type=int, default=12, help="how many tall pictures besides (default: 12)")
    parser.add_argument("--images", type=int, default=54, help="how many pictures (default: 54)")
    options = parser.parse_args()
    maker = load_helper("release_maker")
    rows = []
    for size in options.size or ["small"]:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            start = time.perf_counter()
            release = maker.make_release(work / "release", size=maker.SMALL if size == "small" else maker.OFFICIAL)
            name = f"{maker.SMALL['vision']['image_size']} pixels, width {maker.SMALL['vision']['hidden_size']}"
            name = name if size == "small" else "ViT-L/14-336"
            rows += measure(release, work, make_images(options.images), name, tall=options.tall)
            print(f"{size}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(format_rows(rows))
    return int(any(row.largest > row.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
