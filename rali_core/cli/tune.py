"""`rali tune`: go on training a model file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

DESCRIPTION = """\
Tune a model file end to end on a table of human scores (CSV with the columns image, mos and optionally split) and on
pictures that are distorted by known levels, which need no scores. An interrupted run goes on where it stopped when the
same command is given again."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("tune", help="go on training a model file", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL.safetensors", help="model file to start from")
    parser.add_argument("labels", metavar="LABELS.csv", help="table with the columns image and mos")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="model file to write, .safetensors")
    parser.add_argument("--work-dir", required=True, metavar="DIR", help="folder for decoded pictures and checkpoints")
    parser.add_argument("--pristine", action="append", default=[], metavar="DIR",
                        help="folder of undistorted pictures (may be given several times)")  # fmt: skip
    parser.add_argument("--groups", type=int, default=2600, metavar="N",
                        help="pictures to distort at two known levels (default: 2600)")  # fmt: skip
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the tower's input (default: 336)")
    parser.add_argument("--positions-from", metavar="FILE",
                        help="pretrained tower to take position embeddings from")  # fmt: skip
    parser.add_argument("--images-root", metavar="DIR", help="folder of the images (default: that of the table)")
    parser.add_argument("--score-range", type=float, nargs=2, default=(0.0, 1.0), metavar=("WORST", "BEST"),
                        help="scale of the table's scores (default: 0 1)")  # fmt: skip
    parser.add_argument("--name", help="the new model's name (default: the output file's)")
    parser.add_argument(
        "--steps", type=int, help="optimiser steps (default: 340); 0 for --mix-with and --new-head alone"
    )
    parser.add_argument("--frozen-blocks", type=int, metavar="N",
                        help="lower blocks of the tower that stay as they are (default: 8)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, help="labelled images per step (default: 24)")
    parser.add_argument("--groups-per-batch", type=int, metavar="N",
                        help="distorted pictures per step, three versions each (default: 5)")  # fmt: skip
    parser.add_argument("--learning-rate", type=float, metavar="RATE",
                        help="peak learning rate of the tower's last block (default: 1e-4)")  # fmt: skip
    parser.add_argument("--head-learning-rate", type=float, metavar="RATE",
                        help="peak learning rate of prototypes, scores and temperature (default: 5e-4)")  # fmt: skip
    parser.add_argument("--layer-decay", type=float, metavar="FACTOR",
                        help="each earlier block's rate is this times the next one's (default: 0.8)")  # fmt: skip
    parser.add_argument("--kept-patches", type=float, metavar="SHARE",
                        help="share of the patches that a step sees, drawn at random (default: 1)")  # fmt: skip
    parser.add_argument("--whole-steps", type=int, metavar="N",
                        help="the last so many steps see all patches that the model looks at (default: 0)")  # fmt: skip
    parser.add_argument("--patch-pattern", choices=["all", "checkerboard"],
                        help="patches that the tuned model looks at (default: as the model does)")  # fmt: skip
    parser.add_argument("--order-weight", type=float, metavar="WEIGHT",
                        help="weight of the term that orders distorted pictures (default: 1)")  # fmt: skip
    parser.add_argument("--steady-weight", type=float, metavar="WEIGHT",
                        help="weight of moves of the score by mirroring and JPEG (default: 0)")  # fmt: skip
    parser.add_argument("--steady-pictures", type=int, metavar="N",
                        help="labelled images per step of which that is asked too (default: 0)")  # fmt: skip
    parser.add_argument("--new-head", action="store_true",
                        help="make PCA and prototypes anew from the tuned tower, and fit them to what a support vector "
                        "regression makes of the scores")  # fmt: skip
    parser.add_argument("--held-out-weight", type=float, default=0.0, metavar="WEIGHT",
                        help="let that regression learn the validation images too, each as much as so many training "
                        "images: for a last head, for then they tell nothing any more (default: 0, not)")  # fmt: skip
    parser.add_argument("--recalibrate", action="store_true",
                        help="fit slope and offset of the scores to the validation images at the end")  # fmt: skip
    parser.add_argument("--teacher", action="append", default=[], metavar="FILE",
                        help="model file or table of scores (.csv): these are mixed into the images' human "
                        "scores (may be given several times: their mean)")  # fmt: skip
    parser.add_argument("--teacher-share", type=float, default=0.5, metavar="SHARE",
                        help="share of them (default: 0.5)")  # fmt: skip
    parser.add_argument("--teacher-images", metavar="PATTERN",
                        help="ask them only about images with such file names, as 'ss02*' (default: all)")  # fmt: skip
    parser.add_argument("--unlabelled", action="append", default=[], metavar="DIR",
                        help="folder of pictures without human scores; they, and a distortion of each, are learnt with "
                        "the scores of --unlabelled-teacher (may be given several times)")  # fmt: skip
    parser.add_argument("--unlabelled-teacher", action="append", default=[], metavar="FILE",
                        help="model file that scores these (may be given several times: their mean)")  # fmt: skip
    parser.add_argument("--unlabelled-weight", type=float, default=1.0, metavar="WEIGHT",
                        help="how much each of these pictures counts for --new-head beside a labelled image (default: "
                        "1)")  # fmt: skip
    parser.add_argument("--mix-with", metavar="FILE",
                        help="model file whose weights are mixed into the tuned ones at the end")  # fmt: skip
    parser.add_argument("--mix-share", type=float, default=0.5, metavar="SHARE",
                        help="share of them (default: 0.5)")  # fmt: skip
    parser.add_argument("--runs", type=int, default=1, metavar="N",
                        help="trainings with seeds of their own, whose weights are averaged (default: 1)")  # fmt: skip
    parser.add_argument("--first-run", type=int, default=0, metavar="N",
                        help="number of the first of them, which is added to the seed of its random choices but the "
                        "split and the distorted pictures (default: 0)")  # fmt: skip
    parser.add_argument("--validation-fraction", type=float, default=0.1, metavar="SHARE",
                        help="share of the training rows that is held out, for validation and percentiles (default: "
                        "0.1)")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N training rows")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode images (default: 1)")
    parser.add_argument("--device", default="auto", metavar="NAME",
                        help="where to compute, as cpu or cuda:1 (default: a CUDA GPU where there is one)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice (default: 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Tune."""
    from dataclasses import replace

    from ..training.adapt import adapt
    from ..training.config import TAUGHT, CompressConfig
    from ..training.joint import JointSettings

    if options.held_out_weight < 0 or (options.held_out_weight and not options.new_head):
        raise ValueError(
            "--held-out-weight must be at least 0, and needs --new-head, whose regression it is about; got "
            f"{options.held_out_weight}"
        )
    given = {
        name: value
        for name in (
            "image_size", "frozen_blocks", "steps", "batch_size", "groups_per_batch", "learning_rate",
            "head_learning_rate", "layer_decay", "kept_patches", "whole_steps", "patch_pattern", "order_weight",
            "steady_weight", "steady_pictures", "seed",
        )
        if (value := getattr(options, name)) is not None
    }  # fmt: skip
    adapt(
        options.model,
        options.labels,
        options.output,
        work_dir=options.work_dir,
        pristine=options.pristine,
        groups=options.groups,
        positions_from=options.positions_from,
        root=options.images_root,
        score_range=tuple(options.score_range),
        name=options.name,
        limit=options.limit,
        validation_fraction=options.validation_fraction,
        settings=replace(JointSettings(), **given),
        mix_with=options.mix_with,
        mix_share=options.mix_share,
        teachers=options.teacher,
        teacher_share=options.teacher_share,
        teacher_images=options.teacher_images,
        unlabelled=options.unlabelled,
        unlabelled_teachers=options.unlabelled_teacher,
        unlabelled_weight=options.unlabelled_weight,
        runs=options.runs,
        first_run=options.first_run,
        refit=(
            (CompressConfig(), replace(TAUGHT, held_out_weight=options.held_out_weight)) if options.new_head else None
        ),
        recalibrate=options.recalibrate,
        workers=options.workers,
        device=options.device,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return 0
