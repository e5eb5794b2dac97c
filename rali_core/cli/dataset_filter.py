"""`rali dataset filter`: the best images of a scored data set, listed, linked or copied."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ._common import SLOW_SECONDS

DESCRIPTION = """\
Choose from a scored data set and print the chosen files, one per line, or link or copy them into a folder under their
ids. Images with an error are never chosen. Where several conditions are given, all must hold."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("filter", help="list, link or copy the best", description=DESCRIPTION)
    parser.add_argument("out", metavar="OUT", help="folder that `rali dataset score` filled")
    choice = parser.add_argument_group("conditions")
    choice.add_argument("--min-score", type=float, metavar="S", help="at least this score")
    choice.add_argument("--top-fraction", type=float, metavar="F", help="the best part, 0..1 (0.1: the best tenth)")
    choice.add_argument("--top-k", type=int, metavar="K", help="the best K")
    choice.add_argument("--per-group", metavar="COLUMN",
                        help="--top-fraction and --top-k per equal value; 'folder': the id's folder")  # fmt: skip
    choice.add_argument("--incomplete", action="store_true", help="choose though not all images are scored yet")
    output = parser.add_argument_group("output").add_mutually_exclusive_group()
    output.add_argument("--list", metavar="FILE", nargs="?", const="-", default="-",
                        help="write the list to a file (default: standard output)")  # fmt: skip
    output.add_argument("--link", metavar="DIR", help="make symbolic links in this folder")
    output.add_argument("--copy", metavar="DIR", help="copy into this folder; images inside tars and Parquet files too")
    parser.add_argument("-0", "--null", action="store_true", help="end the list's lines with a zero byte (xargs -0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Choose, then list, link or copy."""
    from tqdm import tqdm

    from ..dataset.export import copy_images, link_images, write_list
    from ..dataset.filter import filter_dataset

    chosen = filter_dataset(
        options.out,
        min_score=options.min_score,
        top_fraction=options.top_fraction,
        top_k=options.top_k,
        per_group=options.per_group,
        incomplete=options.incomplete,
    )
    count = len(chosen.positions)
    groups = f" in {chosen.groups:,} groups" if options.per_group else ""
    print(f"rali: {count:,} of {chosen.scored:,} scored images chosen{groups}", file=sys.stderr)
    target = options.link or options.copy
    if target is None:
        end = b"\0" if options.null else b"\n"
        if options.list == "-":
            write_list(chosen, sys.stdout.buffer, end=end)
            sys.stdout.buffer.flush()
        else:
            with open(options.list, "wb") as file:
                write_list(chosen, file, end=end)
        return 0
    with tqdm(total=count, unit="image", delay=SLOW_SECONDS, disable=None, file=sys.stderr) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        place = link_images if options.link else copy_images
        problems = place(chosen, Path(target), report=show)
    for problem in problems:
        print(f"rali: {problem}", file=sys.stderr)
    return int(bool(problems))
