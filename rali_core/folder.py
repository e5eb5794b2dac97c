"""The images of a folder in natural order, chosen by patterns, and a table of their scores; free of torch."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .content_hints import register_plugins
from .files import Survey, find_images, natural_key

if TYPE_CHECKING:
    from .results import ImageScore

COLUMNS = ("rank", "file", "score", "band", "percentile", "reason")


def split_patterns(text: str) -> list[str]:
    """Patterns separated by semicolons, commas or lines."""
    return [part.strip() for part in re.split(r"[;,\n]", text) if part.strip()]


def list_folder(
    folder: str | os.PathLike[str],
    *,
    recursive: bool = False,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    survey: Survey | None = None,
) -> list[Path]:
    """The image files of a folder, in natural order (`a2` before `a10`), a folder's own before those inside it.

    Args:
        folder: The folder.
        recursive: Also search folders inside it.
        include: Patterns with `*`, `?` and `[...]`, one of which a file's name or its path below `folder` must match;
            case is ignored. None: all images.
        exclude: Patterns of files that are left out.
        survey: Collects folders that cannot be listed, and files that are not images.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it matches the patterns.
        OSError: The folder cannot be listed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected a folder, got {'a file' if root.exists() else 'nothing of that name'}: {root}"
        )
    survey = Survey() if survey is None else survey
    register_plugins()
    wanted, unwanted = [_folded(part) for part in include], [_folded(part) for part in exclude]
    try:
        found = find_images([root], recursive=recursive, survey=survey)
    except FileNotFoundError:
        if survey.unreadable:
            raise OSError(f"the folder cannot be read: {survey.unreadable[0]}") from None
        inside = "" if recursive else "; folders inside it are searched with recursive"
        left_out = survey.describe_left_out()
        raise FileNotFoundError(f"there is no image in {root}{inside}{left_out and '; ' + left_out}") from None
    names = [_folded(path.relative_to(root)) for path in found]
    chosen = [
        path
        for path, name in zip(found, names, strict=True)
        if (not wanted or _matches(name, wanted)) and not _matches(name, unwanted)
    ]
    if not chosen:
        raise FileNotFoundError(f"include and exclude leave none of the {len(found):,} images in {root}")
    return sorted(chosen, key=lambda path: _order(path, root))


def score_table(files: Sequence[str], results: Sequence[ImageScore], order: Iterable[int]) -> str:
    """A table as CSV with `COLUMNS`, a line per image.

    Args:
        files: Names.
        results: Their scores, by the same indexes.
        order: 0-based indexes of the lines; their place is the rank, if there is a score.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for place, index in enumerate(order, start=1):
        result = results[index]
        percentile = "" if result.percentile != result.percentile else f"{result.percentile:.1f}"
        row = ("", "", "", "") if result.error is not None else (place, f"{result.score:.4f}", result.band, percentile)
        reason = result.error or result.reason or ""
        writer.writerow((row[0], _readable(files[index]), *row[1:], _readable(reason)))
    return text.getvalue()


def _readable(text: str) -> str:
    """One line of valid Unicode; bytes of a name that are not UTF-8 become \\x escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\n", " ")


def _folded(name: str | os.PathLike[str]) -> str:
    return os.fspath(name).replace(os.sep, "/").casefold()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    base = name.rsplit("/", 1)[-1]
    return any(fnmatchcase(name, pattern) or fnmatchcase(base, pattern) for pattern in patterns)


def _order(path: Path, root: Path) -> Any:
    *folders, name = path.relative_to(root).parts
    return [natural_key(part) for part in folders], natural_key(name)
