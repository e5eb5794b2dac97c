"""`rali bench`: how fast a model scores on this machine, beside the authors' architecture."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ._outputs import check_file, open_output

DESCRIPTION = """\
Measure speed, memory and start of your model (by default the bundled one) on this machine, beside the authors'
architecture (ViT-L/14 at 336 pixels with random weights: same cost, nothing is downloaded), in turns, each in its own
process. Some minutes."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("bench", help="measure speed and memory on this machine", description=DESCRIPTION)
    parser.add_argument("--model", metavar="NAME_OR_FILE", help="model name or .safetensors file (default: bundled)")
    parser.add_argument("--quick", action="store_true", help="two minutes: speed only")
    parser.add_argument("--threads", type=int, metavar="N", help="of each process (default: torch's choice)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="measurements of each case (default: 5)")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="files of the folder run (default: 200)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    from ..benchmark import OFFICIAL, format_case, measure_model
    from ..hub import find_model

    for name in ("threads", "rounds", "images"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    check_file(options.json, "--json")
    find_model(options.model)
    result = measure_model(
        options.model, threads=options.threads, rounds=options.rounds, images=options.images, quick=options.quick,
        log=lambda line: print(f"rali: {line}", file=sys.stderr),
    )  # fmt: skip
    if options.json:
        with open_output(options.json) as file:
            file.write(json.dumps(result, indent=1).encode() + b"\n")
    for case in result["compare"]["cases"]:
        print(format_case(case, OFFICIAL), end="\n\n")
    for name, reason in result["compare"]["missing"].items():
        print(f"not measured: {name}: {reason}")
    for name, values in result.get("memory", {}).items():
        print(f"peak memory: {name}: {values['peak'] / 2**20:,.0f} MiB")
    if "cold_start" in result:
        start = result["cold_start"]
        print(f"rali score one.jpg: {start['seconds']['rali score one.jpg']['median']:.1f} s, "
              f"{start['ratio']['median']:.2f} x `import torch`")  # fmt: skip
        folder = result["folder"]
        print(f"folder: {folder['whole']:.1f} images/s, {folder['share']:.0%} of the model alone")
    return 0
