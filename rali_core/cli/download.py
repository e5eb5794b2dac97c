"""`rali download`: the authors' weights."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..constants import PRECISIONS
from ._console import show_progress

DESCRIPTION = """\
Download the authors' release (ByteDance/Q-Insight, folder RALI, about 1.7 GB), check each file's hash, and convert it
(about 610 MB more in float16). Afterwards `--model official` works in every command and in Python. HF_ENDPOINT,
HF_HUB_OFFLINE and HF_HOME are obeyed. A cut connection is resumed; after an interruption, complete files are not
downloaded again."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("download", help="download the authors' weights", description=DESCRIPTION)
    parser.add_argument("model", choices=("official",), help="which model")
    parser.add_argument("--folder", metavar="DIR", help="where to put it (default: the user's cache)")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float16",
                        help="of the converted image encoder (default: float16)")  # fmt: skip
    parser.add_argument("--revision", default="main", help="branch, tag or commit of the repository (default: main)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Download and convert."""
    from ..official.install import install_official

    with show_progress("converting") as progress:
        path = install_official(
            options.folder,
            dtype=options.dtype,
            revision=options.revision,
            report=lambda line: print(f"rali: {line}", file=sys.stderr, flush=True),
            progress=progress,
        )
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): use it with --model official")
    return 0
