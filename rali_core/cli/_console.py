"""Console output; the work and the exit status never depend on what the console can show."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ..text_files import printable

ESCAPE = "rali-escape"

SLOW_SECONDS = 2.0
"""A progress bar appears where a run takes longer."""

lost_output: list[str] = []
"""Why standard output could not be written; the exit status is then 1, after all the work."""

lost_files: list[str] = []
"""Names of output files that could not be written; likewise."""


def set_up_console() -> None:
    """Show characters that the console's encoding lacks as escapes."""
    codecs.register_error(ESCAPE, _escape)
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)  # none where a program put something else there
        if reconfigure is not None:
            with suppress(ValueError, OSError):
                reconfigure(errors=ESCAPE)


def emit(line: str = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print, as long as somebody reads.

    A closed pipe (`| head`), a full disk behind `>` and a closed console end the printing, never the work.
    The error of a full disk is in `lost_output`.
    """
    stream = file or sys.stdout
    if stream is None:
        return
    try:
        stream.write(line + end)
        stream.flush()
    except BrokenPipeError:
        silence(stream)
    except OSError as error:
        silence(stream)
        if stream is sys.stdout:
            lost_output.append(error.strerror or str(error))


def say(line: str) -> None:
    """Print a line on standard error, after the program's name."""
    emit(f"rali: {line}", file=sys.stderr)


def cannot_write(name: str, error: OSError) -> None:
    """Report an output file that could not be written; the work goes on, and the exit status is 1."""
    say(shown(f"{name} cannot be written: {error.strerror or error}"))
    lost_files.append(name)


def silence(stream: TextIO) -> None:
    """Discard what is still written to a stream whose reader went away."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def shown(name: object) -> str:
    """A file name for one line of the console."""
    return printable(str(name))


@contextmanager
def show_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error for work that reports (done, total), on long runs at a terminal."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:  # not earlier: the hub client's own bars may come before
            quiet: dict[str, Any] = {"disable": None, "leave": False, "delay": SLOW_SECONDS}
            bar = tqdm(desc=what, total=total, bar_format=form, file=sys.stderr, **quiet)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    escaped = "".join(
        f"\\x{ord(character) - 0xDC00:02x}" if 0xDC80 <= ord(character) <= 0xDCFF else ascii(character)[1:-1]
        for character in text
    )
    return escaped, error.end
