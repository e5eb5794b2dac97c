"""What is measured with which contenders: in two minutes, by a user, or for the documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

from . import __name__ as package_name
from . import measure
from .contenders import OFFICIAL_FILE, REFERENCE
from .measure import Say
from .processes import Case, environment
from .report import FAST, NIQE, SMALL

Extent = Literal["quick", "user", "full"]

BRISQUE, CLIP_IQA = "BRISQUE (brisque)", "CLIP-IQA (torchmetrics)"
RESNET, VIT = "ResNet-50, whole picture (timm)", "ViT-B/8, one crop (timm)"
OURS_OFFICIAL = "ours, official encoder, float32"
OURS_SMALL = "ours, bundled, float32"
QUICK = (REFERENCE, OURS_OFFICIAL, FAST, OURS_SMALL, SMALL)
FULL = (
    *(REFERENCE, OURS_OFFICIAL, "ours, official encoder, bfloat16", "ours, official encoder, float16"),
    *(FAST, OURS_SMALL, "ours, bundled, bfloat16", SMALL, "ours, bundled at 224, float32"),
    *("ours, bundled at 224, auto", CLIP_IQA, RESNET, VIT, BRISQUE, NIQE),
)
SCALING = (REFERENCE, FAST, OURS_SMALL, SMALL, RESNET, BRISQUE, NIQE)
SIZES, BATCHES = (256, 512, 1024, 2048, 4096), (1, 4, 16, 64)
SLOW_S = 20.0
"""Contenders whose pass takes longer are measured once per case."""


@contextmanager
def _official_file() -> Iterator[None]:
    """A file of the official architecture for the contenders, made by a process whose memory is not measured."""
    code = (
        f"import sys; from pathlib import Path; from {package_name}.contenders import write_official; "
        "write_official(Path(sys.argv[1]))"
    )
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
    """Finished parts of a long run, in a file, so that a run that was interrupted goes on."""

    def __init__(self, result: dict[str, Any], file: Path | None, key: dict[str, Any]) -> None:
        self.result, self._file, self._key = result, file, key
        self._kept: dict[str, Any] = {}
        if file is not None and file.is_file():
            kept = json.loads(file.read_text())
            self._kept = kept["parts"] if kept["key"] == json.loads(json.dumps(key)) else {}

    def add(self, name: str, say: Say, what: str, measured: Callable[[], Any]) -> None:
        """Measure a part, or take it from the file."""
        if name in self._kept:
            say(f"{what}: measured before")
        else:
            say(what)
            self._kept[name] = measured()
            if self._file is not None:
                self._file.write_text(json.dumps({"key": self._key, "parts": self._kept}) + "\n")
        self.result[name] = self._kept[name]


def run_suite(
    extent: Extent, *, model: str | None = None, threads: int | None = None, rounds: int | None = None,
    images: int = 1000, pictures: Path | None = None, parts: Path | None = None, say: Say = print,
) -> dict[str, Any]:  # fmt: skip
    """Measure.

    Args:
        extent: `"quick"`: two minutes; `"user"`: the user's model, or the bundled one, beside the official recipe;
            `"full"`: everything.
        model: Name or file, for `"user"`.
        threads: Of each contender; by default as torch chooses.
        rounds: How often each contender scores each case.
        images: Files of the folder run.
        pictures: A folder of real pictures, on which reduced precision is compared with float32.
        parts: File in which finished parts are kept; with one of the same machine and options only what it lacks is
            measured. Not for `"quick"`.
        say: Called with lines on what is going on.

    Returns:
        JSON: `machine`, `compare` (see `measure.compare`), and with more than `"quick"` `cold_start`, `folder`,
        `cache`, `memory`, `growth`, `scaling` (the same as `compare`) and, with `pictures`, `agreement`.
    """
    options: dict[str, Any] = {"reference": REFERENCE, "threads": threads, "say": say}
    result: dict[str, Any] = {"extent": extent, "machine": measure.describe_machine()}
    if extent == "quick":
        with _official_file():
            result["compare"] = measure.compare(QUICK, [Case()], rounds=rounds or 3, limit_s=SLOW_S, **options)
        result["cache"] = measure.cache_hit(rounds=9)
        return result
    key = {"extent": extent, "model": model, "threads": threads, "rounds": rounds, "images": images,
           "pictures": None if pictures is None else str(pictures), "machine": result["machine"]}  # fmt: skip
    kept = _Parts(result, parts, key)
    if extent == "user":
        names: tuple[str, ...] = (REFERENCE, "model, float32", "model, auto")
        cases = [Case(), Case(batch=4), Case(kind="tensor")]
        options |= {"model": model}
    else:
        names, cases = FULL, [Case(), Case(kind="tensor")]
    with _official_file() if extent == "full" else nullcontext():
        kept.add("compare", say, "single pictures" if extent == "full" else "speed", partial(
            measure.compare, names, cases, rounds=rounds or (9 if extent == "full" else 5), limit_s=SLOW_S, **options
        ))  # fmt: skip
        if extent == "full":
            grown = [Case(size) for size in SIZES] + [Case(batch=batch) for batch in BATCHES[1:]]
            kept.add("scaling", say, "growing sizes and batches", partial(
                measure.compare, SCALING, grown, rounds=3, limit_s=SLOW_S, **options
            ))  # fmt: skip
        kept.add("memory", say, "memory, one contender after the other", partial(
            measure.peak_memory, names, reference=REFERENCE, case=Case(), model=model, threads=threads
        ))  # fmt: skip
    kept.add("cold_start", say, "cold start", partial(measure.cold_start, rounds=rounds or 7, threads=threads))
    kept.add("folder", say, f"a folder of {images} files", partial(
        measure.folder_run, images, dtype="float32", model=model, threads=threads
    ))  # fmt: skip
    if extent == "full":
        counts = sorted({1, 10, 100, images})
        kept.add("growth", say, f"folders of {counts} files", partial(measure.folder_growth, counts, threads=threads))
    kept.add("cache", say, "score cache", partial(measure.cache_hit, rounds=25))
    if pictures is not None:
        kept.add("agreement", say, f"agreement with float32 on pictures of {pictures}", partial(
            measure.agreement, pictures, 200, ("bfloat16", "float16"), model
        ))  # fmt: skip
    return result
