"""`rali score`: a table of scores, best first."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import find_images
from ._common import (
    add_cache_argument,
    add_model_arguments,
    add_path_arguments,
    load_scorer,
    report_errors,
    score_files,
)

if TYPE_CHECKING:
    from ..scorer import ImageScore, RaliScorer

SHEET_LIMIT = 200
"""More images than this do not fit into one readable picture."""

DESCRIPTION = """\
Score images and print a table, best first: score (0 worst, 1 best), band, percentile among the model's reference
pictures, file. An image that cannot be read is reported on standard error and the rest is scored; the exit status is
then 1. Ctrl-C prints what was scored so far."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("score", help="score images and print a table", description=DESCRIPTION)
    add_path_arguments(parser)
    output = parser.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list in input order instead of the table")
    form.add_argument("--jsonl", action="store_true", help="a JSON object a line, in input order, as they are scored")
    output.add_argument("--csv", metavar="FILE", help="write all results to a CSV file as well")
    output.add_argument("--sheet", metavar="FILE", help="draw the chosen images in a grid, best first (PNG or JPEG)")
    output.add_argument("--top-k", type=int, metavar="K", help="only the K best")
    output.add_argument("--min-score", type=float, metavar="S", help="only images that score at least S")
    output.add_argument("--explain", action="store_true", help="which prototypes make each score; the parts add up")
    add_model_arguments(parser)
    add_cache_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score and print."""
    if options.top_k is not None and options.top_k < 1:
        raise ValueError(f"--top-k must be at least 1, got {options.top_k}")
    if options.jsonl and options.top_k is not None:
        raise ValueError("--jsonl prints results as they come, so the K best are not known yet: use --json")
    if options.explain and (options.json or options.jsonl):
        raise ValueError("--explain belongs to the table: leave out --json and --jsonl")
    files = find_images(options.paths, recursive=options.recursive)
    for target in filter(None, (options.csv, options.sheet)):
        Path(target).open("a").close()  # an unwritable place is found out before the work, not after it
    scorer = load_scorer(options)

    def print_line(result: ImageScore) -> None:
        if result.error is not None or options.min_score is None or result.score >= options.min_score:
            print(json.dumps(_as_record(files, result)), flush=True)

    results, interrupted = score_files(scorer, files, on_result=print_line if options.jsonl else None)
    chosen = _choose(results, options)
    if options.csv:
        _write_csv(Path(options.csv), files, results)
    if options.json:
        print(json.dumps([_as_record(files, result) for result in chosen], indent=1))
    elif not options.jsonl:
        _print_table(files, [result for result in chosen if result.error is None])
        if options.explain:
            _print_explanations(scorer, files, chosen)
    if options.sheet:
        _draw_sheet(Path(options.sheet), files, [result for result in chosen if result.error is None])
    failed = report_errors(files, results)
    return 130 if interrupted else int(failed > 0)


def _choose(results: list[ImageScore], options: argparse.Namespace) -> list[ImageScore]:
    """What is printed, in input order; images with an error stay, so that none is lost from the JSON."""
    from ..selection import rank

    kept = [r for r in results if r.error is not None or options.min_score is None or r.score >= options.min_score]
    if options.top_k is None:
        return kept
    best = set(rank([r.score for r in kept])[: options.top_k])
    return [r for position, r in enumerate(kept) if position in best or r.error is not None]


def _as_record(files: list[Path], result: ImageScore) -> dict[str, Any]:
    if result.error is not None:
        return {"file": str(files[result.index]), "error": result.error}
    percentile = result.percentile if result.percentile == result.percentile else None  # NaN is not JSON
    return {
        "file": str(files[result.index]),
        "score": round(result.score, 6),
        "band": result.band or None,
        "percentile": None if percentile is None else round(percentile, 2),
    }


def _print_table(files: list[Path], results: list[ImageScore]) -> None:
    if not results:
        print("no image to show")
        return
    print("score   band       percentile  file")
    for result in sorted(results, key=lambda r: -r.score):
        percentile = f"{result.percentile:10.1f}" if result.percentile == result.percentile else " " * 9 + "-"
        print(f"{result.score:.4f}  {result.band or '-':<9}  {percentile}  {files[result.index]}")


def _print_explanations(scorer: RaliScorer, files: list[Path], results: list[ImageScore]) -> None:
    for result in sorted((r for r in results if r.error is None), key=lambda r: -r.score):
        print(f"\n{files[result.index]}: {result.score:.4f} = sum of the parts")
        print("  prototype   weight  x  score  =  part")
        for share in scorer.explain(files[result.index]):
            name = "others" if share.prototype < 0 else f"#{share.prototype}"
            print(f"  {name:<9}  {share.weight:.5f}   {share.score:.4f}   {share.part:.5f}")


def _draw_sheet(path: Path, files: list[Path], results: list[ImageScore]) -> None:
    from PIL import Image

    from ..sheet import draw_contact_sheet

    best = sorted(results, key=lambda r: -r.score)[:SHEET_LIMIT]
    if not best:
        path.unlink()
        print(f"rali: no image reaches the sheet, so {path} is not written", file=sys.stderr)
        return
    thumbnails = []
    for result in best:
        with Image.open(files[result.index]) as image:
            image.draft("RGB", (480, 480))  # a large JPEG is decoded small
            image.load()
            thumbnails.append(image.copy())
            thumbnails[-1].thumbnail((480, 480))
    sheet = draw_contact_sheet(
        thumbnails,
        [result.score for result in best],
        names=[files[result.index].name for result in best],
        bands=[result.band for result in best],
    )
    sheet.save(path)
    left_out = f", the best {SHEET_LIMIT} of {len(results)}" if len(results) > len(best) else ""
    print(f"rali: wrote {path}{left_out}", file=sys.stderr)


def _write_csv(path: Path, files: list[Path], results: list[ImageScore]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["file", "score", "band", "percentile", "error"], restval="")
        writer.writeheader()
        writer.writerows(_as_record(files, result) for result in results)
