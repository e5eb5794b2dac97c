from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rali_core.text_files import (
    decode_text,
    find_listed,
    name_to_text,
    parse_number,
    printable,
    read_list,
    read_table,
    text_to_name,
)

posix = pytest.mark.skipif(os.name == "nt", reason="file names there are Unicode")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_and_tables_are_read_in_every_encoding(tmp_path: Path, encoding: str, end: str) -> None:
    names = ["café.jpg", "b c.jpg", "x/ÿ.png"]
    data = end.join(["", names[0], "", *names[1:], "   "]).encode(encoding)
    listed = list(read_list(io.BytesIO(data)))
    if encoding == "cp1252":  # it may be a name of these very bytes: `find_listed` looks which is there
        assert [os.fsencode(name) for name in listed] == [name.encode("cp1252") for name in names]
    else:
        assert listed == names
    (tmp_path / "t.csv").write_bytes(end.join(["image,mos", *(f"{name},0.5" for name in names)]).encode(encoding))
    assert [row["image"] for row in read_table(tmp_path / "t.csv").rows] == names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,mos\na.jpg,0.5\nb.jpg,1\n", [("a.jpg", 0.5), ("b.jpg", 1)]),
        ("Image;MOS\r\na.jpg;0,5\r\n\r\nb.jpg;1,25\r\n", [("a.jpg", 0.5), ("b.jpg", 1.25)]),
        ("sep=;\nimage;mos\na,b.jpg;0,5\n", [("a,b.jpg", 0.5)]),
        ("image\tmos\na.jpg\t0.5\n", [("a.jpg", 0.5)]),
        ('"image","mos"\n"a, b.jpg","0,5"\n', [("a, b.jpg", 0.5)]),
        (' image , mos \n"say ""hi"".jpg", 3\n', [('say "hi".jpg', 3)]),
        ('image;note;mos\na.jpg;"two\nlines";2\n', [("a.jpg", 2)]),
        ("image,mos,,\na.jpg,4,,\n,,,\n", [("a.jpg", 4)]),
    ],
)
def test_tables_of_spreadsheets_are_read_as_intended(tmp_path: Path, text: str, expected: list) -> None:
    (tmp_path / "t.csv").write_text(text, newline="")
    table = read_table(tmp_path / "t.csv")
    assert {"image", "mos"} <= set(table.columns)
    assert [(row["image"], parse_number(row["mos"])) for row in table.rows] == expected


def test_rows_know_their_line_and_short_rows_their_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('sep=;\nimage;mos\n\n"a\nb.jpg";1\nc.jpg\n')
    table = read_table(tmp_path / "t.csv")
    assert table.lines == [4, 6]
    assert table.rows[1] == {"image": "c.jpg", "mos": ""}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\0\0\1", "not a text file"),
        (b"a,A\n1,2", "two columns 'a'"),
        (b"\n \n", "empty"),
    ],
)
def test_a_file_that_is_not_a_table_is_one_clear_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), (" 0,5 ", 0.5), ("1.234,5", 1234.5), ("1,234.5", 1234.5), ("1 234,5", 1234.5), ("-3e-2", -0.03)],
)
def test_numbers_have_points_or_commas(text: str, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", [None, "", "good", "1_0", "0,5x"])
def test_a_field_that_is_not_a_number_is_nan(text: str | None) -> None:
    assert math.isnan(parse_number(text))


@posix
def test_null_bytes_separate_names_of_any_bytes() -> None:
    names = [b"a\nb.jpg", b" \xff.jpg ", b"\xf0\x9f\x98\x80.jpg", b"c\r.jpg"]
    for data in (b"\0".join(names), b"\0".join(names) + b"\0"):
        assert [os.fsencode(name) for name in read_list(io.BytesIO(data))] == names
    assert list(read_list(io.BytesIO(b"one name\n.jpg"), null=True)) == ["one name\n.jpg"]
    assert list(read_list(io.BytesIO(b"a.jpg\rb.jpg\r"))) == ["a.jpg", "b.jpg"]


def test_a_long_list_from_a_pipe_is_read_in_pieces() -> None:
    names = [f"folder/{number:06d}.jpg" for number in range(20_000)]
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", f"print(*(f'folder/{{n:06d}}.jpg' for n in range({len(names)})), sep='\\n')"],
        stdout=write,
    )
    os.close(write)
    with open(read, "rb", buffering=0) as file:
        assert list(read_list(file)) == names
    assert process.wait() == 0


@posix
@pytest.mark.parametrize(
    ("stored", "written"),
    [
        (b"a.jpg", "a.jpg"),
        (b"a.jpg", ' "a.jpg" '),
        (b" a.jpg", " a.jpg"),
        (b'"a".jpg', '"a".jpg'),
        (b"sub/a.jpg", "sub\\a.jpg"),
        ("café.jpg".encode(), "cafe\u0301.jpg"),
        ("cafe\u0301.jpg".encode(), "café.jpg"),
        (b"caf\xe9.jpg", "café.jpg"),
        ("café.jpg".encode(), "caf\udce9.jpg"),
        ("né.jpg".encode(), "n\udc82.jpg"),
        ("мир.jpg".encode(), "\udcec\udce8\udcf0.jpg"),
        (b"\xff.jpg", "ÿ.jpg"),
        (b"12::30.jpg", "12::30.jpg"),
        (b"a b%.jpg", "file://{folder}/a%20b%25.jpg"),
    ],
)
def test_names_in_lists_find_their_files(tmp_path: Path, stored: bytes, written: str) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), stored)))
    path.parent.mkdir(exist_ok=True)
    path.touch()
    found = find_listed(str(tmp_path), written.format(folder=tmp_path))
    assert os.path.samefile(found, path)
    assert find_listed(str(tmp_path), "nowhere.jpg") == str(tmp_path / "nowhere.jpg")


@posix
def test_names_become_text_and_names_again_in_every_locale() -> None:
    code = (
        "import os; from rali_core.text_files import *\n"
        "for raw in (b'a', b'\\xff', '\\xe9\\U0001f600'.encode(), b'\\xe9'):\n"
        "    text = name_to_text(os.fsdecode(raw))\n"
        "    assert text.encode('utf-8', 'surrogateescape') == raw == os.fsencode(text_to_name(text)), raw\n"
        "print(ascii(name_to_text(os.fsdecode('\\xe9'.encode()))))"
    )
    env = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "'\\xe9'"), done.stderr
    assert text_to_name(name_to_text("\udcff")) == "\udcff"


def test_shown_names_stay_on_one_line() -> None:
    assert printable("a b é😀.jpg") == "a b é😀.jpg"
    assert printable("a\n\x1b[31m\udcff\u202e.jpg") == "a\\x0a\\x1b[31m\\xff\\u202e.jpg"


def test_decoding_never_fails() -> None:
    assert decode_text(b"caf\xe9") == "café"
    assert decode_text(bytes(range(256)) * 2).encode("cp1252", "surrogateescape") == bytes(range(256)) * 2
