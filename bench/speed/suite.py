"""Which scorers are measured: in two minutes, or everything for the documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rali_core.benchmark import (
    Case,
    Log,
    cold_start,
    compare,
    compare_memory,
    describe_machine,
    environment,
    folder_run,
)

from . import measure
from .baselines import OFFICIAL_FILE, REFERENCE
from .report import FAST, NIQE, SMALL

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "transformers",
    "torchvision",
    "torchmetrics",
    "timm",
    "numpy",
    "pillow",
    "brisque",
    "scikit-video",
)
BRISQUE, CLIP_IQA = "BRISQUE (brisque)", "CLIP-IQA (torchmetrics)"
RESNET, VIT = "ResNet-50, whole image (timm)", "ViT-B/8, one crop (timm)"
OURS_OFFICIAL = "ours, official encoder, float32"
OURS_SMALL = "ours, bundled, float32"
QUICK = (REFERENCE, OURS_OFFICIAL, FAST, OURS_SMALL, SMALL)
FULL = (
    *(REFERENCE, OURS_OFFICIAL, "ours, official encoder, bfloat16", "ours, official encoder, float16"),
    *(FAST, OURS_SMALL, "ours, bundled, bfloat16", SMALL, CLIP_IQA, RESNET, VIT, BRISQUE, NIQE),
)
SCALING = (REFERENCE, FAST, OURS_SMALL, SMALL, RESNET, BRISQUE, NIQE)
SIZES, BATCHES = (256, 512, 1024, 2048, 4096), (1, 4, 16, 64)


def commands(names: Sequence[str]) -> dict[str, list[str]]:
    """By name the command of each scorer's process."""
    # By path: `-m` would look for the package where the process is started.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['worker', *sys.argv[1:]]; " \
           "import runpy; runpy.run_module('bench.speed.worker', run_name='__main__')"  # fmt: skip
    return {name: [sys.executable, "-c", code, name] for name in names}


@contextmanager
def _official_file() -> Iterator[None]:
    """A file of the official architecture for the scorers, made by a process whose memory is not measured."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; " \
           "from bench.speed.baselines import write_official; write_official(Path(sys.argv[1]))"  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "official.safetensors")
        command = [sys.executable, "-c", code, str(file)]
        subprocess.run(command, check=True, env=environment(None))
        os.environ[OFFICIAL_FILE] = str(file)
        try:
            yield
        finally:
            del os.environ[OFFICIAL_FILE]


class _Parts:
    """Finished parts of a long run, in a file, so that an interrupted run resumes."""

    def __init__(self, result: dict[str, Any], file: Path | None, key: dict[str, Any]) -> None:
        self.result, self._file, self._key = result, file, key
        self._kept: dict[str, Any] = {}
        if file is not None and file.is_file():
            kept = json.loads(file.read_text())
            self._kept = kept["parts"] if kept["key"] == json.loads(json.dumps(key)) else {}

    def add(self, name: str, log: Log, what: str, measured: Callable[[], Any]) -> None:
        """Measure a part, or take it from the file."""
        if name in self._kept:
            log(f"{what}: measured before")
        else:
            log(what)
            self._kept[name] = measured()
            if self._file is not None:
                self._file.write_text(json.dumps({"key": self._key, "parts": self._kept}) + "\n")
        self.result[name] = self._kept[name]


def run_quick(*, threads: int | None = None, rounds: int = 3, log: Log = print) -> dict[str, Any]:
    """Our models' speed beside the official recipe's, on one size.

    Args:
        threads: Of each scorer; by default as torch chooses.
        rounds: How often each scorer scores.
        log: Called with lines of progress.

    Returns:
        JSON: `machine`, `compare` (see `rali_core.benchmark.compare`), and `cache`.
    """
    result: dict[str, Any] = {"machine": describe_machine(PACKAGES)}
    with _official_file():
        result["compare"] = compare(
            commands(QUICK), [Case()], reference=REFERENCE, rounds=rounds, threads=threads, log=log
        )
    result["cache"] = measure.cache_hit(rounds=9)
    return result


def run_full(
    *, threads: int | None = None, rounds: int | None = None, images: int = 1000, image_folder: Path | None = None,
    parts: Path | None = None, log: Log = print,
) -> dict[str, Any]:  # fmt: skip
    """Measure everything.

    Args:
        threads: Of each scorer; by default as torch chooses.
        rounds: How often each scorer scores each case.
        images: Files of the folder run.
        image_folder: A folder of real images, on which reduced precision is compared with float32.
        parts: File in which finished parts are kept; with one of the same machine and options only missing
            parts are measured.
        log: Called with lines of progress.

    Returns:
        JSON: `machine`, `compare` and `scaling` (see `rali_core.benchmark.compare`), `memory`, `cold_start`, `folder`,
        `growth`, `cache` and, with `image_folder`, `agreement`.
    """
    options: dict[str, Any] = {"reference": REFERENCE, "threads": threads, "log": log}
    result: dict[str, Any] = {"machine": describe_machine(PACKAGES)}
    key = {"threads": threads, "rounds": rounds, "images": images,
           "image_folder": image_folder and str(image_folder), "machine": result["machine"]}  # fmt: skip
    kept = _Parts(result, parts, key)
    grown = [Case(size) for size in SIZES] + [Case(batch=batch) for batch in BATCHES[1:]]
    counts = sorted({1, 10, 100, images})
    with _official_file():
        kept.add("compare", log, "single images", partial(
            compare, commands(FULL), [Case(), Case(kind="tensor")], rounds=rounds or 9, **options
        ))  # fmt: skip
        kept.add("scaling", log, "growing sizes and batches", partial(
            compare, commands(SCALING), grown, rounds=3, **options
        ))  # fmt: skip
        kept.add("memory", log, "memory, one scorer at a time", partial(
            compare_memory, commands(FULL), reference=REFERENCE, case=Case(), threads=threads
        ))  # fmt: skip
    kept.add("cold_start", log, "cold start", partial(cold_start, rounds=rounds or 7, threads=threads))
    kept.add("folder", log, f"a folder of {images} files", partial(folder_run, images, threads=threads))
    kept.add("growth", log, f"folders of {counts} files", partial(measure.folder_growth, counts, threads=threads))
    kept.add("cache", log, "score cache", partial(measure.cache_hit, rounds=25))
    if image_folder is not None:
        kept.add("agreement", log, f"agreement with float32 on images of {image_folder}", partial(
            measure.agreement, image_folder, 200, ("bfloat16", "float16")
        ))  # fmt: skip
    return result
