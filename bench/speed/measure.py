"""Measurements of the comparison only: growing folders, the score cache, and the agreement of reduced precision."""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rali_core.benchmark import command_line, environment, make_folder, spread
from rali_core.files import find_images
from rali_core.images import load_image
from rali_core.score_cache import ScoreCache
from rali_core.scorer import RaliScorer


def folder_growth(
    counts: Sequence[int], *, model: str | None = None, threads: int | None = None
) -> list[dict[str, float]]:
    """How long `rali score FOLDER` takes, from nothing to the table, by the number of files.

    Returns:
        For each of `counts` the `images` and the `seconds`.
    """
    options = ["--model", model] if model else []
    grown = []
    with tempfile.TemporaryDirectory() as root:
        for count in counts:
            folder = Path(root, str(count))
            folder.mkdir()
            make_folder(folder, count)
            begun = time.perf_counter()
            subprocess.run(
                [*command_line(), "score", str(folder), *options], check=True, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=environment(threads),
            )  # fmt: skip
            grown.append({"images": float(count), "seconds": time.perf_counter() - begun})
    return grown


def cache_hit(*, rounds: int) -> dict[str, float]:
    """Milliseconds of finding four 1024 x 1024 images in the cache, hashing included, laid out as in ComfyUI."""
    batch = torch.rand(4, 1024, 1024, 3, generator=torch.Generator().manual_seed(0))
    images = [image.permute(2, 0, 1) for image in batch]
    cache = ScoreCache()
    cache.score(images, lambda unknown: [0.5] * len(unknown), namespace="benchmark")
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        cache.score(images, lambda unknown: [0.5] * len(unknown), namespace="benchmark")
        times.append((time.perf_counter() - begun) * 1e3)
    return spread(times)


def agreement(image_folder: Path, count: int, dtypes: Sequence[str], model: str | None = None) -> dict[str, Any]:
    """How far reduced precision moves the scores of real images: rank correlation with float32, largest difference.

    Args:
        image_folder: A folder of images.
        count: How many of them, chosen at random with a seed.
        dtypes: For `RaliScorer`.
        model: By default the bundled one.
    """
    files = find_images([image_folder], recursive=True)
    chosen = random.Random(0).sample(files, min(count, len(files)))
    scorers = {dtype: RaliScorer.from_pretrained(model, device="cpu", dtype=dtype) for dtype in ("float32", *dtypes)}  # type: ignore[arg-type]
    scores: dict[str, list[float]] = {dtype: [] for dtype in scorers}
    for file in chosen:
        with torch.inference_mode():
            crops = scorers["float32"].model.preprocess(load_image(file)[None])[0]
        for dtype, scorer in scorers.items():
            scores[dtype].append(scorer.score_crops([crops])[0].score)
    exact = np.array(scores["float32"])
    return {
        dtype: {
            "images": len(chosen),
            "srcc": float(np.corrcoef(exact.argsort().argsort(), np.argsort(np.argsort(scores[dtype])))[0, 1]),
            "largest": float(np.abs(exact - scores[dtype]).max()),
        }
        for dtype in dtypes
    }
