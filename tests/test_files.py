from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rali_core.files import append_json_line

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


def test_a_torn_line_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    append_json_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2, "na')
    append_json_line(path, {"a": 3, "name": "größe"})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (json.loads(lines[0]), json.loads(lines[2])) == ({"a": 1}, {"a": 3, "name": "größe"})


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_json_line(tmp_path / "scores.jsonl", {"score": float("nan")})
    assert not (tmp_path / "scores.jsonl").exists()
