"""What is shown on the console, whatever it can show: work and exit status never depend on it."""

from __future__ import annotations

import codecs
import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from ..text_files import printable

ESCAPE = "rali-escape"


def set_up_console() -> None:
    """Show what the console's encoding lacks as escapes, and the library's messages on standard error."""
    codecs.register_error(ESCAPE, _escape)
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)  # none where a program put something else there
        if reconfigure is not None:
            with suppress(ValueError, OSError):
                reconfigure(errors=ESCAPE)
    logger = logging.getLogger("rali")
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("rali: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def emit(line: str = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print, as far as there is somebody who reads.

    A reader that went away (`| head`), a full disk behind `>` and a closed console end the printing, never the work.
    """
    stream = file or sys.stdout
    if stream is None:
        return
    try:
        stream.write(line + end)
        stream.flush()
    except BrokenPipeError:
        silence(stream)


def say(line: str) -> None:
    """Print a line on standard error, after the program's name."""
    emit(f"rali: {line}", file=sys.stderr)


def silence(stream: TextIO) -> None:
    """Send all that is still written to a stream whose reader went away to nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def shown(name: object) -> str:
    """A file name for one line of the console."""
    return printable(str(name))


class _StandardError(logging.StreamHandler[TextIO]):
    """Standard error as it is when something is said, not as it was at the start."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):
            emit(self.format(record), file=sys.stderr)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    escaped = "".join(
        f"\\x{ord(character) - 0xDC00:02x}" if 0xDC80 <= ord(character) <= 0xDCFF else ascii(character)[1:-1]
        for character in text
    )
    return escaped, error.end
