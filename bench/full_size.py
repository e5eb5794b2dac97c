"""What crops at an image's own size are worth: agreement with human scores, order of damage at full size, and time.

Each image's parts (`RaliScorer.score_views`) are scored once, and every rule that makes one score of them is compared:

    python bench/full_size.py weights/rali-small.safetensors --labels sr4kiqa=labels.csv --crops 4 --crops 9
    python bench/full_size.py weights/rali-small.safetensors --images FOLDER --size 1024 --size 2048 --size 4096
    python bench/full_size.py weights/rali-small.safetensors --time
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rali_core.evaluation import measure_agreement
from rali_core.explain import ViewScore
from rali_core.files import find_images
from rali_core.images import to_rgb
from rali_core.labels import read_labels
from rali_core.scorer import RaliScorer
from rali_core.training.distortion_triplets import render_graphic
from rali_core.training.distortions import Distortion, distort, recode

KINDS: tuple[Distortion, ...] = ("blur", "noise", "jpeg", "webp", "oversharpen", "checkerboard")
LEVELS = (1, 3, 5)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FACTORS = (2, 4)
JPEG_LIMIT = 5
"""Quality at which a 4096-pixel image must lose 0.3."""


def mean_of(views: Sequence[ViewScore], *, full_size: bool) -> float:
    """Mean score of the parts that are, or are not, seen at full size; NaN where there are none."""
    scores = [part.score for part in views if part.view.full_size is full_size]
    return float(np.mean(scores)) if scores else float("nan")


def either(first: float, second: float, share: float) -> float:
    """`second` counts for `share`; `first` alone where there is no second."""
    return first if np.isnan(second) else (1 - share) * first + share * second


def lowest_quarter(views: Sequence[ViewScore]) -> float:
    """The whole and the lower quartile of the crops, half each."""
    own = [part.score for part in views if part.view.full_size]
    return either(mean_of(views, full_size=False), float(np.quantile(own, 0.25)) if own else float("nan"), 0.5)


def blend(share: float) -> Callable[[Sequence[ViewScore]], float]:
    """A rule: the crops at full size count for `share`, the whole for the rest."""
    return lambda views: either(mean_of(views, full_size=False), mean_of(views, full_size=True), share)


RULES: dict[str, Callable[[Sequence[ViewScore]], float]] = {
    "coverage full": lambda views: sum(part.share * part.score for part in views),
    "whole": lambda views: mean_of(views, full_size=False),
    "crops": blend(1.0),
    **{f"{share} crops": blend(share) for share in (0.3, 0.5, 0.7, 0.8)},
    "0.5 lowest quarter": lowest_quarter,
}


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("--labels", action="append", default=[], metavar="NAME=CSV", help="a labels table's test part")
    parser.add_argument("--split", default="test", help="the part of the labels table (default: test)")
    parser.add_argument("--images", action="append", default=[], metavar="FOLDER", help="undistorted images")
    parser.add_argument("--size", action="append", type=int, default=[], help="side at which images are distorted")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="N of frames that were enlarged N times")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="images of each size (default: 8)")
    parser.add_argument("--crops", action="append", type=int, default=[], help="most crops at full size (default: 4)")
    parser.add_argument("--domain", help="what the images are, see `rali info`")
    parser.add_argument("--time", action="store_true", help="seconds per image by coverage and size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    for crops in options.crops or [4]:
        scorer = RaliScorer.from_pretrained(
            options.model, coverage="full", full_size_crops=crops, domain=options.domain
        )
        for named in options.labels:
            name, _, path = named.partition("=")
            figures[f"{name}, {crops} crops"] = agreement(scorer, Path(path), options.split)
        for size in options.size:
            images = large_images(options.images, size, options.limit, options.shrink)
            figures[f"{size} pixels, {len(images)} images, {crops} crops"] = ordered(scorer, images)
    if options.time:
        figures["seconds per image"] = seconds(options.model)
    for name, result in figures.items():
        print(f"\n{name}\n{json.dumps(result, indent=1)}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def agreement(scorer: RaliScorer, labels: Path, split: str) -> dict[str, object]:
    """SRCC and PLCC by rule on a part of a labels table."""
    rows = [row for row in read_labels(labels) if row.split == split and not row.near_duplicate]
    parts = [scorer.score_views(row.path) for row in rows]
    human = np.array([row.score for row in rows])
    result: dict[str, object] = {
        "images": len(rows),
        "parts per image": round(float(np.mean(list(map(len, parts)))), 2),
    }
    for name, rule in RULES.items():
        measured = measure_agreement(np.array([rule(part) for part in parts]), human)
        result[name] = [round(measured.srcc, 4), round(measured.plcc, 4)]
    return result


def large_images(folders: list[str], size: int, limit: int, shrink: int = 1) -> list[Image.Image]:
    """Squares of `size` pixels: the middle of each image that is large enough, at 1 / `shrink` of its size.

    Where none is, each square is put together from the middles of several; where images do not suffice, the rest are
    synthetic graphics.
    """
    sources = []
    for path in find_images(folders, recursive=True) if folders else []:
        with Image.open(path) as file:
            sources.append(to_rgb(file).reduce(shrink))
    large = [image for image in sources if min(image.size) >= size]
    images = [_middle(image, size) for image in large] or _mosaics(sources, size)
    missing = range(max(0, limit - len(images)))
    return images[:limit] + [render_graphic(2**31 + number, size=size) for number in missing]


def _middle(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _mosaics(images: list[Image.Image], size: int) -> list[Image.Image]:
    """As few squares a side as the images allow; half as many mosaics as images, each begins two images later."""
    each = 2
    while images and min(min(image.size) for image in images) < size // each:
        each *= 2
    mosaics = []
    for first in range(0, len(images), 2):
        mosaic = Image.new("RGB", (size, size))
        for number in range(each * each):
            square = _middle(images[(first + number) % len(images)], size // each)
            mosaic.paste(square, (number % each * (size // each), number // each * (size // each)))
        mosaics.append(mosaic)
    return mosaics


def ordered(scorer: RaliScorer, images: list[Image.Image]) -> dict[str, object]:
    """Share of adjacent levels in order by rule, over all kinds of damage; what JPEG costs; enlarging by each filter.

    Of the latter the mean scores, and the share of images above themselves enlarged twice, and these above four times.
    """
    clean = [scorer.score_views(image) for image in images]
    series = {kind: _levels(scorer, images, kind) for kind in KINDS}
    coded = [scorer.score_views(_as_jpeg(image)) for image in images]
    enlarged = {
        name: [[scorer.score_views(_enlarge(image, factor, name)) for image in images] for factor in FACTORS]
        for name in FILTERS
    }
    series["enlarged"] = enlarged["bicubic"]
    result: dict[str, object] = {}
    for name, rule in RULES.items():
        undistorted = np.array([rule(part) for part in clean])
        shares = {kind: _in_order(_steps(undistorted, levels, rule)) for kind, levels in series.items()}
        filters = {filter_: _steps(undistorted, levels, rule) for filter_, levels in enlarged.items()}
        result[name] = {
            "adjacent pairs in order": round(float(np.mean(list(shares.values()))), 4), **shares,
            f"lost by JPEG {JPEG_LIMIT}, mean and least": _lost(undistorted, coded, rule),
            "undistorted, mean": round(float(undistorted.mean()), 4),
            **{f"{FACTORS} times by {filter_}, in order": [*steps[1:].mean(axis=1).round(4).tolist(), _in_order(steps)]
               for filter_, steps in filters.items()},
        }  # fmt: skip
    return result


def _steps(
    clean: NDArray[np.float64], levels: list[list[tuple[ViewScore, ...]]], rule: Callable[[Sequence[ViewScore]], float]
) -> NDArray[np.float64]:
    """(1 + L, N) scores of N images, undistorted and at each of L levels."""
    return np.stack([clean, *(np.array([rule(part) for part in level]) for level in levels)])


def _in_order(steps: NDArray[np.float64]) -> float:
    return round(float((np.diff(steps, axis=0) < 0).mean()), 4)


def _levels(scorer: RaliScorer, images: list[Image.Image], kind: Distortion) -> list[list[tuple[ViewScore, ...]]]:
    return [[scorer.score_views(distort(image, kind, level, seed=7)) for image in images] for level in LEVELS]


def _lost(
    clean: NDArray[np.float64], coded: list[tuple[ViewScore, ...]], rule: Callable[[Sequence[ViewScore]], float]
) -> list[float]:
    lost = clean - np.array([rule(part) for part in coded])
    return [round(float(lost.mean()), 4), round(float(lost.min()), 4)]


def _enlarge(image: Image.Image, factor: int, name: str) -> Image.Image:
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.LANCZOS)
    return small.resize(image.size, FILTERS[name])


def _as_jpeg(image: Image.Image) -> Image.Image:
    return recode(image, "JPEG", quality=JPEG_LIMIT)


def seconds(model: str) -> dict[str, dict[str, float]]:
    """Median seconds per square image by side and coverage, decoding apart."""
    result: dict[str, dict[str, float]] = {}
    scorer = RaliScorer.from_pretrained(model)
    for side in (512, 1024, 2048, 4096):
        image = np.asarray(render_graphic(2**31, size=side))
        times: dict[str, list[float]] = {}
        for _ in range(5):
            for coverage in ("center", "tiles", "full"):
                start = time.perf_counter()
                scorer.score(image, coverage=coverage)  # type: ignore[arg-type]
                times.setdefault(coverage, []).append(time.perf_counter() - start)
        result[str(side)] = {name: round(float(np.median(values)), 4) for name, values in times.items()}
    return result


if __name__ == "__main__":
    main()
