"""Robust reading of users' text files: lists of images and tables, from any system.

They may be UTF-8 with or without a byte order mark, UTF-16 (PowerShell) or in Windows' code pages, with `;` or tabs
between columns and commas in numbers (spreadsheets), with quotes around names, and with names in another Unicode form.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.request import url2pathname

SNIFFED_BYTES = 65536
"""Bytes of a file that decide its encoding and its separator."""

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Longer marks before their prefixes."""

NAME_ENCODINGS = ("cp1252", "cp850", "mac_roman", "cp1250", "cp1251", "cp1253", "cp932", "gbk", "big5", "euc_kr")
"""Encodings that are tried for names of missing files; the first that names a file wins."""

SPACES = " \t\u00a0\u202f\u2009'"
"""Separators between groups of three digits."""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        columns: Names, without spaces around them, in lower case.
        rows: One record per row: column name to text, without spaces around it; empty for a missing field.
        lines: 1-based line of the file where each row begins.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]


def decode_text(data: bytes) -> str:
    """A text file's bytes as text: by its byte order mark, else UTF-8, else UTF-16 if it looks so, else cp1252.

    Undecodable bytes stay as surrogate escapes, so this never fails. Line ends are kept.
    """
    mark, encoding = _sniff_encoding(data)
    data = data[len(mark) :]
    if encoding == "utf-8":
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data.decode("cp1252", "surrogateescape")
    return data.decode(encoding, "replace")


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a table of texts with a line of column names (CSV).

    Args:
        path: Any of the encodings of `decode_text`; columns are separated by `,`, `;` or tabs, as detected in the first
            line (a line `sep=;` before it is obeyed). Empty lines are left out.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is empty, is not text, or names a column twice.
    """
    data = Path(path).read_bytes()
    text = decode_text(data)
    if "\0" in text:
        raise ValueError(f"{path} is not a text file: expected a table with a line of column names, such as a CSV file")
    skipped = 0
    if declared := re.match(r'"?sep=(.)"?[ ;,\t]*\r?\n', text, re.IGNORECASE):
        text, skipped = text[declared.end() :], 1
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = declared[1] if declared else _sniff_separator(first)
    limit = csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)  # a caption may be long
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        records, begin = [], 1 + skipped
        for fields in reader:
            records.append((begin, [field.strip() for field in fields]))
            begin = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise ValueError(f"{path} is not a readable table: {error}") from error
    finally:
        csv.field_size_limit(limit)
    records = [(line, fields) for line, fields in records if any(fields)]
    if not records:
        raise ValueError(f"{path} is empty; expected a table with a line of column names")
    columns = [name.lower() for name in records[0][1]]
    named = [name for name in columns if name]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise ValueError(f"{path} has two columns {twice!r}")
    rows = [
        {name: fields[index] if index < len(fields) else "" for index, name in enumerate(columns) if name}
        for _, fields in records[1:]
    ]
    return Table(named, rows, [line for line, _ in records[1:]])


def parse_number(text: str | None) -> float:
    """A table's field as a number, also with a decimal comma: `0.5`, `0,5`, `1.234,5`, `1 234,5`; NaN if it is not a
    number.

    A single comma or point is the decimal one: `1,234` is 1.234.
    """
    compact = (text or "").strip().translate({ord(space): None for space in SPACES})
    point, comma = compact.rfind("."), compact.rfind(",")
    if comma > point:
        compact = compact.replace(".", "").replace(",", ".")
    elif point > comma >= 0:
        compact = compact.replace(",", "")
    try:
        return math.nan if "_" in compact else float(compact)
    except ValueError:
        return math.nan


def read_list(file: IO[bytes], *, null: bool = False) -> Iterator[str]:
    """Names in a list: one per line, or separated by null bytes. One line is in memory at a time.

    Args:
        file: Open for reading in binary mode. A list with null bytes in its first 64 KiB is separated by these, because
            no name holds any (`find -print0`, `rali dataset filter -0`).
        null: Names are separated by null bytes in any case.

    Yields:
        Names as they are written, with spaces or quotes around them: `find_listed` resolves them. Empty
        lines are left out. Bytes that are not UTF-8 are surrogate escapes, as in Python's file names.
    """
    start = _read_up_to(file, SNIFFED_BYTES)
    mark, encoding = _sniff_encoding(start)
    if encoding != "utf-8" and not null:
        rejoined: Any = io.BufferedReader(_Rejoined(start[len(mark) :], file))
        text = io.TextIOWrapper(rejoined, encoding, "replace", newline="")
        for line in text:
            if line.strip():
                yield text_to_name(line.rstrip("\r\n"))
        return
    separator = b"\0" if null or b"\0" in start else b"\n"
    if separator == b"\n" and b"\n" not in start and b"\r" in start:
        separator = b"\r"  # old Mac line ends, which spreadsheets there still write
    left = start[len(mark) :]
    while True:
        *whole, left = left.split(separator)
        for raw in whole:
            yield from _name(raw, separator)
        more = file.read(SNIFFED_BYTES)
        if not more:
            break
        left += more
    yield from _name(left, separator)


def find_listed(folder: str, name: str) -> str:
    """The local file that a list or a table means.

    Args:
        folder: Base of relative names.
        name: As it is written: with quotes around it, with backslashes, as a `file://` URL, in the other Unicode form
            (composed or not) or in a Windows code page.

    Returns:
        The path of the first reading that exists; `folder/name` if none does.
    """
    for reading in _readings(name):
        path = os.path.join(folder, reading)
        if os.path.lexists(path):
            return path
    return os.path.join(folder, name)


def name_to_text(name: str) -> str:
    """A file name as text for a UTF-8 file, whatever the locale: bytes that are not UTF-8 stay surrogate escapes."""
    if name.isascii() or os.name == "nt":
        return name
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def text_to_name(text: str) -> str:
    """The inverse of `name_to_text`."""
    if text.isascii() or os.name == "nt":
        return text
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def printable(name: str) -> str:
    r"""A name to show on one line: bytes that are not UTF-8 and control characters become \x escapes."""
    text = name_to_text(name)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in " \u3000\u00a0" else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # one byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _readings(name: str) -> Iterator[str]:
    yield name
    seen = {name}
    plain = name.strip()
    if len(plain) > 2 and plain[0] == plain[-1] and plain[0] in "\"'":
        plain = plain[1:-1]
    if plain.lower().startswith("file://"):
        plain = url2pathname(plain[7:])
    for text in _encodings(plain):
        forms = (text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD") if not text.isascii()))
        for form in forms:
            for reading in (form, form.replace("\\", os.sep)):
                if reading and reading not in seen:
                    seen.add(reading)
                    yield reading


def _encodings(text: str) -> Iterator[str]:
    yield text
    if text.isascii() or os.name == "nt":
        return
    try:  # as a name, which differs where the locale is not UTF-8
        raw = {os.fsencode(text)}
    except UnicodeEncodeError:
        raw = {text.encode("utf-8", "surrogateescape")}
    with contextlib.suppress(UnicodeEncodeError):  # a table was read as cp1252 but holds a name's bytes
        raw.add(text.encode("cp1252", "surrogateescape"))
    yield from map(os.fsdecode, sorted(raw))
    for data in sorted(raw):
        for encoding in NAME_ENCODINGS:
            try:
                yield text_to_name(data.decode(encoding))
            except UnicodeDecodeError:
                continue


def _sniff_encoding(start: bytes) -> tuple[bytes, str]:
    """Byte order mark and encoding; UTF-8 stands for all that contain ASCII."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return mark, encoding
    even, odd = start[0::2], start[1::2]
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if len(start) >= 4 and zeros.count(0) > 0.4 * len(zeros) and not others.count(0):
            return b"", encoding
    return b"", "utf-8"


def _sniff_separator(line: str) -> str:
    outside = re.sub(r'"[^"]*"', "", line)
    return max(",;\t", key=outside.count)  # first of equals: a comma


def _name(raw: bytes, separator: bytes) -> Iterator[str]:
    if separator == b"\n" and raw.endswith(b"\r"):
        raw = raw[:-1]
    if raw.strip() or (raw and separator == b"\0"):
        yield os.fsdecode(raw) if os.name != "nt" else decode_text(raw)


def _read_up_to(file: IO[bytes], size: int) -> bytes:
    """So many bytes, also from a pipe that delivers them in pieces."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class _Rejoined(io.RawIOBase):
    """The part of a stream that was read already, and the rest of it."""

    def __init__(self, start: bytes, rest: IO[bytes]) -> None:
        self._start, self._rest = io.BytesIO(start), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self._start.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
