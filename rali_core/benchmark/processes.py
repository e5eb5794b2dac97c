"""Contenders in processes of their own, asked in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __name__ as package_name


@dataclass(frozen=True)
class Case:
    """What is scored.

    Attributes:
        size: Side of the square pictures in pixels.
        batch: How many at once.
        kind: `"pil"` images or one `"tensor"`.
    """

    size: int = 512
    batch: int = 1
    kind: str = "pil"

    def __str__(self) -> str:
        return f"{self.size} x {self.size}, batch {self.batch}, {self.kind}"


def environment(threads: int | None) -> dict[str, str]:
    """Of a measured process: this package can be imported, nothing is downloaded, and so many threads."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **limits, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class Worker:
    """A contender's process.

    Args:
        name: A name for `contenders.make`.
        model: The user's model, where the name asks for it.
        threads: Of the computation; by default as the libraries choose.

    Attributes:
        error: Why it cannot be measured, or None.
        load: Seconds from its imports to the loaded model.
    """

    def __init__(self, name: str, *, model: str | None = None, threads: int | None = None) -> None:
        self.name = name
        command = [sys.executable, "-m", f"{package_name}.worker", name, *([model] if model else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment(threads),
        )  # fmt: skip
        first = self._read()
        self.error: str | None = first.get("error")
        self.load: float = first.get("load", float("nan"))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def measure(self, case: Case) -> dict[str, Any]:
        """Score the case once, after an unmeasured time where it is new; see `worker.main` for what comes back."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(vars(case)), file=self._process.stdin, flush=True)
        except OSError:
            return {"error": "its process ended"}
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"its process ended (exit status {self._process.wait()}); was the memory enough?"}
        answer: dict[str, Any] = json.loads(line)
        return answer
