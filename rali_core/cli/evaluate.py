"""`rali eval`: how well a model agrees with human scores."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ._common import add_model_arguments, load_scorer, report_errors, score_files
from ._outputs import check_file

DESCRIPTION = """\
Score the images of a table of human scores and print SRCC, PLCC, KRCC and MAE with 95 % bootstrap intervals. The table
is a CSV with the columns image and mos; where it has a column split, the rows of --split are used; rows flagged in a
column near_dup_in_train are left out."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("eval", help="compare a model with human scores", description=DESCRIPTION)
    parser.add_argument("labels", metavar="LABELS.csv", help="table with the columns image and mos")
    parser.add_argument("--images-root", metavar="DIR", help="folder of the images (default: that of the table)")
    parser.add_argument("--score-range", type=float, nargs=2, default=(0.0, 1.0), metavar=("WORST", "BEST"),
                        help="scale of the table's scores (default: 0 1)")  # fmt: skip
    parser.add_argument(
        "--split", default="test", help="rows to use where the table has a split (default: test); 'all'"
    )
    parser.add_argument("--keep-near-duplicates", action="store_true", help="keep rows flagged in near_dup_in_train")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw predicted against human scores")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score, compare, print."""
    from ..evaluation import draw_scatter, format_agreement, measure_agreement
    from ..labels import read_labels

    check_file(options.plot, "--plot", (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp"))
    rows = read_labels(options.labels, root=options.images_root, score_range=tuple(options.score_range))
    splits = {row.split for row in rows}
    if options.split != "all" and len(splits) > 1:
        if options.split not in splits:
            raise ValueError(f"no rows with split {options.split!r}; the table has {', '.join(sorted(splits))}")
        rows = [row for row in rows if row.split == options.split]
    if not options.keep_near_duplicates:
        rows = [row for row in rows if not row.near_duplicate]
    files = [row.path for row in rows]
    scorer = load_scorer(options)
    results, interrupted = score_files(scorer, files, None)
    if interrupted:
        print("rali: figures on a part of the set would mislead, so none are printed", file=sys.stderr)
        return 130
    failed = report_errors(files, results)
    scored = [(result.score, rows[result.index].score) for result in results if result.error is None]
    predicted, human = [pair[0] for pair in scored], [pair[1] for pair in scored]
    agreement = measure_agreement(predicted, human, resamples=options.resamples)
    title = f"{scorer.info.name} on {Path(options.labels).name}, {options.split}"
    print(json.dumps(agreement.to_dict(), indent=1) if options.json else f"{title}: {format_agreement(agreement)}")
    if options.plot:
        draw_scatter(predicted, human, agreement, options.plot, title=title)
        print(f"rali: wrote {options.plot}", file=sys.stderr)
    return int(failed > 0)
