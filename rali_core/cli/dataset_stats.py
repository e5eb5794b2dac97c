"""`rali dataset stats`: a scored data set in numbers."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ._console import emit, shown

DESCRIPTION = """\
Print how many images were scored, mean and quantiles, images per band, and the most frequent errors; with --by a line
per group. Works during a run as well."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("stats", help="summarise a scored data set", description=DESCRIPTION)
    parser.add_argument("out", metavar="OUT", help="folder that `rali dataset score` filled")
    parser.add_argument("--by", metavar="COLUMN", help="a line per value of this column; 'folder': the id's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Summarise and print."""
    from ..dataset.stats import format_summary, summarise, summarise_groups

    if options.by is None:
        summary = summarise(options.out)
        if options.json:
            emit(json.dumps(summary.to_dict(), indent=1))
        else:
            for line in format_summary(summary).splitlines():
                emit(shown(line))
        return 0
    groups = summarise_groups(options.out, options.by)
    if options.json:
        records = [asdict(group) for group in groups]
        for record in records:
            record |= {name: None for name in ("mean", "best") if record[name] != record[name]}  # NaN is not JSON
        emit(json.dumps(records, indent=1))
        return 0
    emit(f"  mean    best    scored    errors  {shown(options.by)}")
    for group in groups:
        emit(f"{group.mean:6.4f}  {group.best:6.4f}  {group.scored:>8,}  {group.errors:>8,}  {shown(group.value)}")
    return 0
