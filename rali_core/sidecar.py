"""One JSON object per line, appended so that neither a crash nor a second writer spoils what is there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no such module
    fcntl = None  # type: ignore[assignment]

_lock = Lock()


def append_json_line(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Append one record to a JSON Lines file, made where it does not exist.

    The line is written with one call in append mode and, except on Windows, under a lock on the file, so lines of
    several processes do not mix, and it is on the disk before this returns. Where an earlier writer died in the middle
    of a line, the new one starts on a line of its own.

    Args:
        path: The file; its folder must exist.
        record: JSON types; NaN is refused, since no JSON reader has to take it.

    Raises:
        ValueError: The record holds NaN or infinite numbers.
        OSError: The file cannot be written.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with _lock, Path(path).open("ab+") as file:
        _lock_against_other_processes(file)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _lock_against_other_processes(file: IO[bytes]) -> None:
    """Wait for the file's exclusive lock, which closing it gives back."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            return  # some network file systems have no locks: appending is then all there is
