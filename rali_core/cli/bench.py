"""`rali bench`: how fast scoring is on this machine, beside the official recipe."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ._outputs import check_file, open_output

DESCRIPTION = """\
Measure scoring on this machine with your model (by default the bundled one) beside the official recipe (transformers'
CLIPModel in float32 with random weights: same cost, nothing is downloaded), in turns, each in its own process. Some
minutes. Speed and memory are shown as multiples of the recipe's. Needs pip install "rali-score[bench]"."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("bench", help="measure speed and memory on this machine", description=DESCRIPTION)
    parser.add_argument("--model", metavar="NAME_OR_FILE", help="model name or .safetensors file (default: bundled)")
    parser.add_argument("--quick", action="store_true", help="two minutes: our models' speed only")
    parser.add_argument("--threads", type=int, metavar="N", help="of each contender (default: torch's choice)")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each contender scores each case")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="files of the folder run (default: 200)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    from ..benchmark.contenders import REFERENCE
    from ..benchmark.report import format_case, format_goals
    from ..benchmark.suite import run_suite

    for name in ("threads", "rounds", "images"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    check_file(options.json, "--json")
    result = run_suite(
        "quick" if options.quick else "user", model=options.model, threads=options.threads, rounds=options.rounds,
        images=options.images, say=lambda line: print(f"rali: {line}", file=sys.stderr),
    )  # fmt: skip
    if options.json:
        with open_output(options.json) as file:
            file.write(json.dumps(result, indent=1).encode() + b"\n")
    for case in result["compare"]["cases"]:
        print(format_case(case, REFERENCE), end="\n\n")
    for name, reason in result["compare"]["missing"].items():
        print(f"not measured: {name}: {reason}")
    for name, values in result.get("memory", {}).items():
        share = values.get("ratio", float("nan"))
        print(f"peak memory: {name}: {values['peak'] / 2**20:,.0f} MiB, {share:.2f} of the recipe's")
    if "cold_start" in result:
        print(f"rali score one.jpg: {result['cold_start']['ratio']['median']:.2f} x `import torch`")
        folder = result["folder"]
        print(f"folder: {folder['whole']:.1f} images/s, {folder['share']:.0%} of the model alone")
    print(f"cache hit, 4 x 1024 x 1024: {result['cache']['median']:.1f} ms")
    if not options.quick and options.model is None:
        print("", format_goals(result), sep="\n")
    return 0
