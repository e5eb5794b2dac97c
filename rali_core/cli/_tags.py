"""Scores in the images' own metadata: the options of `rali score`, writing tags as results come, removing them."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import FileStamp, is_image_name, stamp_file
from ._clips import clip_of
from ._console import say, shown
from ._inputs import Input

if TYPE_CHECKING:
    from ..checkpoint import ModelInfo
    from ..scorer import ImageScore

PLACES = ("file", "sidecar")

SCORING_OPTIONS = ("json", "jsonl", "csv", "sheet", "plot", "passage", "top_k", "min_score", "max_score", "explain",
                   "reasons")  # fmt: skip
"""Options that have no meaning without scoring."""


def add_tag_arguments(parser: argparse.ArgumentParser) -> None:
    """`--tag`, `--untag`, `--overwrite-ratings` and `--keep-times`."""
    group = parser.add_argument_group("tags (score, band and stars as XMP, for Lightroom, digiKam, darktable ...)")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--tag", nargs="?", const="file", type=_place, metavar="sidecar",
                        help="write them into the images shown (JPEG, PNG, WebP; others get an .xmp sidecar), or into "
                        "sidecars only; pixels and people's ratings are not changed")  # fmt: skip
    choice.add_argument("--untag", action="store_true",
                        help="score nothing, remove the tags: files become what they were")  # fmt: skip
    group.add_argument("--overwrite-ratings", action="store_true",
                       help="stars replace people's ratings; --untag restores those")  # fmt: skip
    group.add_argument("--keep-times", action="store_true",
                       help="keep the files' times; some programs then see no change")  # fmt: skip


def _place(text: str) -> str:
    if text not in PLACES:
        raise argparse.ArgumentTypeError(f"expected sidecar or nothing, got {text!r} (name the images before --tag)")
    return text


def check_tag_options(options: argparse.Namespace) -> None:
    """Check that the options can be combined.

    Raises:
        ValueError: They cannot.
    """
    if options.overwrite_ratings and not options.tag:
        raise ValueError("--overwrite-ratings belongs to --tag")
    if options.keep_times and not (options.tag or options.untag):
        raise ValueError("--keep-times belongs to --tag and --untag")
    given = [name for name in SCORING_OPTIONS if getattr(options, name) not in (None, False)]
    if options.untag and given:
        raise ValueError(f"--untag scores nothing: leave out --{given[0].replace('_', '-')}")


class Tagger:
    """Tags images one by one, and reports the outcome at the end.

    Args:
        options: The command's options.
        files: The scored files; those that change before they are tagged are left out.
    """

    def __init__(self, options: argparse.Namespace, files: Sequence[Input]) -> None:
        self._options, self._files = options, files
        self._scored: dict[int, FileStamp] = {}
        self._done: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._sidecars: Counter[str] = Counter()
        self._problems: list[str] = []
        for index, file in enumerate(files if options.tag else ()):
            if isinstance(file, Path):
                with suppress(OSError):  # the scorer reports the reason
                    self._scored[index] = stamp_file(file)

    def write(self, result: ImageScore, info: ModelInfo) -> None:
        """Tag an image; without `--tag` or without a score do nothing."""
        if not self._options.tag or result.error is not None:
            return
        file = self._files[result.index]
        if not isinstance(file, Path):
            self._problems.append(f"{file} is not tagged: only local files can be")
        elif clip_of(result) is not None and not is_image_name(file):
            self._problems.append(f"{file} is not tagged: only images can be, and this is a video")
        elif (target := self._target(file)) not in self._done:
            self._done.add(target)
            self._attempt(file, lambda: self._tag(file, result, info))

    def report(self) -> int:
        """Report what was done; returns how many images could not be tagged."""
        if not self._options.tag:
            return 0
        counts = self._counts
        told = f"tagged {counts['tagged']:,} of {len(self._files):,} images"
        say(told + _by_sidecar(self._options.tag, self._sidecars))
        if counts["kept_rating"]:
            say(f"{counts['kept_rating']:,} of them keep a person's rating (see --overwrite-ratings)")
        if counts["broke_hard_link"]:
            say(f"{counts['broke_hard_link']:,} of them had other hard links, which keep the untagged file")
        return _report_problems(self._problems, self._files, "tagged")

    def _target(self, file: Path) -> str:
        """The file to write: two names may lead to one file, but each has its own sidecar."""
        return os.path.abspath(file) if self._options.tag == "sidecar" else os.path.realpath(file)

    def _tag(self, file: Path, result: ImageScore, info: ModelInfo) -> None:
        from ..xmp import Tag, tag_file

        done = tag_file(
            file,
            Tag.from_score(result, info),
            sidecar=self._options.tag == "sidecar",
            overwrite_rating=self._options.overwrite_ratings,
            keep_times=self._options.keep_times,
            scored=self._scored.get(result.index),
        )
        self._counts.update(tagged=1, kept_rating=done.kept_rating, broke_hard_link=done.broke_hard_link)
        if done.reason is not None:
            self._sidecars[done.reason] += 1

    def _attempt(self, file: Path, work: Callable[[], Any]) -> None:
        if (problem := _problem(file, work)) is not None:
            self._problems.append(problem)


def untag(files: Sequence[Input], *, keep_times: bool) -> int:
    """Remove the tags of images, and report it; returns how many could not be untagged.

    Args:
        files: The images that were named or found.
        keep_times: Keep the files' times.
    """
    from ..xmp import untag_file

    problems, removed = [], 0

    def remove(file: Path) -> None:
        nonlocal removed
        removed += untag_file(file, keep_times=keep_times)

    for file in files:
        if not isinstance(file, Path):
            problems.append(f"{file} has no tag: only local files can have one")
        elif (problem := _problem(file, lambda file=file: remove(file))) is not None:  # type: ignore[misc]
            problems.append(problem)
    say(f"removed the tags of {removed:,} of {len(files):,} images")
    return _report_problems(problems, files, "untagged")


def _problem(file: Path, work: Callable[[], Any]) -> str | None:
    try:
        work()
    except (OSError, ValueError) as error:
        reason = str(error)
        return reason if str(file) in reason else f"{file}: {reason}"
    return None


def _report_problems(problems: list[str], files: Sequence[Input], what: str) -> int:
    for problem in problems:
        say(shown(problem))
    if problems:
        say(f"{len(problems):,} of {len(files):,} images could not be {what}")
    return len(problems)


def _by_sidecar(place: str, reasons: Counter[str]) -> str:
    if place == "sidecar":
        return " by .xmp sidecars"
    told = "; ".join(f"{count:,}: {reason}" for reason, count in reasons.most_common())
    return f", {reasons.total():,} of them by .xmp sidecars ({told})" if reasons else ""
