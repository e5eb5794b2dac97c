"""`rali score`: a table of scores, best first."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import IO, TYPE_CHECKING, Any

from ._clips import CLIP_COLUMNS, check_clips, clip_of, clip_record, read_clip_options
from ._common import (
    add_cache_argument,
    add_model_arguments,
    add_path_arguments,
    load_scorer,
    number,
    report_errors,
    score_files,
)
from ._console import cannot_write, emit, lost_output, say, shown, silence
from ._inputs import Input, display_name, find_inputs, local_file
from ._outputs import check_file, check_not_inputs, check_one_output, save_suffixes, write_output
from ._tags import Tagger, add_tag_arguments, check_tag_options, untag

if TYPE_CHECKING:
    from PIL import Image

    from ..calibration import Calibration
    from ..explain import ViewScore
    from ..scorer import ImageScore, RaliScorer

COLUMNS = ("file", "score", "band", "percentile", "error", "reason")

PLOT_LIMIT = 40
"""At most so many plots fit into one image."""

SHEET_LIMIT = 200
"""At most so many thumbnails fit into one readable contact sheet."""

DESCRIPTION = """\
Score images and print a table, best first: score (0 worst, 1 best), band, percentile among the model's reference
images (of each kind, where it has several), file. A video's score is the mean of its frames' (see --aggregate); its
worst passage and best frame stand below the table, and in CSV and JSON. An image that cannot be read is reported on
standard error and the others are scored; the exit status is then 1. Ctrl-C prints what was scored so far. Characters
that the console lacks are shown with escapes; in CSV and JSON file names are complete: bytes that are not UTF-8 are
written unchanged into CSV, and as \\udc80 to \\udcff into JSON, which is how Python reads file names."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("score", help="score images and print a table", description=DESCRIPTION)
    add_path_arguments(parser)
    output = parser.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list in input order instead of the table")
    form.add_argument("--jsonl", action="store_true", help="a JSON object a line, in input order, as they are scored")
    output.add_argument("--csv", metavar="FILE",
                        help="write all results to a CSV file as they come; -: instead of the table")  # fmt: skip
    output.add_argument("--sheet", metavar="FILE",
                        help="draw the chosen images in a grid, best first (.png, .jpg ...; -: PNG)")  # fmt: skip
    output.add_argument("--plot", metavar="FILE", help="draw the scores of videos over time (.png, .jpg ...; -: PNG)")
    output.add_argument("--passage", type=number, metavar="S", help="seconds of the worst passage (default: 1)")
    output.add_argument("--top-k", type=int, metavar="K", help="only the K best")
    output.add_argument("--min-score", type=number, metavar="S", help="only images that score at least S")
    output.add_argument("--max-score", type=number, metavar="S", help="only images that score at most S")
    output.add_argument("--reasons", action="store_true",
                        help="what is wrong with each image (blurred, noisy, blocky ...), if the model has probes; in "
                             "CSV and JSON also the severity of each attribute, 0 to 1")  # fmt: skip
    output.add_argument("--explain", action="store_true", help="which prototypes make each score, and their shares")
    add_tag_arguments(parser)
    add_model_arguments(parser)
    add_cache_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score and print."""
    from ..calibration import Calibration

    check_tag_options(options)
    if options.untag:
        inputs = find_inputs(options)
        return int(untag(inputs.files, keep_times=options.keep_times) + inputs.report() > 0)
    if options.top_k is not None and options.top_k < 1:
        raise ValueError(f"--top-k must be at least 1, got {options.top_k}")
    if options.jsonl and options.top_k is not None:
        raise ValueError("--jsonl prints results as they come, so the K best are not known yet: use --json")
    if options.explain and (options.json or options.jsonl):
        raise ValueError("--explain belongs to the table: leave out --json and --jsonl")
    clips = read_clip_options(options)
    check_one_output(csv=options.csv, sheet=options.sheet, plot=options.plot, json=options.json, jsonl=options.jsonl,
                     explain=options.explain)  # fmt: skip
    check_file(options.csv, "--csv")
    check_file(options.sheet, "--sheet", save_suffixes() if options.sheet else ())
    check_file(options.plot, "--plot", save_suffixes() if options.plot else ())
    inputs = find_inputs(options)
    files = inputs.files
    check_not_inputs(files, csv=options.csv, sheet=options.sheet, plot=options.plot)
    videos = check_clips(files, clips)
    if options.plot and not videos:
        raise ValueError("--plot draws videos over time, and there is none (animations: with --frames)")
    scorer = load_scorer(options)
    calibration = scorer.info.calibration or Calibration()
    tagger = Tagger(options, files)

    told = [attribute.name for attribute in scorer.model.attributes] if options.reasons else []
    with _CsvFile(options.csv, files, clips.passage, clip_columns=bool(videos), attributes=told) as table:

        def note(result: ImageScore) -> None:
            table.write(result)
            if options.top_k is None and _is_wanted(result, options):
                tagger.write(result, scorer.info)
            if options.jsonl and _is_wanted(result, options):
                emit(json.dumps(_as_record(files, result, calibration, clips.passage)))

        results, interrupted = score_files(scorer, files, clips, on_result=note)
    chosen = _choose(results, options)
    scored = [result for result in chosen if result.error is None]
    for result in scored if options.top_k is not None else ():
        tagger.write(result, scorer.info)
    if options.sheet:  # before printing, which may end early
        _draw_sheet(options.sheet, files, scored)
    if options.plot:
        _draw_plots(options.plot, files, scored, clips.passage)
    if options.json:
        emit(json.dumps([_as_record(files, result, calibration, clips.passage) for result in chosen], indent=1))
    elif not (options.jsonl or "-" in (options.csv, options.sheet, options.plot)):
        _print_table(files, scored, calibration, reasons=options.reasons)
        _print_videos(files, scored, clips.passage)
        if options.explain:
            _print_explanations(scorer, files, scored)
    failed = report_errors(files, results) + tagger.report() + inputs.report()
    return 130 if interrupted else int(failed > 0)


def _is_wanted(result: ImageScore, options: argparse.Namespace) -> bool:
    """Whether a result is within the limits; images with an error are, so that the JSON loses none."""
    return result.error is not None or (
        (options.min_score is None or result.score >= options.min_score)
        and (options.max_score is None or result.score <= options.max_score)
    )


def _choose(results: list[ImageScore], options: argparse.Namespace) -> list[ImageScore]:
    """The results to print, in input order."""
    kept = [result for result in results if _is_wanted(result, options)]
    if options.top_k is None:
        return kept
    best = {r.index for r in _best_first([r for r in kept if r.error is None])[: options.top_k]}
    return [r for r in kept if r.index in best or r.error is not None]


def _best_first(results: list[ImageScore]) -> list[ImageScore]:
    """Scored images, best first; those without content come last."""
    return sorted(results, key=lambda result: (result.reason is not None, -result.score))


def _as_record(files: Sequence[Input], result: ImageScore, calibration: Calibration, passage: float) -> dict[str, Any]:
    name = display_name(files[result.index])
    if result.error is not None:
        return {"file": name, "error": result.error}
    percentile = result.percentile if result.percentile == result.percentile else None  # NaN is not JSON
    record: dict[str, Any] = {
        "file": name,
        "score": round(result.score, 6),
        "band": result.band or None,
        "percentile": None if percentile is None else round(percentile, 2),
    }
    if len(calibration.populations) > 1:
        record["percentiles"] = {name: round(value, 2) for name, value in _percentiles(result, calibration).items()}
    if result.reason is not None:
        record["reason"] = result.reason
    if result.attributes is not None:
        record["words"] = list(result.attributes.words)
        record["attributes"] = {name: round(value, 4) for name, value in result.attributes.values.items()}
    video = clip_of(result)
    return record if video is None else {**record, **clip_record(video, passage)}


def _percentiles(result: ImageScore, calibration: Calibration) -> dict[str, float]:
    """For each kind of reference images, the percentage of them that score lower."""
    return {name: float(calibration.percentiles([result.score], name)[0]) for name in calibration.population_names}


def _band(result: ImageScore, *, reasons: bool) -> str:
    """A result's band, with what is wrong with the image after a colon where that is asked for."""
    band = result.reason or result.band or "-"
    words = result.attributes.words if reasons and result.attributes is not None else ()
    return f"{band}: {', '.join(words)}" if words else band


def _print_table(files: Sequence[Input], results: list[ImageScore], calibration: Calibration, *, reasons: bool) -> None:
    if not results:
        emit("no image to show")
        return
    several = len(calibration.populations) > 1
    headings = [f"{f'% of {name}':>10}" for name in calibration.population_names] if several else ["percentile"]
    bands = {result.index: _band(result, reasons=reasons) for result in results}
    first = "band: reasons" if reasons else "band      "
    width = max(map(len, (first, *(bands.values() if reasons else ()))))
    emit(f"score   {first:<{width}}  {'  '.join(headings)}  file")
    for result in _best_first(results):
        values = _percentiles(result, calibration).values() if calibration.populations else [result.percentile]
        columns = [
            f"{'-' if value != value else f'{value:.1f}':>{len(heading)}}"
            for heading, value in zip(headings, values, strict=True)
        ]
        emit(f"{result.score:.4f}  {bands[result.index]:<{width}}  {'  '.join(columns)}  {shown(files[result.index])}")


def _print_videos(files: Sequence[Input], results: list[ImageScore], passage: float) -> None:
    for result in _best_first(results):
        if (video := clip_of(result)) is not None:
            emit("\n" + shown(files[result.index]) + ": " + video.describe(passage=passage).replace("\n", "\n  "))


def _print_explanations(scorer: RaliScorer, files: Sequence[Input], results: list[ImageScore]) -> None:
    for result in _best_first(results):
        if clip_of(result) is not None:
            continue
        if result.reason is not None:
            emit(f"\n{shown(files[result.index])}: {result.score:.4f}, {result.reason}")
            continue
        try:
            with local_file(files[result.index]) as path:
                shares, views = scorer.explain(path), scorer.score_views(path)
        except (OSError, ValueError) as error:  # it existed when it was scored
            say(shown(f"{files[result.index]} cannot be explained: {error}"))
            continue
        emit(f"\n{shown(files[result.index])}: {result.score:.4f} = sum of the contributions")
        _print_views(views)
        emit("  prototype   weight  x  score  =  contribution")
        for share in shares:
            name = "others" if share.prototype < 0 else f"#{share.prototype}"
            emit(f"  {name:<9}  {share.weight:.5f}   {share.score:.4f}   {share.contribution:.5f}")


def _print_views(views: Sequence[ViewScore]) -> None:
    """The parts of the image, which is worst, and what is wrong with each."""
    if len(views) == 1:
        return
    worst = min(views, key=lambda part: part.score)
    for part in views:
        place = part.view
        kind = "full size" if place.full_size else "resized"
        mark = "  lowest" if part is worst else ""
        if part.attributes is not None and part.attributes.words:
            mark += f"  {', '.join(part.attributes.words)}"
        emit(
            f"  {part.score:.4f} x {part.share:.3f}  {place.width} x {place.height} pixels from x={place.left}, "
            f"y={place.top}, {kind}{mark}"
        )


def _draw_sheet(target: str, files: Sequence[Input], results: list[ImageScore]) -> None:
    from ..sheet import draw_contact_sheet

    drawn: list[tuple[ImageScore, Image.Image]] = []
    for result in _best_first(results):
        if len(drawn) < SHEET_LIMIT and (thumbnail := _thumbnail(files[result.index], result)) is not None:
            drawn.append((result, thumbnail))
    if not drawn:
        say(f"no image reaches the sheet, so {shown(target)} is not written")
        return
    sheet = draw_contact_sheet(
        [thumbnail for _, thumbnail in drawn],
        [result.score for result, _ in drawn],
        names=[os.path.basename(shown(files[result.index])) for result, _ in drawn],
        bands=[result.reason or result.band for result, _ in drawn],
        notes=[", ".join(result.attributes.words) if result.attributes else "" for result, _ in drawn],
    )
    _write_image(sheet, target, len(drawn), len(results))


def _draw_plots(target: str, files: Sequence[Input], results: list[ImageScore], passage: float) -> None:
    from ..plot import draw_time_plots

    found = [(result, video) for result in _best_first(results) if (video := clip_of(result)) is not None]
    if not found:
        say(f"no video reaches the plot, so {shown(target)} is not written")
        return
    drawn = [(os.path.basename(shown(files[result.index])), video) for result, video in found[:PLOT_LIMIT]]
    _write_image(draw_time_plots(drawn, passage=passage), target, len(drawn), len(found))


def _write_image(image: Image.Image, target: str, drawn: int, found: int) -> None:
    """Write a sheet or plot in the format of its name, and say so, and how much of what was found is on it."""
    from PIL import Image

    buffer = io.BytesIO()
    ending = os.path.splitext(target)[1].lower()
    image.save(buffer, "PNG" if target == "-" else Image.registered_extensions()[ending])
    if write_output(target, buffer.getvalue()):
        left_out = f", the best {drawn} of {found}" if found > drawn else ""
        say(f"wrote {shown(target)}{left_out}")


def _thumbnail(file: Input, result: ImageScore) -> Image.Image | None:
    """A thumbnail, for a video of its best frame; None if the image cannot be read any more."""
    from ..images import open_image, to_pil_image
    from ..sheet import make_thumbnail

    try:
        if (video := clip_of(result)) is not None:
            from ..frames import FrameReader

            with local_file(file) as path:
                return make_thumbnail(
                    to_pil_image(FrameReader(path, name=str(file)).at(float(video.times[video.best])))
                )
        with local_file(file) as path, open_image(path) as image:
            return make_thumbnail(image)
    except Exception as error:  # it was scored, but has been deleted or changed since
        say(shown(f"{file} is left out of the sheet: {error}"))
        return None


class _CsvFile:
    """A CSV table, written row by row so that an interrupted run leaves what was done.

    Args:
        name: Of the file; `-` is standard output, None nothing at all.
        files: The files that the results' indexes refer to.
        passage: Seconds of a video's worst passage.
        clip_columns: Add the columns for videos.
        attributes: Names of the attributes that are asked for; they and their words get columns.
    """

    def __init__(
        self, name: str | None, files: Sequence[Input], passage: float, *, clip_columns: bool, attributes: Sequence[str]
    ) -> None:
        self._name, self._files, self._stack = name, files, ExitStack()
        self._passage = passage
        self._columns = (*COLUMNS, *(CLIP_COLUMNS if clip_columns else ()))
        self._columns += ("words", *attributes) if attributes else ()
        self._file: IO[bytes] | None = None
        self._good: int | None = 0

    def __enter__(self) -> _CsvFile:
        if self._name == "-":
            self._file = sys.stdout.buffer
        elif self._name is not None:
            self._file = self._stack.enter_context(open(self._name, "wb"))
        self._write({name: name for name in self._columns})
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was reported
            self._stack.close()

    def write(self, result: ImageScore) -> None:
        """Write a row."""
        from ..calibration import Calibration

        # A model without several kinds of reference images has a single percentile column.
        record = _as_record(self._files, result, Calibration(), self._passage)
        if "words" in record:
            record |= {**record.pop("attributes"), "words": ", ".join(record["words"])}
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns, restval="").writerow(record)
        try:
            # Bytes that are not UTF-8 are written unchanged; Windows has no such names.
            self._file.write(text.getvalue().encode("utf-8", "surrogatepass" if os.name == "nt" else "surrogateescape"))
            self._file.flush()
            self._good = self._file.tell() if self._file.seekable() else None
        except BrokenPipeError:  # of standard output; the other outputs are written all the same
            silence(sys.stdout)
            self._file = None
        except OSError as error:  # a full disk must not cost the scores
            if self._name == "-":
                silence(sys.stdout)
                lost_output.append(error.strerror or str(error))
            else:
                cannot_write(self._name or "", error)
                with suppress(OSError):
                    if self._good is not None:
                        os.truncate(self._file.fileno(), self._good)  # whole rows only
            self._file = None
