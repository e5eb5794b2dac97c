"""`rali train`: from a table of human scores to a model file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

DESCRIPTION = """\
Train a model as a configuration file says: describe the images, align a pretrained image tower with the descriptions,
compress its embeddings to prototypes, fit these to the human scores; then, where configured, align several data sets by
text (ract) and tune tower and head together (joint). What each stage made is kept in the configured work_dir: an
interrupted run goes on where it stopped when the same command is given again, and a finished stage is run again only
if its inputs changed. docs/training.md tells all settings; configs/small.toml is an example."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("train", help="train a model from human scores", description=DESCRIPTION)
    parser.add_argument("config", metavar="CONFIG.toml", help="what to train, on what, and how")
    parser.add_argument(
        "--stage", action="append", metavar="NAME",
        help="run only this stage (may be given several times): describe, align, compress, fit, ract, joint",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train."""
    from ..training.config import read_config
    from ..training.recipe import Recipe

    recipe = Recipe(read_config(options.config), report=lambda line: print(line, file=sys.stderr, flush=True))
    recipe.run(options.stage)
    return 0
