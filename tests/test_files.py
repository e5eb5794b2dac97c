from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rali_core.exports import place_file
from rali_core.files import append_json_line, atomic_write, copy_file

WRITER = """
import sys
from rali_core.files import append_json_line
for number in range(50):
    append_json_line(sys.argv[1], {"writer": int(sys.argv[2]), "number": number, "filler": "x" * 300})
"""


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(writer)]) for writer in range(3)]
    assert [process.wait(timeout=60) for process in writers] == [0, 0, 0]
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((record["writer"], record["number"]) for record in records) == [
        (writer, number) for writer in range(3) for number in range(50)
    ]


def test_a_torn_line_is_skipped_and_the_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    append_json_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2, "na')
    append_json_line(path, {"a": 3, "name": "größe"})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (json.loads(lines[0]), json.loads(lines[2])) == ({"a": 1}, {"a": 3, "name": "größe"})


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_flushing_and_permissions_takes_the_bytes(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    for name in ("fsync", "chmod", "utime"):  # the last one is part of copystat
        monkeypatch.setattr(os, name, refuse)
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    copy_file(tmp_path / "a.txt", tmp_path / "b.txt")
    append_json_line(tmp_path / "c.jsonl", {"a": 1})
    place_file(tmp_path / "b.txt", tmp_path / "d" / "e.txt", "copy")
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "d" / "e.txt").read_text() == "whole"
    assert (tmp_path / "c.jsonl").read_text() == '{"a": 1}\n'


def test_a_disk_that_cannot_keep_the_bytes_is_an_error_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a.txt").write_text("before")
    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(OSError, match=r"a\.txt cannot be written: Input/output error"),
        atomic_write(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_json_line(tmp_path / "scores.jsonl", {"score": float("nan")})
    assert not (tmp_path / "scores.jsonl").exists()
