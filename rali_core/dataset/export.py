"""What is done with the chosen images: links, copies, a list."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image

from ..files import atomic_write
from ..images import IMAGE_SUFFIXES
from . import storage
from .filter import Chosen
from .items import Item
from .result import ContentReader

ITEMS_AT_ONCE = 1024

Report = Callable[[int], None]


def write_list(chosen: Chosen, file: IO[bytes], *, end: bytes = b"\n") -> None:
    """One line per image: the path or URL of its file; `#` and the member or row behind that of a container."""
    files = chosen.dataset.manifest.payload == "file"
    for item in _items(chosen):
        file.write((os.fsencode(item.path) if files else item.uri.encode()) + end)


def link_images(chosen: Chosen, target: Path, *, report: Report | None = None) -> list[str]:
    """Make a symbolic link to each image, named by its id.

    Args:
        chosen: Which images.
        target: Folder for the links, made where it does not exist.
        report: Called with the number of images done.

    Returns:
        A text for each image that is not there any more.

    Raises:
        ValueError: The images are not local files.
        FileExistsError: Something else has a link's name.
    """
    if chosen.dataset.manifest.payload != "file":
        raise ValueError("images inside tars and Parquet files cannot be linked to: copy them with --copy")

    def link(item: Item, path: Path) -> None:
        if storage.is_url(item.path):
            raise ValueError(f"{item.uri} is no local file and cannot be linked to: copy with --copy")
        if not os.path.exists(item.path):
            raise _Unreadable(f"{item.uri}: the file is gone")
        if path.is_symlink() and os.readlink(path) == item.path:
            return
        try:
            path.symlink_to(item.path)
        except FileExistsError:
            raise _Occupied(path) from None

    return _export(chosen, target, link, report)


def copy_images(chosen: Chosen, target: Path, *, report: Report | None = None) -> list[str]:
    """Copy each image, named by its id; those inside tars and Parquet files become files.

    A copy that is there already is left as it is. Arguments, result and errors as for `link_images`.
    """
    payload = chosen.dataset.manifest.payload
    with ContentReader(chosen.dataset.manifest) as reader:

        def copy(item: Item, path: Path) -> None:
            if payload == "file" and not storage.is_url(item.path):
                if not os.path.isfile(item.path):
                    raise _Unreadable(f"{item.uri}: the file is gone")
                if path.exists():
                    if not filecmp.cmp(item.path, path, shallow=False):
                        raise _Occupied(path)
                    return
                with atomic_write(path, durable=False) as temporary:
                    shutil.copy2(item.path, temporary)
                return
            try:
                content = reader.read(item)
            except OSError as error:
                raise _Unreadable(f"{item.uri}: {error}") from error
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                path = path.with_name(path.name + _suffix(content))
            if path.exists():
                if path.read_bytes() != content:
                    raise _Occupied(path)
                return
            with atomic_write(path, durable=False) as temporary:
                temporary.write_bytes(content)

        return _export(chosen, target, copy, report)


def safe_name(name: str) -> str:
    """An id as a relative path that cannot leave its folder: no root, drive, `..` or control characters."""
    name = re.sub(r'[\x00-\x1f<>:"|?*\\]', "_", name)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join("_" if part == ".." else part for part in parts) or "_"


class _Unreadable(Exception):
    """An image cannot be had any more; the others can."""


class _Occupied(FileExistsError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is there already and is something else: choose an empty folder")


def _items(chosen: Chosen) -> Iterator[Item]:
    positions = chosen.positions
    for start in range(0, len(positions), ITEMS_AT_ONCE):
        yield from chosen.dataset.items(positions[start : start + ITEMS_AT_ONCE].tolist())


def _export(chosen: Chosen, target: Path, place: Callable[[Item, Path], None], report: Report | None) -> list[str]:
    target.mkdir(parents=True, exist_ok=True)
    problems = []
    for number, item in enumerate(_items(chosen), start=1):
        path = target / safe_name(item.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            place(item, path)
        except _Unreadable as error:
            problems.append(str(error))
        if report is not None:
            report(number)
    return problems


def _suffix(content: bytes) -> str:
    with Image.open(BytesIO(content)) as image:
        name = (image.format or "").lower()
    return ".jpg" if name == "jpeg" else f".{name}" if name else ""
