"""`rali dataset score`: all images of a data set to Parquet shards; resumes an earlier run."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from ._clips import AGGREGATES, add_frame_arguments, read_sampling
from ._common import Interruption, add_model_arguments
from ._console import emit, say, shown

LINE_SECONDS = 60.0
"""Seconds between progress lines where standard error is not a terminal."""

DESCRIPTION = """\
Score every image of SOURCE into OUT, a folder of Parquet files (part-*.parquet) with the columns id, uri, score, band,
percentile, width, height, error, model_hash and scored_at. An image that cannot be read is a row with its error. The
same command resumes a run that was stopped or killed; after a complete run it scores what is new in SOURCE. SOURCE is a
folder (with all folders inside), a glob or {000..123} in quotes, a list file (.txt: a path per line), Parquet files
with a column of images or paths, or WebDataset tars; local or a URL that fsspec knows."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("score", help="score a data set; resumes", description=DESCRIPTION)
    parser.add_argument("source", metavar="SOURCE", help="what to score")
    parser.add_argument("out", metavar="OUT", help="folder for the result")
    source = parser.add_argument_group("source")
    source.add_argument("--kind", choices=("files", "list", "parquet", "webdataset"),
                        help="what SOURCE is, if its name does not say it")  # fmt: skip
    source.add_argument("--image-column", metavar="NAME", help="Parquet: column of images or paths (default: by name)")
    source.add_argument("--id-column", metavar="NAME", help="Parquet: column of unique ids (default: file and row)")
    source.add_argument("--keep-column", metavar="NAME", action="append", default=[],
                        help="Parquet: copy this column into the result; may be given several times")  # fmt: skip
    source.add_argument("--carry", action="append", default=[], help=argparse.SUPPRESS)  # its name of version 0.1
    source.add_argument("--plugin", metavar="MODULE", action="append", default=[],
                        help="import this, for formats that Pillow lacks (pillow_avif, pillow_jxl)")  # fmt: skip
    source.add_argument("--max-megapixels", type=float, metavar="N", help="larger images are errors (default: 179)")
    source.add_argument("--videos", action="store_true", help="score videos as well (needs PyAV)")
    add_frame_arguments(source)
    parser.add_argument("--reasons", action="store_true",
                        help="columns for what is wrong with each image: words, and the severity of each attribute, "
                             "0 to 1, where the model tells it")  # fmt: skip
    add_model_arguments(parser, crops=False)
    work = parser.add_argument_group("work")
    work.add_argument("--engine", choices=("local", "ray"), default="local",
                      help="this machine, or the Ray cluster of RAY_ADDRESS (default: local)")  # fmt: skip
    work.add_argument("--retry-errors", action="store_true", help="retry images that have an error, as they are now")
    work.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: by processor count)")
    work.add_argument("--timeout", type=float, metavar="S", help="give up an image after S seconds (default: 300)")
    work.add_argument("--shard-size", type=int, metavar="N",
                      help="images per Parquet file, lost at most if the run is killed (default: 512)")  # fmt: skip
    ray = parser.add_argument_group("with --engine ray")
    ray.add_argument("--actors", type=int, metavar="N", help="models at the same time (default: as many as fit)")
    ray.add_argument(
        "--gpus-per-actor", type=float, metavar="G", help="may be a fraction (default: 1 if there are any)"
    )
    ray.add_argument("--cpus-per-actor", type=float, metavar="C", help="default: one more than the decoding processes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score, with progress, and summarise."""
    if options.carry:
        say("--carry is deprecated and goes in the next release; use --keep-column")
    if "torch" not in sys.modules:
        # Threads that spin while they wait for each other take the processors from the decoding processes: without
        # this the whole reached 81 to 86 % of the model's own rate, with it 90 to 94 %.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..dataset.score import score_dataset
    from ..dataset.stats import format_summary
    from ..dataset.summary import HISTOGRAM, SHEET, write_summary

    arguments: dict[str, Any] = {
        "timeout": options.timeout,
        "shard_size": options.shard_size,
        "max_pixels": None if options.max_megapixels is None else int(options.max_megapixels * 1e6),
        "workers": options.workers,
        "actors": options.actors,
        "gpus_per_actor": options.gpus_per_actor,
        "cpus_per_actor": options.cpus_per_actor,
    }
    sampling = read_sampling(options)
    with Interruption() as interruption, _ProgressBar() as bar:

        def show(done: int, total: int | None) -> bool:
            bar.show(done, total or 0)
            return not interruption.requested

        result = score_dataset(
            options.source,
            options.out,
            engine=options.engine,
            kind=options.kind,
            image_column=options.image_column,
            id_column=options.id_column,
            carry=options.keep_column + options.carry,
            plugins=options.plugin,
            retry_errors=options.retry_errors,
            videos=options.videos,
            animations=options.frames,
            fps=sampling.fps,
            max_frames=sampling.max_frames,
            aggregate=AGGREGATES[options.aggregate],  # type: ignore[arg-type]
            reasons=options.reasons,
            domain=options.domain,
            model=options.model,
            device=options.device,
            dtype=options.dtype,
            batch_size=options.batch_size,
            coverage=options.coverage,
            progress=show,
            **{name: value for name, value in arguments.items() if value is not None},
        )
    for text in result.repaired:
        say(f"repaired: {shown(text)}")
    if result.stopped:
        say(
            f"stopped; {result.done:,} of {result.images:,} images are in {shown(result.folder)}; the same command "
            "resumes"
        )
        return 130
    for line in format_summary(write_summary(result.folder)).splitlines():
        emit(shown(line))
    made = "".join(f", {name}" for name in _existing(result.folder, HISTOGRAM, SHEET))
    emit(f"{shown(result.folder)}: part-*.parquet{made}")
    return 0


def _existing(folder: Path, *names: str) -> list[str]:
    return [name for name in names if (folder / name).exists()]


class _ProgressBar:
    """Images done, rate and time left: a bar at a terminal, else a log line now and then."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._begun = self._last = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Show that so many images of all are done."""
        if self._first is None:
            self._first, self._begun = done, time.monotonic()
            if done:
                say(f"{done:,} of {total:,} images were scored before")
        if sys.stderr.isatty():
            from tqdm import tqdm

            if self._bar is None:
                self._bar = tqdm(total=total, initial=done, unit="image", file=sys.stderr)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last >= LINE_SECONDS and done > self._first:
            self._last = time.monotonic()
            rate = (done - self._first) / (self._last - self._begun)
            left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate % 86400))
            days = int((total - done) / rate // 86400)
            say(f"{done:,} of {total:,} images, {rate:.1f} per second, {f'{days} d ' if days else ''}{left} left")
