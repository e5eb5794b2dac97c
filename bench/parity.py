"""Measure how far our scores are from the official recipe's, on releases with seeded random weights.

Run from the repository's root, with the package importable:

    python bench/parity.py --size small --size official

prints the table of `docs/parity.md`. The official size makes a release of 1.7 GB in a temporary folder, or in one that
is kept: `--keep FOLDER` notes every score there, and the same command resumes. Delete the
folder after a change of the code or of a library.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from skimage import data

from rali_core import RaliScorer
from rali_core.official.convert import convert

HELPERS = Path(__file__).resolve().parent.parent / "tests" / "official"
SAME_TENSOR, SAME_IMAGE, HALF = "same tensor, float32 file", "same image, float32 file", "same image, float16 file"
TALL, TALL_PILLOW_13 = "same tall image, float32 file", "the same, order of Pillow 13"
LIMITS = {SAME_TENSOR: 1e-5, SAME_IMAGE: 1e-5, HALF: 2e-3, TALL: 1e-5, TALL_PILLOW_13: math.inf}
SIZES = (
    *((24, 24), (31, 57), (56, 56), (64, 48), (100, 75), (1024, 128), (150, 150), (200, 301), (224, 224), (240, 80)),
    *((256, 384), (333, 500), (336, 336), (337, 335), (300, 400), (512, 512), (427, 640), (700, 180), (800, 600)),
    *((1024, 768), (720, 1280), (1100, 90)),
)
TALL_SIZES = ((128, 1024), (90, 1100), (400, 1300), (700, 1900))
"""More than twice as high as wide: from version 13 on Pillow shrinks these along y first, before that along x. The
official scores are older than that, and our order is the older one."""


@dataclass(frozen=True)
class ScoredRow:
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


class Notebook:
    """Scores by what was compared and the image's number; kept in a file, one line each, where one is named."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[tuple[str, int], float] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                kind, number, score = json.loads(line)
                self.known[kind, number] = score

    def complete(
        self, kind: str, items: Sequence[Image.Image], score: Callable[[Iterable[Image.Image]], Iterable[float]]
    ) -> np.ndarray:
        """(N,) scores of `items`; `score` is called only for the unknown ones, and each is saved at once."""
        missing = [number for number in range(len(items)) if (kind, number) not in self.known]
        scores = score(items[number] for number in missing) if missing else ()
        for number, value in zip(missing, scores, strict=True):
            self.known[kind, number] = float(value)
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps([kind, number, float(value)]) + "\n")
        return np.array([self.known[kind, number] for number in range(len(items))])


def measure(
    release: Path,
    work: Path,
    images: list[Image.Image],
    size: str,
    *,
    tall: int = 12,
    notebook: Notebook | None = None,
) -> list[ScoredRow]:
    """Convert a release and compare the scores of `images` with the reference's.

    Args:
        release: A release of the official layout.
        work: Folder for the converted files.
        images: At least one RGB image.
        size: Name for the table.
        tall: How many images of `TALL_SIZES` besides.
        notebook: Scores that are known already.
    """
    notebook = notebook or Notebook()
    single, half = work / "float32.safetensors", work / "float16.safetensors"
    for path, dtype in ((single, "float32"), (half, "float16")):
        if not path.exists() or notebook.path is None:
            convert(release, path, dtype=dtype)  # type: ignore[arg-type]
    tall_images = make_images(tall, TALL_SIZES)
    references = load_helper("reference").Reference

    @cache
    def reference() -> Any:
        return references(release)

    @cache
    def scorer(path: Path) -> RaliScorer:
        return RaliScorer.from_pretrained(path, device="cpu")

    def expect(batch: Iterable[Image.Image]) -> Iterator[float]:
        return (float(reference().score(reference().pixels(image))) for image in batch)

    def expect_older_pillow(batch: Iterable[Image.Image]) -> Iterator[float]:
        return (float(reference().score(reference().pixels_of_older_pillow(image))) for image in batch)

    @torch.inference_mode()
    def score_tensor(image: Image.Image) -> float:
        model = scorer(single).model
        return float(model.head(model.embed(pixels[id(image)])))

    def score_single(batch: Iterable[Image.Image]) -> Iterator[float]:
        return (result.score for result in scorer(single).stream(batch))

    def score_half(batch: Iterable[Image.Image]) -> Iterator[float]:
        return (result.score for result in scorer(half).stream(batch))

    # One model at a time in memory: at the official size the reference alone takes 1.7 GB.
    expected = notebook.complete("reference", images, expect)
    tall_expected = notebook.complete("tall reference, older Pillow", tall_images, expect_older_pillow)
    tall_expected_13 = notebook.complete("tall reference", tall_images, expect)
    pixels = {id(image): reference().pixels(image) for image in images}
    reference.cache_clear()
    found = {
        SAME_TENSOR: (notebook.complete(SAME_TENSOR, images, lambda items: map(score_tensor, items)), expected),
        SAME_IMAGE: (notebook.complete(SAME_IMAGE, images, score_single), expected),
    }
    if tall:
        scores = notebook.complete(TALL, tall_images, score_single)
        found |= {TALL: (scores, tall_expected), TALL_PILLOW_13: (scores, tall_expected_13)}
    scorer.cache_clear()
    found[HALF] = (notebook.complete(HALF, images, score_half), expected)
    return [compare(size, comparison, *pair) for comparison, pair in found.items()]


def compare(size: str, comparison: str, scores: np.ndarray, expected: np.ndarray) -> ScoredRow:
    """A line of the table from (N,) scores and the reference's."""
    difference = np.abs(scores - expected)
    spread = float(expected.max() - expected.min())
    return ScoredRow(size, comparison, len(scores), difference.max(), difference.mean(), LIMITS[comparison], spread)


def format_rows(rows: list[ScoredRow]) -> str:
    """The table in Markdown."""
    lines = ["| encoder | compared | images | largest difference | mean difference | limit | range of the scores |"]
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
    parser.add_argument("--size", action="append", choices=("small", "official"), help="encoders (default: small)")
    parser.add_argument("--tall", type=int, default=12, help="how many tall images besides (default: 12)")
    parser.add_argument("--images", type=int, default=54, help="how many images (default: 54)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work here, note every score, resume")
    options = parser.parse_args()
    maker = load_helper("release_maker")
    rows = []
    for size in options.size or ["small"]:
        keep = None if options.keep is None else options.keep / size
        with tempfile.TemporaryDirectory() if keep is None else nullcontext(keep) as folder:
            work = Path(folder)
            work.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            release, fresh = work / "release", work / "unfinished"
            if not release.exists():
                maker.make_release(fresh, size=maker.SMALL if size == "small" else maker.OFFICIAL).rename(release)
            name = f"{maker.SMALL['vision']['image_size']} pixels, width {maker.SMALL['vision']['hidden_size']}"
            name = name if size == "small" else "ViT-L/14-336"
            notebook = Notebook(None if keep is None else work / "scores.jsonl")
            images = make_images(options.images)
            rows += measure(release, work, images, name, tall=options.tall, notebook=notebook)
            print(f"{size}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(format_rows(rows))
    return int(any(row.largest > row.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
