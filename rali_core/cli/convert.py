"""`rali convert`: the authors' release to one model file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Convert a downloaded RALI release (ckpt.pt, pca.pkl, basis.npz and best/) to one .safetensors model file: image tower
and head only. No pickle is run. What is missing or does not fit is listed, and then nothing is written."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("convert", help="convert the authors' release", description=DESCRIPTION)
    parser.add_argument("release", metavar="RELEASE_DIR", help="folder that holds ckpt.pt, or RALI/ckpt.pt")
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write (default: rali-official.safetensors)")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16",
                        help="of the image tower; the head stays float32 (default: float16)")  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert."""
    from ..hub import OFFICIAL_FILE
    from ..official.convert import convert
    from ._common import show_progress
    from ._outputs import check_file

    check_file(options.output or OFFICIAL_FILE, "--output")
    with show_progress("converting") as progress:
        made = convert(options.release, options.output or OFFICIAL_FILE, dtype=options.dtype, progress=progress)
    size = Path(made.path).stat().st_size / 1e6
    print(f"wrote {made.path} ({size:.1f} MB, tower in {options.dtype})")
    for what, why in made.release.dropped.items():
        print(f"  left out {what}: {why}")
    print(f"use it with --model {made.path}")
    print(f"`rali verify {made.path} {options.release}` compares it with the release tensor by tensor")
    return 0
