"""The description file: what is accepted, what is refused and how, and what a killed writer leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rali_core.describe.records import DescriptionLog, DescriptionRecord, image_name, read_descriptions

GOOD = {"image": "a.png", "description": "sharp"}


def write_lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_written_records_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "d.jsonl"
    log = DescriptionLog(file, source="someone")
    log.write("ä/b c.png", "Scharf, “naturally”.", score=1 / 3, seed=0)
    log.write("ä/b c.png", "Blurred.", score=None, seed=1)
    assert read_descriptions(file) == [
        DescriptionRecord("ä/b c.png", "Scharf, “naturally”.", 0.333333, 0, "someone"),
        DescriptionRecord("ä/b c.png", "Blurred.", None, 1, "someone"),
    ]


def test_score_seed_and_source_may_be_left_out_and_other_keys_be_there(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "d.jsonl", {**GOOD, "model": "x"}, {**GOOD, "seed": 1, "score": 1})
    assert read_descriptions(file) == [
        DescriptionRecord("a.png", "sharp", None, 0),
        DescriptionRecord("a.png", "sharp", 1.0, 1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [("{oops", "line 2: not JSON in UTF-8"), ('["a"]', r"line 2: expected an object \{...\}, got list"),
     ('{"description": "x"}', "line 2: image must be a non-empty string, got None"),
     ('{"image": "b", "description": " "}', "line 2: description must be a non-empty string, got ' '"),
     ('{"image": "b", "description": "x", "score": 3.2}', r"line 2: score must be a number in \[0, 1\] or left out, got 3.2"),
     ('{"image": "b", "description": "x", "score": NaN}', "line 2: score must be a number .* got nan"),
     ('{"image": "b", "description": "x", "score": true}', "line 2: score must be a number .* got True"),
     ('{"image": "b", "description": "x", "seed": -1}', "line 2: seed must be an integer from 0, got -1"),
     ('{"image": "b", "description": "x", "source": 1}', "line 2: source must be a string or left out, got 1"),
     ('{"image": "a.png", "description": "x"}', "line 2: image 'a.png' with seed 0 is already in line 1"),
     ('{"image": "b", "descri', "line 2: not JSON in UTF-8 .*was the program killed while writing")],
)  # fmt: skip
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    file = write_lines(tmp_path / "d.jsonl", GOOD)
    file.write_text(file.read_text() + line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_descriptions(file)


def test_files_that_are_absent_or_empty_are_refused_and_many_problems_are_cut_short(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no description file .*none.jsonl"):
        read_descriptions(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no descriptions"):
        read_descriptions(write_lines(tmp_path / "empty.jsonl"))
    bad = write_lines(tmp_path / "bad.jsonl", *[[]] * 13)
    with pytest.raises(ValueError, match=r"(?s)has 13 unusable .*line 10: .*and 3 more"):
        read_descriptions(bad)


def test_images_are_searched_in_a_given_folder(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "d.jsonl", GOOD)
    with pytest.raises(ValueError, match="line 1: no file .*a.png"):
        read_descriptions(file, root=tmp_path)
    (tmp_path / "a.png").touch()
    assert len(read_descriptions(file, root=tmp_path)) == 1


@pytest.mark.parametrize("half", [b"{", b'{"image"', b'{"image": "b.png", "descr\xc3'])
def test_a_half_line_is_dropped_and_the_whole_ones_are_kept(tmp_path: Path, half: bytes) -> None:
    file = tmp_path / "d.jsonl"
    DescriptionLog(file, source="s").write("a.png", "sharp", score=None, seed=0)
    whole = file.read_bytes()
    file.write_bytes(whole + half)
    log = DescriptionLog(file, source="s")
    assert log.done == {("a.png", 0)}
    assert file.read_bytes() == whole
    log.write("b.png", "blurred", score=None, seed=0)
    assert [record.image for record in read_descriptions(file)] == ["a.png", "b.png"]


def test_a_file_of_another_source_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "d.jsonl", {**GOOD, "source": "measured"})
    before = file.read_bytes()
    with pytest.raises(ValueError, match="cannot resume .*it was written by 'measured', not by 'file x'; choose"):
        DescriptionLog(file, source="file x")
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", ["image,mos\na.png,0.5\n", "image,mos\na.png,0.5", "a letter", '{"seed": 1'])
def test_a_file_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(content)
    with pytest.raises(ValueError, match="cannot resume .*labels.csv: (not JSON|its last line has no end).*; choose"):
        DescriptionLog(labels, source="measured")
    assert labels.read_text() == content


def test_names_are_relative_inside_the_folder_and_absolute_outside(tmp_path: Path) -> None:
    assert image_name(tmp_path / "a" / "b.png", tmp_path) == "a/b.png"
    assert image_name(tmp_path / "b.png", tmp_path / "a") == (tmp_path / "b.png").as_posix()
