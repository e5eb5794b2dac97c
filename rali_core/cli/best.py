"""`rali best`: the K best images, listed, copied or moved."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from typing import Any

from ..exports import (
    FreeNames,
    Mode,
    find_sidecars,
    names_in,
    place_file,
    remove_moved_sidecars,
    safe_name,
    sidecar_path,
)
from ._clips import check_clips, read_clip_options
from ._common import (
    add_cache_argument,
    add_model_arguments,
    add_path_arguments,
    load_scorer,
    number,
    report_errors,
    score_files,
)
from ._console import emit, say, shown
from ._inputs import Input, find_inputs, local_file
from ._outputs import check_folder

REFUSED_NAMES = (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.ENOENT)
"""Errors of file systems for names with characters that they do not allow."""

DESCRIPTION = """\
Print the files of the K best images, best first, and copy or move them where a folder is given. Nothing is overwritten:
if a name exists already, a number is added."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("best", help="find the K best images, and copy or move them",
                                   description=DESCRIPTION)  # fmt: skip
    add_path_arguments(parser)
    choice = parser.add_argument_group("choice")
    choice.add_argument("-k", type=int, metavar="K", help="how many (default: 1; with --into-bands all)")
    choice.add_argument("--min-score", type=number, metavar="S", help="only images that score at least S")
    choice.add_argument("--max-score", type=number, metavar="S", help="only images that score at most S")
    add_export_arguments(parser, "--copy-to")
    add_model_arguments(parser)
    add_cache_argument(parser)
    parser.set_defaults(run=run)


def add_export_arguments(parser: argparse.ArgumentParser, copy: str) -> None:
    """`--move`, `--into-bands` and `--sidecars`, beside the option that names the folder for copies."""
    output = parser.add_argument_group("folder")
    output.add_argument(copy, metavar="DIR", dest="copy_to", help="copy the images there, under their own names")
    output.add_argument("--into-bands", metavar="DIR", help="copy them into a folder per band: DIR/good, DIR/fair ...")
    output.add_argument("--move", metavar="DIR", nargs="?", const=True,
                        help=f"move them there; without DIR: as {copy} or --into-bands, but move")  # fmt: skip
    output.add_argument("--sidecars", action="store_true",
                        help="the .txt, .json, .xmp, .caption and .npz of an image go with it")  # fmt: skip


def export_target(options: argparse.Namespace, copy: str) -> tuple[str | None, Mode]:
    """The folder that the options name, checked, and whether to copy or move.

    Raises:
        ValueError: They contradict each other.
        OSError: The folder cannot be written.
    """
    named = [(option, value) for option, value in ((copy, options.copy_to), ("--into-bands", options.into_bands),
             ("--move", options.move if options.move is not True else None)) if value is not None]  # fmt: skip
    if len(named) > 1:
        raise ValueError(f"{named[0][0]} and {named[1][0]} both name a folder: give one of them")
    if not named:
        if options.move or options.sidecars:
            option = "--move" if options.move else "--sidecars"
            raise ValueError(f"{option} needs a folder: give it with {copy}, --into-bands or --move DIR")
        return None, "copy"
    check_folder(named[0][1], named[0][0])
    return named[0][1], "move" if options.move else "copy"


def run(options: argparse.Namespace) -> int:
    """Score, place and print."""
    if options.k is not None and options.k < 1:
        raise ValueError(f"-k must be at least 1, got {options.k}")
    target, mode = export_target(options, "--copy-to")
    clips = read_clip_options(options)
    inputs = find_inputs(options)
    files = inputs.files
    check_clips(files, clips)
    if mode == "move" and (url := next((file for file in files if isinstance(file, str)), None)):
        raise ValueError(f"{url} is no local file and cannot be moved: copy with --copy-to")
    results, interrupted = score_files(load_scorer(options), files, clips)
    if interrupted:
        say("not all images were scored, so nothing was chosen")
        return 130
    low = float("-inf") if options.min_score is None else options.min_score
    high = float("inf") if options.max_score is None else options.max_score
    ranked = [result for result in results if result.error is None and low <= result.score <= high]
    ranked.sort(key=lambda result: (result.reason is not None, -result.score))  # images without content come last
    chosen = ranked[: options.k or (len(ranked) if options.into_bands else 1)]
    failed = 0
    if target is not None:  # before printing, which may end early
        folders = [(result.band or "unbanded") if options.into_bands else "" for result in chosen]
        images = [files[result.index] for result in chosen]
        failed = place_images(images, folders, Path(target), mode, sidecars=options.sidecars)
    if not chosen and any(result.error is None for result in results):
        say("no image is within the limits")
    for result in chosen:
        emit(f"{result.score:.4f}  {shown(files[result.index])}")
        if result.reason is not None:
            say(f"{shown(files[result.index])}: {result.reason}")
    failed += report_errors(files, results) + inputs.report()
    return int(failed > 0)


def place_images(images: list[Input], folders: list[str], target: Path, mode: Mode, *, sidecars: bool) -> int:
    """Copy or move images into folders below the target; a failure affects no other image.

    Returns:
        The number of images that could not be placed; each is reported.
    """
    taken = [f"{folder}/{name}" if folder else name for folder in {*folders} for name in names_in(target / folder)]
    names = FreeNames(taken, by_stem=sidecars)
    moved: set[Path] = set()
    failed = 0
    for image, folder in zip(images, folders, strict=True):
        try:
            path = _place(image, folder, target, names, mode)
            if sidecars and isinstance(image, Path):
                for sidecar, ending in find_sidecars(image):
                    place_file(sidecar, sidecar_path(path, image, ending), "copy")
                    moved.add(sidecar)
        except OSError as error:
            say(shown(f"{image} could not be {'moved' if mode == 'move' else 'copied'}: {error}"))
            failed += 1
    if mode == "move":
        remove_moved_sidecars(moved)
    return failed


def _place(image: Input, folder: str, target: Path, names: FreeNames, mode: Mode) -> Path:
    """Put an image into a folder under a free name, changed where the file system does not allow it."""
    name = image.name if isinstance(image, Path) else os.path.basename(image.split("?")[0].rstrip("/"))
    if mode == "move" and isinstance(image, Path) and image.parent.resolve() == (target / folder).resolve():
        return image  # it is there already
    with local_file(image) as source:
        for attempt in (name, safe_name(name)):
            path = target / names.take(f"{folder}/{attempt}" if folder else attempt)
            try:
                place_file(source, path, mode)
                return path
            except OSError as error:
                if error.errno not in REFUSED_NAMES or attempt == safe_name(name):
                    raise
    raise AssertionError("the second attempt returns or raises")
