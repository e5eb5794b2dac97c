"""`rali best`: the K best images, listed or copied."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from ..files import find_images
from ._common import (
    add_cache_argument,
    add_model_arguments,
    add_path_arguments,
    load_scorer,
    report_errors,
    score_files,
)


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "best",
        help="find the K best images, and copy them",
        description="Print the files of the K best images, best first, and copy them where --copy-to is given.",
    )
    add_path_arguments(parser)
    parser.add_argument("-k", type=int, default=1, metavar="K", help="how many (default: 1)")
    parser.add_argument(
        "--copy-to", metavar="DIR", help="copy them there, under their own names; nothing is overwritten"
    )
    add_model_arguments(parser)
    add_cache_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score, print and copy."""
    from ..selection import top_k

    if options.k < 1:
        raise ValueError(f"-k must be at least 1, got {options.k}")
    files = find_images(options.paths, recursive=options.recursive)
    target = Path(options.copy_to) if options.copy_to else None
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
    results, interrupted = score_files(load_scorer(options), files)
    if interrupted:
        print("rali: not all images were scored, so nothing was chosen", file=sys.stderr)
        return 130
    for position in top_k([result.score for result in results], options.k):
        file = files[results[position].index]
        print(f"{results[position].score:.4f}  {file}")
        if target is not None:
            shutil.copy2(file, _free_name(target, file))
    return int(report_errors(files, results) > 0)


def _free_name(folder: Path, file: Path) -> Path:
    """`folder/name`, or `folder/name-2` and so on where that exists."""
    candidate, number = folder / file.name, 2
    while candidate.exists():
        candidate, number = folder / f"{file.stem}-{number}{file.suffix}", number + 1
    return candidate
