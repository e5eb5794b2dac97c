"""Files: atomic writes, safe appends, hashes and searches; free of torch and numpy.

This module needs neither pixels nor a model, because ComfyUI imports it at its start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO, Any, TypeAlias

from .content_hints import name_missing_plugins

try:
    import fcntl
except ImportError:  # Windows has no such module
    fcntl = None  # type: ignore[assignment]

NOT_RASTER = frozenset({
    "BUFR", "EPS", "FITS", "FPX", "GRIB", "HDF5", "IMT", "IPTC", "MCIDAS", "MPEG", "PDF", "WMF", "XVTHUMB",
})  # fmt: skip
"""Pillow's formats that are not raster images, or only stubs; they are neither searched for nor opened."""


class _ImageSuffixes(Set[str]):
    """The endings of the image formats that Pillow knows now, including plugins that were registered later."""

    def __contains__(self, suffix: object) -> bool:
        from PIL import Image

        return _is_readable(Image.registered_extensions().get(suffix))  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known()))

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> set[str]:
        from PIL import Image

        return {suffix.lower() for suffix, name in Image.registered_extensions().items() if _is_readable(name)}


IMAGE_SUFFIXES = _ImageSuffixes()
"""File name endings that count as images when a folder is searched, in lower case; a named file is tried whatever its
ending. A live view of Pillow's registry, without formats that are no raster images."""


def readable_formats() -> list[str]:
    """Pillow's names of the formats that are opened."""
    from PIL import Image

    Image.init()
    return [name for name in Image.ID if _is_readable(name)]


def _is_readable(name: str | None) -> bool:
    from PIL import Image

    return name in Image.OPEN and name not in NOT_RASTER


def is_image_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file in a folder or archive counts as an image, by its name alone."""
    return os.path.splitext(os.fspath(path))[1].lower() in IMAGE_SUFFIXES and not is_companion(path)


VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf", ".m2ts", ".m2v", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mxf", ".ogm", ".ogv", ".qt", ".vob", ".webm", ".wmv", ".y4m",
})  # fmt: skip
"""File name endings that count as videos."""


def is_wanted(ending: str, videos: bool) -> bool:
    """Whether files in a folder or archive with this ending, in lower case, are scored."""
    return ending in IMAGE_SUFFIXES or (videos and ending in VIDEO_SUFFIXES)


TRANSPORT_STREAMS = frozenset({".m2t", ".mts", ".ts"})
"""Endings of videos, or of TypeScript programs."""


def is_video_name(path: str | os.PathLike[str], *, named: bool = False) -> bool:
    """Whether a file counts as a video, by its name alone.

    Args:
        path: The file.
        named: It was named explicitly, not found in a folder.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    return (suffix in VIDEO_SUFFIXES or (named and suffix in TRANSPORT_STREAMS)) and not is_companion(path)


def natural_key(path: str | os.PathLike[str]) -> tuple[list[tuple[str, int]], str]:
    """Key for sorting names naturally: `a2` before `a10`; case decides only between otherwise equal names."""
    parts = re.split(r"(\d+)", os.fspath(path).replace(os.sep, "/"))
    texts, numbers = parts[::2], [*map(int, parts[1::2]), -1]
    return [(text.casefold(), number) for text, number in zip(texts, numbers, strict=True)], os.fspath(path)


TEMPORARY_PREFIX = ".writing-"
"""Readers of data sets skip names that begin with a dot."""

NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})
"""Errors of network mounts for requests that they do not support; the bytes are written all the same."""

_append_lock = Lock()


def hash_file(path: str | os.PathLike[str], kind: str = "sha256", prefix: bytes = b"") -> str:
    """Hexadecimal digest of `prefix` and a file's bytes, read in pieces."""
    digest = hashlib.new(kind, prefix, usedforsecurity=False)
    with Path(path).open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


FileStamp: TypeAlias = tuple[int, int]
"""Identifies a state of a file: size in bytes, time of modification in nanoseconds."""


def stamp_file(path: str | os.PathLike[str]) -> FileStamp:
    """The file's state now; of a symbolic link, that of the file it leads to.

    Raises:
        OSError: There is no such file.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def atomic_write(
    path: Path, *, durable: bool = True, replaces: FileStamp | None = None, keep_times: bool = False
) -> Iterator[Path]:
    """A temporary path beside `path`; when the block succeeds, it is flushed to the disk and renamed to `path`.

    When the block raises, the temporary file is removed and `path` stays as it was. A file system that cannot flush
    or change permissions (some network mounts) is no error.

    Args:
        path: The file to create; its folder must exist.
        durable: Wait until it is on the disk. Without, many small files are faster, but the last ones may be lost if
            the machine stops.
        replaces: The state of the file at `path` that is to be replaced: the new one gets its permissions, owner and
            extended attributes, and where the file has changed since, that is an error.
        keep_times: It gets the times of modification and access too.

    Raises:
        OSError: It cannot be written; the message names `path`.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY_PREFIX, suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error
    temporary = Path(name)
    try:
        yield temporary
        with contextlib.suppress(OSError):  # some network mounts have no permissions
            if replaces is None:
                os.chmod(temporary, 0o644)
            else:
                _take_over(path, temporary, times=keep_times)
        if durable:
            with temporary.open("rb+") as file, where_supported():
                os.fsync(file.fileno())
        if replaces is not None and stamp_file(path) != replaces:
            raise OSError("it was changed meanwhile")
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, f"{path} cannot be written: {reason}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def where_supported() -> Iterator[None]:
    """Ignore errors that mean that the file system does not support an operation."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of runs that were killed. No run may be writing there."""
    for path in folder.glob(TEMPORARY_PREFIX + "*"):
        path.unlink(missing_ok=True)


def _take_over(path: Path, new: Path, *, times: bool) -> None:
    """Give a new file the owner, permissions and extended attributes of the one that it is to replace."""
    status = path.stat()
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):  # only root gives files away
            os.chown(new, status.st_uid, status.st_gid)
    written = new.stat()
    shutil.copystat(path, new)
    if not times:
        os.utime(new, ns=(written.st_atime_ns, written.st_mtime_ns))


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file's bytes, and its times and permissions if the target's file system supports them.

    Raises:
        OSError: The bytes cannot be read or written.
    """
    shutil.copyfile(source, target)
    with contextlib.suppress(OSError):  # network mounts: EPERM, although the bytes were written
        shutil.copystat(source, target)


def append_json_line(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Append one record to a JSON Lines file, created if needed; crash-safe, safe for several processes.

    The line is written with one call in append mode and, except on Windows, under a lock on the file, so lines of
    several processes do not mix, and it is on the disk before this returns. If an earlier writer died in the middle
    of a line, the new record starts on its own line.

    Args:
        path: The file; its folder must exist.
        record: JSON types; NaN is refused, because it is not valid JSON.

    Raises:
        ValueError: The record holds NaN or infinite numbers.
        OSError: The file cannot be written.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with _append_lock, Path(path).open("ab+") as file:
        _lock_against_other_processes(file)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        with where_supported():
            os.fsync(file.fileno())


SHOWN_ENDINGS = 8

SIDECAR_SUFFIXES = (".txt", ".json", ".xmp", ".caption", ".npz")
"""Endings of files that belong to the image of the same name: `a.txt` or `a.jpg.txt` to `a.jpg`."""

USUAL_COMPANIONS = frozenset({
    *SIDECAR_SUFFIXES, ".md", ".csv", ".html", ".yaml", ".yml", ".log", ".db", ".ini", ".cls", ".parquet",
})  # fmt: skip
"""Endings of files that usually lie beside images: if nothing else was left out, no line is printed."""


@dataclass
class Survey:
    """What a search for images found besides them.

    Attributes:
        left_out: How many files are not images, by their ending in lower case; hidden files are not counted.
        unreadable: A text for each folder that could not be listed.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    def note(self, path: str, ending: str) -> None:
        """Count a file that is no image by its name, unless it is hidden."""
        if not os.path.basename(path).startswith("."):
            self.left_out[ending] += 1

    def describe_left_out(self) -> str:
        """One line on what was left out, by ending; "" if that is nothing but usual companions of images."""
        if not set(self.left_out) - USUAL_COMPANIONS:
            return ""
        endings = [f"{count:,} {ending or 'without an ending'}" for ending, count in self.left_out.most_common()]
        shown = ", ".join(endings[:SHOWN_ENDINGS])
        if len(endings) > SHOWN_ENDINGS:
            shown += f" and {len(endings) - SHOWN_ENDINGS} more endings"
        if install := name_missing_plugins(self.left_out):
            shown += f" (to read them: {install})"
        total = self.left_out.total()
        what = "file that is no image by its name" if total == 1 else "files that are no images by their names"
        return f"left out {total:,} {what}: {shown}"


def is_companion(path: str | os.PathLike[str]) -> bool:
    """Whether it is an image by its name only: a companion file of macOS (`._a.jpg`, `__MACOSX/`), or what a killed run
    left behind."""
    *folders, name = os.fspath(path).replace(os.sep, "/").split("/")
    return name.startswith(("._", TEMPORARY_PREFIX)) or "__MACOSX" in folders


def find_images(
    paths: Iterable[str | os.PathLike[str]],
    *,
    recursive: bool = False,
    survey: Survey | None = None,
    videos: bool = False,
) -> list[Path]:
    """The image files under `paths`, in the order given, folders sorted by name, each file once.

    A named file is kept whatever its ending, even if it does not exist: reading it reports the reason.

    Args:
        paths: Files and folders.
        recursive: Search folders inside folders as well.
        survey: Collects what is left out, and which folders cannot be listed; these are skipped otherwise.
        videos: Also find videos.

    Raises:
        FileNotFoundError: No image in any of the folders, and no file was named.
    """
    given: Sequence[str | os.PathLike[str]] = list(paths)
    found: dict[str, Path] = {}
    survey = Survey() if survey is None else survey
    for path in map(Path, given):
        if os.path.isdir(path):  # Path.is_dir() raises for names that are too long
            for file in sorted(_walk(path, recursive, survey)):
                if is_companion(file.relative_to(path)):
                    continue
                if is_wanted(file.suffix.lower(), videos):
                    found.setdefault(os.path.abspath(file), file)
                else:
                    survey.note(file.name, file.suffix.lower())
        else:
            found.setdefault(os.path.abspath(path), path)
    if not found:
        hint = "" if recursive else " (folders inside folders are searched with --recursive)"
        there = sum(count for suffix, count in survey.left_out.items() if suffix in VIDEO_SUFFIXES)
        hint += f" (videos: {there:,}, scored with --videos)" if there and not videos else ""
        raise FileNotFoundError(f"no images in {', '.join(map(str, given))}{hint}")
    return list(found.values())


def _walk(folder: Path, recursive: bool, survey: Survey) -> Iterator[Path]:
    def note(error: OSError) -> None:
        survey.unreadable.append(f"{error.filename}: {error.strerror}")

    for root, folders, names in os.walk(folder, onerror=note):
        if not recursive:
            folders.clear()
        yield from (Path(root, name) for name in names)


def _lock_against_other_processes(file: IO[bytes]) -> None:
    """Wait for the file's exclusive lock, which closing it releases."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            return  # some network file systems have no locks: appending is then the only protection


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened on Windows, and renaming is journalled
        return
    with where_supported():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
