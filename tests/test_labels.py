from __future__ import annotations

from pathlib import Path

import pytest

from rali_core.labels import LabelledImage, read_labels, split_validation


def test_labels_are_read_with_their_split_and_scale(labels: Path) -> None:
    rows = read_labels(labels)
    assert len(rows) == 96
    assert sum(row.split == "test" for row in rows) == 12
    assert [row.near_duplicate for row in rows].count(True) == 1
    doubled = labels.with_name("doubled.csv")
    doubled.write_text("image,mos\n" + "\n".join(f"{row.path.name},{row.score * 4 + 1}" for row in rows))
    again = read_labels(doubled, score_range=(1, 5))
    assert [row.score for row in again] == pytest.approx([row.score for row in rows])
    assert {row.split for row in again} == {"train"}


def test_contents_and_groups_come_from_the_named_columns(labels: Path) -> None:
    table = labels.with_name("grouped.csv")
    table.write_text("image,mos,prompt,generator\n0.png,0.5,a cat,sd\n1.png,0.6,a dog,xl\n")
    rows = read_labels(table, content_column="prompt", group_column="generator")
    assert [(row.content, row.group) for row in rows] == [("a cat", "sd"), ("a dog", "xl")]
    with pytest.raises(ValueError, match=r"lacks the column\(s\) scene"):
        read_labels(table, content_column="scene")


def test_tables_of_spreadsheets_are_read_correctly(labels: Path) -> None:
    table = labels.with_name("excel.csv")
    table.write_bytes("Image;MOS;Split\r\n0.png;0,5;train\r\n1.png;0,75;test\r\n".encode("utf-16"))
    rows = read_labels(table)
    assert [(row.path.name, row.score, row.split) for row in rows] == [("0.png", 0.5, "train"), ("1.png", 0.75, "test")]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("image,mos\n0.png,0.5\n1.png,many\n", ValueError, r"line 3: mos 'many' is not a number in \[0, 1\]"),
        ("image,mos\n0.png,0.5\n1.png,1.5\n", ValueError, "line 3: mos '1.5'"),
        ("image,mos\ngone.png,0.5\n", FileNotFoundError, "line 2: no file"),
        ("photo,mos\n0.png,0.5\n", ValueError, r"lacks the column\(s\) image"),
        ("image,mos\n", ValueError, "has no rows"),
    ],
)
def test_unusable_tables_are_refused(labels: Path, text: str, error: type[Exception], message: str) -> None:
    bad = labels.with_name("bad.csv")
    bad.write_text(text)
    with pytest.raises(error, match=message):
        read_labels(bad)


def test_all_unusable_rows_are_listed(labels: Path) -> None:
    bad = labels.with_name("bad.csv")
    bad.write_text("image,mos\n0.png,0.5\n1.png,many\n2.png,1.5\ngone.png,0.5\n")
    with pytest.raises(ValueError, match=r"3 unusable row\(s\)"):
        read_labels(bad)
    with pytest.raises(ValueError, match="worst < best"):
        read_labels(labels, score_range=(1, 1))


def test_validation_is_a_seeded_part_of_the_training_rows_only(labels: Path) -> None:
    rows = read_labels(labels)
    training, validation = split_validation(rows, fraction=0.25, seed=3)
    assert (len(training), len(validation)) == (63, 21)
    assert {row.path for row in training}.isdisjoint(row.path for row in validation)
    assert all(row.split == "train" for row in training + validation)
    assert split_validation(rows, fraction=0.25, seed=3)[1] == validation
    assert split_validation(rows, fraction=0.25, seed=4)[1] != validation
    assert split_validation(rows, fraction=0)[1] == []
    with pytest.raises(ValueError, match="got 0 images with 0"):
        split_validation([row for row in rows if row.split == "test"])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got 1"):
        split_validation(rows, fraction=1)


def test_images_of_one_content_are_never_on_both_sides() -> None:
    rows = [LabelledImage(Path(f"{n}.png"), 0.5, "train", False, content=f"prompt {n % 7}") for n in range(70)]
    training, validation = split_validation(rows, fraction=0.3, seed=1)
    assert {row.content for row in training}.isdisjoint(row.content for row in validation)
    assert len(validation) == 20, "two of the seven prompts"
