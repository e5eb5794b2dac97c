"""`rali dataset filter`: the best images of a scored data set, listed, linked, copied or moved."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..exports import Mode
from ._common import number
from ._console import SLOW_SECONDS, say, shown
from ._outputs import check_file, check_folder, open_output
from .best import add_export_arguments, export_target

DESCRIPTION = """\
Choose from a scored data set and print the chosen files, one per line, or link, copy or move them into a folder under
their ids. Images with an error are never chosen. Where several conditions are given, all must hold."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("filter", help="list, link, copy or move the best", description=DESCRIPTION)
    parser.add_argument("out", metavar="OUT", help="folder that `rali dataset score` filled")
    choice = parser.add_argument_group("conditions")
    choice.add_argument("--min-score", type=number, metavar="S", help="at least this score")
    choice.add_argument("--max-score", type=number, metavar="S", help="at most this score")
    choice.add_argument("--top-fraction", type=number, metavar="F", help="the best part, 0..1 (0.1: the best tenth)")
    choice.add_argument("--top-k", type=int, metavar="K", help="the best K")
    choice.add_argument("--per-group", metavar="COLUMN",
                        help="--top-fraction and --top-k per equal value; 'folder': the id's folder")  # fmt: skip
    choice.add_argument("--incomplete", action="store_true", help="choose although not all images are scored yet")
    output = parser.add_argument_group("list").add_mutually_exclusive_group()
    output.add_argument("--list", metavar="FILE", nargs="?", const="-",
                        help="write the list to a file (default: standard output)")  # fmt: skip
    output.add_argument("--link", metavar="DIR", help="create symbolic links in this folder")
    parser.add_argument("-0", "--null", action="store_true", help="end the list's lines with a null byte (xargs -0)")
    add_export_arguments(parser, "--copy")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Choose, then list, link, copy or move."""
    from tqdm import tqdm

    from ..dataset.export import export_images, write_list
    from ..dataset.filter import filter_dataset

    target, mode = _target(options)
    check_file(options.list, "--list")
    conditions = {name: getattr(options, name) for name in ("min_score", "max_score", "top_fraction", "top_k")}
    if options.into_bands and all(value is None for value in conditions.values()):
        conditions["min_score"] = float("-inf")  # all that have a band
    chosen = filter_dataset(options.out, **conditions, per_group=options.per_group, incomplete=options.incomplete)
    count = len(chosen.positions)
    groups = f" in {chosen.groups:,} groups" if options.per_group else ""
    say(f"{count:,} of {chosen.scored:,} scored images chosen{groups}")
    if chosen.no_content:
        say(f"{chosen.no_content:,} of them have no content")
    if target is None:
        with open_output(options.list or "-") as file:
            write_list(chosen, file, end=b"\0" if options.null else b"\n")
        return 0
    with tqdm(total=count, unit="image", delay=SLOW_SECONDS, disable=None, file=sys.stderr) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        problems = export_images(
            chosen, Path(target), mode, sidecars=options.sidecars, bands=bool(options.into_bands), report=show
        )
    for problem in problems:
        say(shown(problem))
    done = {"copy": "copied to", "move": "moved to", "link": "linked to in"}[mode]
    say(f"{count - len(problems):,} images {done} {shown(target)}")
    return int(bool(problems))


def _target(options: argparse.Namespace) -> tuple[str | None, Mode]:
    if options.list is not None and (options.copy_to or options.into_bands or options.move):
        raise ValueError("--list writes a list, and a folder is named too: give one of them")
    if not options.link:
        return export_target(options, "--copy")
    if options.copy_to or options.into_bands or options.move:
        raise ValueError("--link names a folder, and another option does so too: give one of them")
    check_folder(options.link, "--link")
    return options.link, "link"
