"""Output of the chosen images: links, copies, a list."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ..exports import FreeNames, Mode, find_sidecars, place_file, remove_moved_sidecars, safe_name, sidecar_path
from ..files import atomic_write, is_video_name
from ..images import IMAGE_SUFFIXES, open_image
from . import storage
from .filter import Selection
from .items import Item, to_unicode
from .result import ContentReader

ITEMS_AT_ONCE = 1024


def write_list(chosen: Selection, file: IO[bytes], *, end: bytes = b"\n") -> None:
    """One line per image: the path or URL of its file; `#` and the member or row behind that of a container.

    Raises:
        ValueError: A name holds a line break, and lines end with one; nothing is written then.
    """
    files = chosen.dataset.manifest.payload == "file"

    def names() -> Iterator[bytes]:
        for item in _items(chosen):
            yield os.fsencode(item.path) if files else item.uri.encode()

    if end == b"\n":
        broken = [name for name in names() if b"\n" in name or b"\r" in name]
        if broken:
            raise ValueError(
                f"{len(broken)} names hold a line break, such as {to_unicode(os.fsdecode(broken[0]))!r}: end the "
                "list's names with a null byte (-0)"
            )
    for name in names():
        file.write(name + end)


def link_images(
    chosen: Selection, target: Path, *, report: Callable[[int], None] | None = None, **options: bool
) -> list[str]:
    """Create a symbolic link to each image, named by its id; arguments, result and errors as for `export_images`."""
    return export_images(chosen, target, "link", report=report, **options)


def copy_images(
    chosen: Selection, target: Path, *, report: Callable[[int], None] | None = None, **options: bool
) -> list[str]:
    """Copy each image, named by its id; arguments, result and errors as for `export_images`."""
    return export_images(chosen, target, "copy", report=report, **options)


def export_images(
    chosen: Selection,
    target: Path,
    mode: Mode,
    *,
    sidecars: bool = False,
    bands: bool = False,
    report: Callable[[int], None] | None = None,
) -> list[str]:
    """Copy, move or link to each image, named by its id; copies of those inside tars and Parquet files become files.

    One file per chosen image: names that some system does not allow are changed, and names that would collide there get
        a
    number. An identical file that exists already is kept.

    Args:
        chosen: Which images.
        target: Folder, created if needed.
        mode: What to do.
        sidecars: Also take the files that belong to an image (`.txt`, `.json`, `.xmp`, `.caption`, `.npz`).
        bands: Into a folder per band: bad, poor, fair, good, excellent; `unbanded` for a model without bands.
        report: Called with the number of images done.

    Returns:
        A text for each image that no longer exists.

    Raises:
        ValueError: The images are not local files and are to be moved or linked to, or their sidecars are wanted.
        FileExistsError: A different file has the name already.
        OSError: A file cannot be written.
    """
    if chosen.dataset.manifest.payload != "file":
        if mode != "copy":
            what = "moved" if mode == "move" else "linked to"
            raise ValueError(f"images inside tars and Parquet files cannot be {what}: copy them with --copy")
        if sidecars:
            raise ValueError("--sidecars is for images that are files of their own, not inside tars and Parquet files")
    folders = _bands(chosen) if bands else [""] * len(chosen.positions)
    target.mkdir(parents=True, exist_ok=True)
    names = FreeNames(by_stem=sidecars)
    problems: list[str] = []
    moved: set[Path] = set()
    with ContentReader(chosen.dataset.manifest) as reader:
        for number, (item, folder) in enumerate(zip(_items(chosen), folders, strict=True), start=1):
            try:
                path = _export(item, folder, target, names, mode, reader)
                if sidecars and not storage.is_url(item.path):
                    for sidecar, ending in find_sidecars(item.path):
                        _place(sidecar, sidecar_path(path, item.path, ending), "link" if mode == "link" else "copy")
                        moved.add(sidecar)
            except _Unreadable as error:
                problems.append(str(error))
            if report is not None:
                report(number)
    if mode == "move":
        remove_moved_sidecars(moved)
    return problems


def _export(item: Item, folder: str, target: Path, names: FreeNames, mode: Mode, reader: ContentReader) -> Path:
    name = safe_name(f"{folder}/{item.id}")
    if reader.payload == "file" and not storage.is_url(item.path):
        path = target / names.take(name)
        if os.path.isfile(item.path):
            _place(Path(item.path), path, mode)
        elif not (mode == "move" and path.is_file() and path.stat().st_size == item.file_size):  # moved before
            raise _Unreadable(f"{item.uri}: the file does not exist any more")
        return path
    if mode != "copy":
        raise ValueError(f"{item.uri} is no local file: copy with --copy")
    try:
        content = reader.read(item)
    except Exception as error:  # an expired URL raises an exception of its own library
        raise _Unreadable(f"{item.uri}: {error}") from error
    if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES and not is_video_name(name):
        name += _suffix(content)
    path = target / names.take(name)
    if path.exists():
        if not path.is_file() or path.read_bytes() != content:
            raise _Occupied(path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, durable=False) as temporary:
        temporary.write_bytes(content)
    return path


def _place(source: Path, path: Path, mode: Mode) -> None:
    if mode == "link" and path.is_symlink() and os.readlink(path) == str(source):
        return
    if path.is_symlink() or path.exists():
        if mode == "link" or not path.is_file() or not filecmp.cmp(source, path, shallow=False):
            raise _Occupied(path)
        if mode == "move":
            source.unlink()
        return
    place_file(source, path, mode)


def _bands(chosen: Selection) -> list[str]:
    names: list[str | None] = []
    for table in chosen.dataset.tables(["band"]):
        names += table.column("band").to_pylist()
    return [names[position] or "unbanded" for position in chosen.positions.tolist()]


class _Unreadable(Exception):
    """An image cannot be read any more; the others can."""


class _Occupied(FileExistsError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists already and is a different file: choose an empty folder")


def _items(chosen: Selection) -> Iterator[Item]:
    positions = chosen.positions
    for start in range(0, len(positions), ITEMS_AT_ONCE):
        yield from chosen.dataset.items(positions[start : start + ITEMS_AT_ONCE].tolist())


def _suffix(content: bytes) -> str:
    try:
        with open_image(content) as image:
            name = (image.format or "").lower()
    except Exception:  # a plugin's format, which this process does not know
        return ""
    return ".jpg" if name == "jpeg" else f".{name}" if name else ""
