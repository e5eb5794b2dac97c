"""Checks of the outputs before the work."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ._console import cannot_write, lost_output, silence

STANDARD_OUTPUT = "-"


def check_file(name: str | None, option: str, suffixes: Sequence[str] = ()) -> None:
    """Check that a file can be written, without changing or creating it.

    Args:
        name: Of the file; `-` is standard output, None nothing.
        option: That named it, for the message.
        suffixes: Endings that it may have; any ending if this is empty.

    Raises:
        ValueError: It has another ending.
        OSError: It cannot be written; the message says why.
    """
    if name is None or name == STANDARD_OUTPUT:
        return
    path = Path(name)
    if suffixes and path.suffix.lower() not in suffixes:
        ending = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise ValueError(f"{option} {name} {ending}; expected one of {', '.join(suffixes)}")
    if os.path.islink(path) and not os.path.exists(path):
        path = Path(os.path.realpath(path))  # writing follows the link
    try:
        if path.is_dir():
            raise ValueError("it is a folder; expected the name of a file")
        if not path.exists():
            path.open("xb").close()
            path.unlink()
        elif path.is_file():
            path.open("ab").close()  # a pipe or device is not opened: its reader would see an end of file
    except (OSError, ValueError) as error:
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"{option} {name} cannot be written: No such file or directory: {path.parent}"
            ) from None
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{option} {name} cannot be written: {reason}") from error


def check_folder(name: str | None, option: str) -> None:
    """Create a folder if needed, and check that files can be written there.

    Raises:
        OSError: It cannot be made, or not be written to.
    """
    if name is None:
        return
    if name == STANDARD_OUTPUT:
        raise ValueError(f"{option} needs a folder, and - is standard output")
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=name):
            pass
    except (OSError, ValueError) as error:
        raise OSError(f"{option} {name} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def check_one_output(**outputs: str | bool | None) -> None:
    """Check that at most one output goes to standard output.

    Args:
        outputs: Option and its value; True and `-` stand for standard output.

    Raises:
        ValueError: More than one goes there.
    """
    there = [f"--{name.replace('_', '-')}" for name, value in outputs.items() if value is True or value == "-"]
    if len(there) > 1:
        raise ValueError(f"{' and '.join(there)} cannot both go to standard output: give one of them a file")


@contextlib.contextmanager
def open_output(name: str) -> Iterator[IO[bytes]]:
    """A file, or standard output for `-`, to write bytes to."""
    if name != STANDARD_OUTPUT:
        with open(name, "wb") as file:
            yield file
        return
    sys.stdout.flush()
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        silence(sys.stdout)


def write_output(name: str, data: bytes) -> bool:
    """Write a file, or to standard output for `-`; False if it failed, which is reported and ends no work."""
    try:
        with open_output(name) as file:
            file.write(data)
    except OSError as error:
        if name == STANDARD_OUTPUT:
            silence(sys.stdout)
            lost_output.append(error.strerror or str(error))
        else:
            cannot_write(name, error)
            with contextlib.suppress(OSError):
                if Path(name).is_file():
                    Path(name).unlink()  # half an image
        return False
    return True


def check_not_inputs(files: Sequence[Path | str], **outputs: str | None) -> None:
    """Check that no output file is one of the images.

    Raises:
        ValueError: The message names it.
    """
    for option, name in outputs.items():
        if name is None or name == STANDARD_OUTPUT or not os.path.isfile(name):
            continue
        for file in files:
            with contextlib.suppress(OSError, ValueError):
                if isinstance(file, Path) and os.path.samefile(file, name):
                    break
        else:
            continue
        raise ValueError(f"--{option} {name} is one of the images to score, and would be overwritten")


def save_suffixes() -> tuple[str, ...]:
    """Endings of image files that Pillow can write, the usual ones first."""
    from PIL import Image

    known = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.SAVE}
    usual = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".pdf")
    return tuple(suffix for suffix in usual if suffix in known)
