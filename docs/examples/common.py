"""Command line arguments that the examples share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rali_core import RaliScorer


def parser(description: str | None, *, n: int = 8) -> argparse.ArgumentParser:
    """The arguments of every example that runs a pipeline."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--model",
        default="graded",
        help="graded (one photograph, blurred as the seed has it; the default); sd15, sdxl, sd3 or flux (tiny, with "
        "random weights: noise); or a real model's name",
    )
    result.add_argument("--prompt", default="a photograph of a cat")
    result.add_argument("--steps", type=int, default=10)
    result.add_argument("--size", type=int, help="height and width in pixels (default: the model's own)")
    result.add_argument("--n", type=int, default=n, help="candidates")
    result.add_argument("--keep", type=int, default=1, help="images to keep")
    result.add_argument("--rali", metavar="FILE", help="RALI model file (default: the bundled one)")
    result.add_argument("--output", type=Path, default=Path("output"), help="output folder")
    return result


def pipeline_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What goes to the pipeline."""
    size = {} if options.size is None else {"height": options.size, "width": options.size}
    if options.model == "flux":
        size["max_sequence_length"] = 32  # the tiny tokenizer's
    return {"prompt": options.prompt, "num_inference_steps": options.steps, **size}


def scorer_from(options: argparse.Namespace) -> RaliScorer:
    """The scorer that `--rali` asks for."""
    return RaliScorer.from_pretrained(options.rali)
