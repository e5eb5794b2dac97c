"""A contender's process: reads requests from standard input, a JSON object a line, and answers likewise.

Run by `processes.Worker`: `python -m PACKAGE.benchmark.worker NAME [MODEL]`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .contenders import make
from .memory import current_memory, peak_memory


def pictures(size: int, batch: int, kind: str) -> list[Image.Image] | Tensor:
    """Seeded pictures of coarse and fine structure."""
    generator = np.random.default_rng(size)
    made = []
    for _ in range(batch):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((size, size))
        noise = generator.integers(-8, 9, (size, size, 1))
        made.append(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))
    if kind == "pil":
        return [Image.fromarray(picture) for picture in made]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255.0


def main() -> None:
    """Load, then measure what is asked for until standard input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not mix with the answers
    warnings.simplefilter("ignore")

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    before, begun = current_memory(), time.perf_counter()
    try:
        contender = make(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    except Exception as error:  # the others are measured all the same
        answer(error=f"{type(error).__name__}: {error}"[:300])
        return
    answer(load=time.perf_counter() - begun)
    inputs: dict[tuple[int, int, str], Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        case = (request["size"], request["batch"], request["kind"])
        try:
            if case not in inputs:
                inputs = {case: pictures(*case)}  # one at a time: large ones would count as the contender's memory
                contender.score(inputs[case])
            wall, processor = time.perf_counter(), time.process_time()
            scores = contender.score(inputs[case])
            seconds = time.perf_counter() - wall, time.process_time() - processor
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}"[:300])
            continue
        answer(wall=seconds[0], processor=seconds[1], scores=len(scores), peak=peak_memory(), before=before,
               dtype=getattr(getattr(contender, "scorer", None), "dtype", None))  # fmt: skip


if __name__ == "__main__":
    main()
