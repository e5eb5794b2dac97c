"""`rali dataset`: scoring, filtering and summarising data sets of any size."""

from __future__ import annotations

from typing import Any

from . import dataset_filter, dataset_score, dataset_stats

COMMANDS = (dataset_score, dataset_filter, dataset_stats)

DESCRIPTION = """\
Score a data set into a folder of Parquet files, filter it, and summarise it. Needs pip install
"rali-score[dataset]"."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand and those inside it."""
    parser = subparsers.add_parser(
        "dataset", help="score, filter and summarise whole data sets", description=DESCRIPTION
    )
    inner = parser.add_subparsers(title="commands", dest="dataset_command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(inner)
