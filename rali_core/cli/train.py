"""`rali train`: from a table of human scores to a model file."""

from __future__ import annotations

import argparse
from typing import Any

DESCRIPTION = """\
Train a model as a configuration file says, in five stages: describe the images, align a pretrained image encoder with
the descriptions, tune it on the human scores, compress its embeddings to prototypes, fit these to the scores. The
outputs of each stage stay in the configured work_dir: run the same command again to resume an interrupted run,
a finished stage is re-run only if its inputs changed. A configuration whose backbone is a model file trains
that one further. docs/training.md lists all settings; configs/train-your-own.toml is an example."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("train", help="train a model from human scores", description=DESCRIPTION)
    parser.add_argument("config", metavar="CONFIG.toml", help="the training's configuration")
    parser.add_argument(
        "--stage", action="append", metavar="NAME",
        help="run only this stage (may be given several times): describe, align, tune, compress, fit",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N",
                        help="a quick trial with at most N images of each set, in a work_dir of its own")  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train."""
    from ..training.config import read_config
    from ..training.pipeline import train

    train(read_config(options.config), stages=options.stage, limit=options.limit)
    return 0
