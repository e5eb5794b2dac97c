"""`rali describe`: quality descriptions of images, for training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..constants import PRECISIONS
from ..files import find_images
from ._common import Interruption
from ._console import SLOW_SECONDS

if TYPE_CHECKING:
    from ..describe.describers import FileDescriber
    from ..describe.request import DescriptionRequest

DESCRIPTION = """\
Write quality descriptions of images to a file of JSON lines {image, description, score, seed, source}. Sources:
  measured  what is measured on the image (sharpness, noise, compression, exposure, colour ...), in words
  qinsight  the reasoning of a vision-language model such as Q-Insight (Qwen2.5-VL); needs transformers and --model
  file      descriptions from another program (--from), checked against the images
Run the same command again to resume a run that was stopped. Images that could not be described are noted in a file
beside the output that ends in .failures.jsonl; the next run tries them again."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "describe", help="write quality descriptions for training", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("images", metavar="LABELS_OR_FOLDER",
                        help="table with the columns image and mos, or a folder of images")  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="FILE.jsonl", help="file to write or to resume")
    parser.add_argument("--source", choices=("measured", "qinsight", "file"), default="measured",
                        help="who describes (default: measured)")  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N",
                        help="descriptions per image (default: 3; with --source file all in the file)")  # fmt: skip
    parser.add_argument("--images-root", metavar="DIR",
                        help="what image names are relative to (default: the table's folder, or FOLDER)")  # fmt: skip
    parser.add_argument("-r", "--recursive", action="store_true", help="search folders inside the folder as well")
    parser.add_argument("--workers", type=int, default=0, metavar="N",
                        help="processes for --source measured (default: 0, none beside this one)")  # fmt: skip
    table = parser.add_argument_group("table")
    table.add_argument("--score-range", type=float, nargs=2, default=(0.0, 1.0), metavar=("WORST", "BEST"),
                       help="scale of the table's scores (default: 0 1)")  # fmt: skip
    table.add_argument("--split", default="train", help="rows to describe (default: train); 'all'")
    table.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    model = parser.add_argument_group("qinsight")
    model.add_argument("--model", metavar="DIR_OR_NAME", help="folder of the model, or its name on the hub")
    model.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    model.add_argument("--dtype", choices=PRECISIONS, default="bfloat16",
                       help="arithmetic of the model (default: bfloat16)")  # fmt: skip
    model.add_argument("--max-new-tokens", type=int, default=1024, metavar="N",
                       help="longest answer, in tokens (default: 1024)")  # fmt: skip
    model.add_argument("--attempts", type=int, default=3, metavar="N",
                       help="attempts before an unreadable answer counts as a failure (default: 3)")  # fmt: skip
    model.add_argument("--prompt-file", metavar="FILE", help="text to ask with instead of the built-in question")
    parser.add_argument("--from", dest="origin", metavar="FILE.jsonl", help="with --source file: the file to check")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Describe and write."""
    from tqdm import tqdm

    from ..describe.describers import FileDescriber, describe_all, failures_path, make_describer

    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    requests, root = _find_requests(options)
    describer = make_describer(
        options.source, file=options.origin, root=root, model=options.model, device=options.device, dtype=options.dtype,
        max_new_tokens=options.max_new_tokens, attempts=options.attempts, prompt_file=options.prompt_file,
    )  # fmt: skip
    seeds = 3 if options.seeds is None else options.seeds
    if isinstance(describer, FileDescriber) and options.seeds is None:
        seeds = _count_in_file(describer, requests)
    total = len(requests) * seeds
    with Interruption() as interruption, tqdm(
        total=total, unit="description", delay=SLOW_SECONDS, disable=None, file=sys.stderr
    ) as bar:  # fmt: skip
        summary = describe_all(
            requests, describer, options.output, seeds=range(seeds), workers=options.workers,
            on_done=lambda: bar.update() and None, stop=lambda: interruption.requested,
        )  # fmt: skip
    for image, seed, reason in summary.failed[:10]:
        print(f"rali: {image} (seed {seed}): {reason}", file=sys.stderr)
    kept = f", {summary.kept} existed before" if summary.kept else ""
    print(f"{summary.written} descriptions written to {options.output}{kept}", file=sys.stderr)
    if summary.failed:
        print(f"rali: {len(summary.failed)} of {total} failed, see {failures_path(options.output)}", file=sys.stderr)
    if interruption.requested:
        print("rali: stopped; run the same command again to resume", file=sys.stderr)
        return 130
    return 1 if summary.failed else 0


def _find_requests(options: argparse.Namespace) -> tuple[list[DescriptionRequest], Path]:
    """The images and the folder that their names are relative to."""
    from ..describe.records import image_name
    from ..describe.request import DescriptionRequest
    from ..labels import read_labels

    given = Path(options.images)
    if given.is_dir():
        root = Path(options.images_root or given)
        files = find_images([str(given)], recursive=options.recursive)
        requests = [DescriptionRequest(image_name(file, root), file) for file in files]
    else:
        root = Path(options.images_root or given.parent)
        rows = read_labels(given, root=root, score_range=tuple(options.score_range))
        chosen = [row for row in rows if options.split in ("all", row.split)]
        if not chosen:
            splits = ", ".join(sorted({row.split for row in rows}))
            raise ValueError(f"{given} has no rows with split {options.split!r}; it has {splits}")
        requests = [DescriptionRequest(image_name(row.path, root), row.path, row.score) for row in chosen]
    return requests[: options.limit], root


def _count_in_file(describer: FileDescriber, requests: list[DescriptionRequest]) -> int:
    """The number of descriptions per image in the file, which must be equal for all."""
    counts = {describer.count(request) for request in requests}
    if len(counts) > 1:
        found = f"between {min(counts)} and {max(counts)} descriptions in {describer.path}"
        raise ValueError(f"the images have {found}; say with --seeds how many to take")
    return max(1, *counts)
