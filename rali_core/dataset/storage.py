"""Files behind paths and URLs: walking a folder, expanding a glob, reading bytes. URLs go through fsspec."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast
from urllib.request import url2pathname

from ..text_files import find_listed
from ..urls import find_filesystem, read_url
from ..urls import is_url as is_url

MANIFEST = os.path.join("_rali", "manifest.json")
"""Marks a folder of results, whose own images are never part of a data set."""

LISTING = os.path.join("_rali", "listing.arrow")

UNKNOWN = -1


class FoundFile(NamedTuple):
    """A file, or a folder that could not be listed.

    Attributes:
        path: Local path or URL.
        size: Bytes; `UNKNOWN` where the storage does not say.
        modified: Last change in nanoseconds since 1970; `UNKNOWN` for URLs.
        problem: Why a folder could not be listed; None for a file.
    """

    path: str
    size: int = UNKNOWN
    modified: int = UNKNOWN
    problem: str | None = None


def normalise(path: str) -> str:
    """A URL as it is, `file://` and local paths as an absolute path."""
    if path.lower().startswith("file://") and not os.path.lexists(path):
        path = url2pathname(path[7:])
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def stat(path: str) -> FoundFile:
    """Size and time of a local file; for a URL and for a missing file, both unknown."""
    if not is_url(path):
        try:
            status = os.stat(path)
            return FoundFile(path, status.st_size, status.st_mtime_ns)
        except OSError:
            pass  # reading it reports the reason
    return FoundFile(path)


def is_folder(path: str) -> bool:
    """Whether there is a folder of this name."""
    if not is_url(path):
        return os.path.isdir(path)
    system, inner = find_filesystem(path)
    return bool(system.isdir(inner))


def walk(root: str) -> Iterator[FoundFile]:
    """All files under a folder, names sorted within each folder; folders of results are left out.

    Links to files are followed, links to folders are not. Memory holds the names of one folder at a time, and those of
    the folders above it.

    Yields:
        Files, and one entry with a problem for each folder that cannot be listed.
    """
    if is_url(root):
        system, inner = find_filesystem(root)
        for _, folders, files in system.walk(inner, detail=True, on_error="raise"):
            for folder in sorted(folders):
                if system.exists(f"{folders[folder]['name']}/{MANIFEST.replace(os.sep, '/')}"):
                    del folders[folder]
            for name in sorted(files):
                yield _found(system, root, files[name])
        return
    try:
        with os.scandir(root) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield FoundFile(root, problem=f"the folder cannot be listed: {error}")
        return
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            if not os.path.exists(os.path.join(entry.path, MANIFEST)):
                yield from walk(entry.path)
        elif not (entry.is_symlink() and os.path.isdir(entry.path)):
            yield stat(entry.path)


def expand_glob(pattern: str) -> Iterator[FoundFile]:
    """The files that a pattern of `*`, `?`, `[...]`, `**` and `{000..123}` or `{a,b}` matches, sorted."""
    for part in expand_braces(pattern):
        if is_url(part):
            system, inner = find_filesystem(part)
            found = system.glob(inner, detail=True) if has_magic(part) else {inner: system.info(inner)}
            for name in sorted(found):
                if found[name]["type"] == "file":
                    yield _found(system, part, found[name])
        elif has_magic(part):
            yield from (stat(path) for path in sorted(glob.iglob(part, recursive=True)) if not os.path.isdir(path))
        else:
            yield stat(part)


def has_magic(path: str) -> bool:
    """Whether `path` is a pattern; a local file of exactly this name is none."""
    return bool(re.search(r"[*?[]|\{[^{}]*(\.\.|,)[^{}]*\}", path)) and not os.path.exists(path)


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}.tar` to a08.tar, a09.tar, a10.tar, and `{x,y}` to x and y, as shells and WebDataset do."""
    match = re.search(r"\{([^{}]*(?:\.\.|,)[^{}]*)\}", pattern)
    if match is None or os.path.exists(pattern):
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        choices = match[1].split(",")
    return [
        full for choice in choices for full in expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
    ]


def parent(path: str) -> str:
    """The folder of a path or URL, without a slash at the end."""
    if not is_url(path):
        return os.path.dirname(path)
    first, chain, rest = path.partition("::")
    return first.rpartition("/")[0] + chain + rest


def join(folder: str, name: str) -> str:
    """`name` in a folder; an absolute name or a URL is returned unchanged."""
    if is_url(name) or os.path.isabs(name):
        return name
    first, chain, rest = folder.partition("::") if is_url(folder) else (folder, "", "")
    return f"{first}/{name}{chain}{rest}"


def find(folder: str, name: str) -> str:
    """Resolve `name` in a list file: the local file that exists (see `find_listed`), else a URL or path."""
    if not is_url(folder):
        path = find_listed(folder, name)
        if os.path.lexists(path):
            return path
    if name.lower().startswith("file://"):
        return normalise(name)
    return join(folder, name)


def glob_root(pattern: str) -> str:
    """The folder above the first part of a pattern that is not a plain name."""
    _, chain, rest = pattern.partition("::") if is_url(pattern) else (pattern, "", "")
    return parent(re.split(r"[*?[{]", pattern, maxsplit=1)[0]) + chain + rest


def open_binary(path: str) -> IO[bytes]:
    """A seekable file object for reading.

    Raises:
        OSError: It cannot be opened.
    """
    if not is_url(path):
        return open(path, "rb")
    system, inner = find_filesystem(path)
    return cast(IO[bytes], system.open(inner, "rb"))


def read_bytes(path: str, offset: int = 0, length: int = UNKNOWN) -> bytes:
    """A whole file, or `length` bytes from `offset` on; fewer where the file ends before.

    Raises:
        OSError: It cannot be read.
    """
    if not is_url(path):
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)
    if length == UNKNOWN:
        return read_url(path)
    system, inner = find_filesystem(path)
    return bytes(system.cat_file(inner, start=offset, end=offset + length))


def relative(path: str, root: str) -> str:
    """`path` relative to `root` with forward slashes; the whole path if it is not below."""
    if not is_url(path):
        root = os.path.join(root, "")
        return path[len(root) :].replace(os.sep, "/") if path.startswith(root) else path
    inner, base = (url.split("::")[0].partition("://")[2].strip("/") for url in (path, root))
    if not base:
        return inner
    return inner[len(base) + 1 :] if inner.startswith(base + "/") else path


def _found(system: Any, root: str, info: dict[str, Any]) -> FoundFile:
    first, _, rest = root.partition("::")
    url = (
        f"{first.split('://')[0]}://{info['name'].lstrip('/')}::{rest}"
        if rest
        else system.unstrip_protocol(info["name"])
    )
    size = info.get("size")
    return FoundFile(url, UNKNOWN if size is None else int(size))
