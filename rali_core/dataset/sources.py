"""Resolves SOURCE: a folder, a glob, a list file, Parquet files or WebDataset tars, to a stream of items."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from ..files import VIDEO_SUFFIXES, Survey, is_companion, is_wanted
from ..text_files import read_list
from . import storage
from .items import Item, Kind, Payload, to_unicode
from .source_parquet import ParquetSource
from .source_webdataset import list_tar
from .storage import FoundFile

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS: dict[str, Kind] = {
    ".parquet": "parquet", ".tar": "webdataset", ".txt": "list", ".lst": "list", ".list": "list"
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A source that was inspected, ready to be listed.

    Attributes:
        kind: What it is.
        payload: Where its images' bytes are.
        items: Its images, read as they are listed.
        carried: Fields of the columns that are carried into the result.
        image_column: Of a Parquet source.
        survey: What else is in a folder or a tar; complete when all items were read.
    """

    kind: Kind
    payload: Payload
    items: Iterator[Item]
    carried: list[pa.Field] = field(default_factory=list)
    image_column: str | None = None
    survey: Survey = field(default_factory=Survey)


def open_source(
    source: str,
    *,
    kind: Kind | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    carry: Iterable[str] = (),
    videos: bool = False,
) -> Source:
    """Find out what a source is.

    Args:
        source: Local path or fsspec URL of a folder, a glob, a list file (`.txt`, `.lst`, `.list`: a path or URL per
            line, relative ones to the list's folder), Parquet files or WebDataset tars.
        kind: What it is, if its name does not say it.
        image_column: Parquet: column of the images' bytes, or of their paths.
        id_column: Parquet: column of unique names.
        carry: Parquet: columns that are copied into the result.
        videos: A folder's and a tar's videos as well.

    Raises:
        ValueError: An unknown kind, or options that this kind of source does not have.
        FileNotFoundError: The source does not exist, or holds nothing.
        OSError: It cannot be listed.
    """
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    root, files = _find_files(source)
    kind = kind or _guess_kind(source, files, videos)
    if kind == "parquet":
        table = ParquetSource(root, _only(files, ".parquet"), image_column, id_column, tuple(carry))
        return Source(kind, table.payload, table.items(), table.carried, table.image_column)
    if image_column or id_column or tuple(carry):
        raise ValueError(f"--image-column, --id-column and --keep-column belong to Parquet sources; {source} is {kind}")
    survey = Survey()
    if kind == "webdataset":
        items = (item for file in _only(files, ".tar") for item in list_tar(root, file, videos, survey))
        return Source(kind, "tar", items, survey=survey)
    if kind == "list":
        return Source(kind, "file", (item for file in files for item in _read_list(file.path)))
    return Source(kind, "file", _image_files(root, files, videos, survey), survey=survey)


def _find_files(source: str) -> tuple[str, _Files]:
    """The folder that names are relative to, and the files."""
    path = storage.normalise(source)
    if storage.has_magic(path):
        return storage.glob_root(path), _Files(path, folder=False)
    if storage.is_folder(path):
        return path, _Files(path, folder=True)
    if not storage.is_url(path) and not os.path.exists(path):
        raise FileNotFoundError(f"no such file or folder: {source}")
    return storage.parent(path), _Files(path, folder=False)


@dataclass(frozen=True)
class _Files:
    """Files that can be iterated repeatedly."""

    path: str
    folder: bool

    def __iter__(self) -> Iterator[FoundFile]:
        return storage.walk(self.path) if self.folder else storage.expand_glob(self.path)


def _guess_kind(source: str, files: _Files, videos: bool) -> Kind:
    """Guess from the file names: images come first, so that a list file among images changes nothing."""
    seen: set[Kind] = set()
    for file in files:
        ending = _ending(file.path)
        if files.folder and is_companion(storage.relative(file.path, files.path)):
            continue
        if file.problem is not None or is_wanted(ending, videos):
            return "files"
        if ending in ENDINGS and not (files.folder and ENDINGS[ending] == "list"):
            seen.add(ENDINGS[ending])
    if len(seen) == 1:
        return seen.pop()
    if seen:
        raise ValueError(f"{source} holds {' and '.join(sorted(seen))} files: say which with --kind, or name them")
    if files.folder:
        there = any(_ending(file.path) in VIDEO_SUFFIXES for file in files)
        hint = " (there are videos, which are scored with --videos)" if there else ""
        raise FileNotFoundError(f"no images, Parquet files or tars in {source}{hint}")
    return "files"


def _only(files: Iterable[FoundFile], ending: str) -> Iterator[FoundFile]:
    return (
        file
        for file in files
        if file.problem is not None or (_ending(file.path) == ending and not is_companion(file.path))
    )


def _image_files(root: str, files: _Files, videos: bool, survey: Survey) -> Iterator[Item]:
    """A folder's images by their endings; files picked by a glob or by name, whatever their ending."""
    for file in files:
        if file.problem is None and files.folder:
            if is_companion(storage.relative(file.path, root)):
                continue
            if not is_wanted(_ending(file.path), videos):
                survey.note(file.path, _ending(file.path))
                continue
        yield Item.of(file, root)


def _read_list(path: str) -> Iterator[Item]:
    folder = storage.parent(path)
    with storage.open_binary(path) as lines:
        for name in read_list(lines):
            target = storage.find(folder, name)
            file = storage.stat(target)
            yield Item(to_unicode(name), to_unicode(target), target, file_size=file.size, modified=file.modified)


def _ending(path: str) -> str:
    return os.path.splitext(path.split("::")[0] if storage.is_url(path) else path)[1].lower()
