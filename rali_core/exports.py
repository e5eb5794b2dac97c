"""Files that are copied, moved or linked to: free names that any system allows, and the sidecars of an image."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from .files import IMAGE_SUFFIXES, SIDECAR_SUFFIXES, atomic_write, copy_file
from .text_files import name_to_text

Mode = Literal["copy", "move", "link"]

LONGEST_NAME = 200
"""Bytes of a file name; file systems allow 255, and a number may be added."""

RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names of devices on Windows, whatever their ending."""


def safe_name(name: str) -> str:
    """An id as a relative path that every system allows and that cannot leave its folder.

    No root, drive, `..`, control characters, names of Windows' devices, dots or spaces at the end, and no part that is
    longer than file systems allow.
    """
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\ufffd", "_")
    name = re.sub(r'[\x00-\x1f\x7f<>:"|?*\\]', "_", name)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join(map(_safe_part, parts)) or "_"


def _safe_part(part: str) -> str:
    if part == "..":
        return "_"
    part = re.sub(r"[. ]+$", lambda found: "_" * len(found[0]), part)
    if RESERVED.match(part):
        part = "_" + part
    if len(part.encode()) > LONGEST_NAME:
        stem, suffix = os.path.splitext(part)
        suffix = suffix if len(suffix.encode()) <= 16 else ""
        part = stem.encode()[: LONGEST_NAME - len(suffix.encode())].decode("utf-8", "ignore") + suffix
    return part


class FreeNames:
    """Gives each name once, also for file systems that ignore case and Unicode forms, and no file a folder's name.

    Args:
        taken: Relative paths that are not free.
        by_stem: Names must differ without their endings too, so that sidecars match one image.
    """

    def __init__(self, taken: Iterable[str] = (), *, by_stem: bool = False) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._by_stem = by_stem
        for name in taken:
            self._note(name)

    def take(self, name: str) -> str:
        """`name`, or with `-2` and so on before its ending if that is not free."""
        *folders, base = name.split("/")
        path = ""
        for folder in folders:
            path = self._free(f"{path}{folder}", "", folder=True) + "/"
        stem, suffix = os.path.splitext(base)
        free = self._free(path + stem, suffix, folder=False)
        self._note(free)
        return free

    def _free(self, stem: str, suffix: str, *, folder: bool) -> str:
        key = _fold(stem + suffix)
        number = 1 if folder else self._numbers.get(key, 1)
        while True:
            name = stem + suffix if number == 1 else f"{stem}-{number}{suffix}"
            if self._is_free(name, folder):
                break
            number += 1
        if folder:
            self._folders.add(_fold(name))
        else:
            self._numbers[key] = number + 1
        return name

    def _is_free(self, name: str, folder: bool) -> bool:
        if folder:
            return _fold(name) not in self._files
        keys = {_fold(name), _fold(os.path.splitext(name)[0])} if self._by_stem else {_fold(name)}
        return not (keys & self._files or keys & self._folders)

    def _note(self, name: str) -> None:
        self._files.add(_fold(name))
        if self._by_stem:
            self._files.add(_fold(os.path.splitext(name)[0]))


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name_to_text(name)).casefold()


def names_in(folder: Path) -> Iterator[str]:
    """The names in a folder; none if it does not exist."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from (entry.name for entry in entries)


def find_sidecars(image: str | os.PathLike[str]) -> list[tuple[Path, str]]:
    """The sidecars of an image: each file, and its ending after the image's stem (`.txt`) or name (`.jpg.txt`)."""
    path = Path(image)
    found: list[tuple[Path, str]] = []
    for before in ("", path.suffix):
        for suffix in SIDECAR_SUFFIXES:
            for ending in (before + suffix, before + suffix.upper()):
                sidecar = path.with_name(path.stem + ending)
                if sidecar.is_file() and not any(os.path.samefile(sidecar, other) for other, _ in found):
                    found.append((sidecar, ending))
    return found


def sidecar_path(image: Path, source: str | os.PathLike[str], ending: str) -> Path:
    """The path beside `image` for a sidecar of `source`, whose name may differ."""
    suffix = Path(source).suffix
    if suffix and ending.startswith(suffix):
        ending = image.suffix + ending[len(suffix) :]
    return image.with_name(image.stem + ending)


def place_file(source: str | os.PathLike[str], target: Path, mode: Mode) -> None:
    """Copy, move or link to a file. The target must not exist; its folder is created.

    Raises:
        OSError: It failed; no partial file remains, and the source is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == "link":
        target.symlink_to(os.path.abspath(source))
        return
    if mode == "move":
        with suppress(OSError):
            os.rename(source, target)
            return
    with atomic_write(target, durable=False) as temporary:
        copy_file(source, temporary)
    if mode == "move":
        os.unlink(source)


def remove_moved_sidecars(sidecars: Iterable[Path]) -> None:
    """Remove the sidecars of images that were moved, unless an image of that name still exists."""
    for path in sidecars:
        stem = path.stem if path.with_suffix("").suffix.lower() not in IMAGE_SUFFIXES else Path(path.stem).stem
        if not any(
            path.with_name(stem + suffix).exists() for known in IMAGE_SUFFIXES for suffix in (known, known.upper())
        ):
            path.unlink(missing_ok=True)
