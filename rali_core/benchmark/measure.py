"""Measurements: speed in turns, peak memory, cold start, a folder of files, and the score cache."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import __name__ as package_name
from .processes import Case, Worker, environment

Say = Callable[[str], None]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(
    names: Sequence[str], cases: Sequence[Case], *, reference: str, rounds: int, model: str | None = None,
    threads: int | None = None, limit_s: float = 120.0, say: Say = print,
) -> dict[str, Any]:  # fmt: skip
    """Let contenders take turns.

    Args:
        names: For `contenders.make`; those that cannot be made are left out with their reason.
        cases: What each scores.
        reference: Whom the ratios are against; one of `names`.
        rounds: How often each scores each case.
        model: The user's model.
        threads: Of each contender.
        limit_s: A contender whose one pass took longer is measured in the first round only.
        say: Called with lines on what is going on.

    Returns:
        `missing`: reasons by name; `load`: seconds by name; `cases`: per case and name images per second (median, min,
        max), processor seconds per image, and `ratio` to the reference: the rounds' median.
    """
    missing: dict[str, str] = {}
    result: dict[str, Any] = {"missing": missing, "load": {}, "rounds": rounds, "cases": []}
    with ExitStack() as stack:
        workers = []
        for name in names:
            say(f"loading {name}")
            worker = stack.enter_context(Worker(name, model=model, threads=threads))
            if worker.error is None:
                workers.append(worker)
                result["load"][name] = worker.load
            else:
                missing[name] = worker.error
        for case in cases:
            say(f"{case}")
            times = _take_turns(workers, case, rounds, limit_s)
            result["cases"].append({**vars(case), "contenders": _summarise(times, case, reference)})
    return result


def _take_turns(workers: Sequence[Worker], case: Case, rounds: int, limit_s: float) -> dict[str, list[dict[str, Any]]]:
    times: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            before = times[worker.name]
            if before and ("error" in before[0] or before[0]["wall"] > limit_s):
                continue
            before.append(worker.measure(case))
    return times


def _summarise(times: dict[str, list[dict[str, Any]]], case: Case, reference: str) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    base = [run for run in times.get(reference, []) if "error" not in run]
    for name, runs in times.items():
        errors = [run["error"] for run in runs if "error" in run]
        if errors:
            summary[name] = {"error": errors[0]}
            continue
        summary[name] = {
            "rate": spread([case.batch / run["wall"] for run in runs]),
            "processor": statistics.median(run["processor"] for run in runs) / case.batch,
            "dtype": runs[0]["dtype"],
        }
        if base:
            pairs = list(zip(base, runs, strict=False))
            summary[name]["ratio"] = statistics.median(theirs["wall"] / ours["wall"] for theirs, ours in pairs)
            summary[name]["processor_ratio"] = statistics.median(
                theirs["processor"] / max(ours["processor"], 1e-9) for theirs, ours in pairs
            )
    return summary


def peak_memory(
    names: Sequence[str], *, reference: str, case: Case, model: str | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Largest resident set of each contender alone: load, score the case twice; and the same without Python and torch.

    Returns:
        By name `peak` and `above_torch` in bytes, and `ratio` and `ratio_above_torch` to the reference's.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        with Worker(name, model=model, threads=threads) as worker:
            run: dict[str, Any] = {"error": worker.error} if worker.error else worker.measure(case)
        if "error" not in run:
            found[name] = {"peak": run["peak"], "above_torch": run["peak"] - run["before"]}
    base = found.get(reference)
    for values in found.values():
        if base and base["peak"]:
            values["ratio"] = values["peak"] / base["peak"]
            values["ratio_above_torch"] = values["above_torch"] / base["above_torch"]
    return found


def cold_start(*, rounds: int, threads: int | None = None) -> dict[str, Any]:
    """Whole processes, in turn: importing torch, and scoring one JPEG by the command."""
    torch_only = [sys.executable, "-c", "import torch"]
    ours = [
        sys.executable,
        "-c",
        f"import sys; from {package_name.rpartition('.')[0]}.cli import main; sys.exit(main())",
    ]
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), 1)
        score = [*ours, "score", str(next(Path(folder).iterdir()))]
        times: dict[str, list[float]] = {"import torch": [], "rali score one.jpg": []}
        for number in range(rounds + 1):
            for name, command in (("import torch", torch_only), ("rali score one.jpg", score)):
                begun = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=environment(threads))
                if number:  # the first fills the file cache
                    times[name].append(time.perf_counter() - begun)
    ratios = [ours / theirs for theirs, ours in zip(*times.values(), strict=True)]
    return {"seconds": {name: spread(values) for name, values in times.items()}, "ratio": spread(ratios)}


def make_folder(folder: Path, count: int) -> None:
    """Seeded JPEGs of 1024 x 768 that are as large as photographs at this quality."""
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((1024, 768))
        noise = generator.integers(-8, 9, (768, 1024, 1))
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


FOLDER_RUN = """
import json, sys, time
from pathlib import Path
import torch
from {package}.images import load_image
from {package}.scorer import RaliScorer
files = sorted(str(file) for file in Path(sys.argv[1]).iterdir())
scorer = RaliScorer.from_pretrained(sys.argv[2] or None, device="cpu", dtype=sys.argv[3], coverage="center")
step = 64
with torch.inference_mode():
    crops = [scorer.model.preprocess(load_image(file)[None], coverage="center")[0] for file in files[:step]]
scorer.score_crops(crops[:8])
model = whole = 0.0
for start in range(0, len(files), step):
    part = files[start:start + step]
    begun = time.perf_counter()
    for first in range(0, len(part), scorer.batch_size):
        scorer.score_crops(crops[first:first + min(scorer.batch_size, len(part) - first)])
    model += time.perf_counter() - begun
    begun = time.perf_counter()
    scorer.score(part)
    whole += time.perf_counter() - begun
print(json.dumps({{"model": len(files) / model, "whole": len(files) / whole}}))
"""


def folder_run(count: int, *, dtype: str, model: str | None = None, threads: int | None = None) -> dict[str, float]:
    """A folder of JPEGs end to end against the model alone on prepared input, in turns of 64 files.

    Returns:
        Images per second of the `model` alone and of the `whole`, and `share`, whole / model.
    """
    import json

    code = FOLDER_RUN.format(package=package_name.rpartition(".")[0])
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), count)
        done = subprocess.run(
            [sys.executable, "-c", code, folder, model or "", dtype], check=True, capture_output=True, text=True,
            env=environment(threads),
        )  # fmt: skip
    rates: dict[str, float] = json.loads(done.stdout)
    return {**rates, "share": rates["whole"] / rates["model"]}


def folder_growth(
    counts: Sequence[int], *, model: str | None = None, threads: int | None = None
) -> list[dict[str, float]]:
    """How long `rali score FOLDER` takes, from nothing to the table, by the number of files.

    Returns:
        For each of `counts` the `images` and the `seconds`.
    """
    code = f"from {package_name.rpartition('.')[0]}.cli import main; import sys; sys.exit(main())"
    options = ["--model", model] if model else []
    grown = []
    with tempfile.TemporaryDirectory() as root:
        for count in counts:
            folder = Path(root, str(count))
            folder.mkdir()
            make_folder(folder, count)
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", code, "score", str(folder), *options], check=True, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=environment(threads),
            )  # fmt: skip
            grown.append({"images": float(count), "seconds": time.perf_counter() - begun})
    return grown


def cache_hit(*, rounds: int) -> dict[str, float]:
    """Milliseconds of finding four 1024 x 1024 pictures in the cache, hashing included, laid out as in ComfyUI."""
    import torch

    from ..score_cache import ScoreCache

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


def agreement(pictures: Path, count: int, dtypes: Sequence[str], model: str | None = None) -> dict[str, Any]:
    """How far reduced precision moves the scores of real pictures: rank correlation with float32, largest difference.

    Args:
        pictures: A folder of pictures.
        count: How many of them, chosen at random with a seed.
        dtypes: For `RaliScorer`.
        model: By default the bundled one.
    """
    import random

    import torch

    from ..images import IMAGE_SUFFIXES, load_image
    from ..scorer import RaliScorer

    files = sorted(file for file in pictures.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
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
            "pictures": len(chosen),
            "srcc": float(np.corrcoef(exact.argsort().argsort(), np.argsort(np.argsort(scores[dtype])))[0, 1]),
            "largest": float(np.abs(exact - scores[dtype]).max()),
        }
        for dtype in dtypes
    }


def describe_machine() -> dict[str, Any]:
    """Processor, memory and versions."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    names = {
        "torch",
        "transformers",
        "torchvision",
        "torchmetrics",
        "timm",
        "numpy",
        "pillow",
        "brisque",
        "scikit-video",
    }
    versions = {}
    for name in sorted(names):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = lines[0] if lines else processor
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor,
        "cores": usable,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }
