from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rali_core.cli import main
from rali_core.sheet import BACKGROUND, MARGIN, draw_contact_sheet

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def plain_images() -> list[Image.Image]:
    return [
        Image.new("RGB", size, colour) for size, colour in zip([(300, 100), (80, 80), (100, 300)], COLOURS, strict=True)
    ]


def find(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the area of that colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    return columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1


def test_images_stand_best_first_uncropped_and_never_enlarged() -> None:
    sheet = draw_contact_sheet(plain_images(), [0.2, 0.9, 0.5], columns=3, cell=120)
    red, green, blue = (find(sheet, colour) for colour in COLOURS)
    assert green[0] < blue[0] < red[0]
    assert red[2:] == (120, 40)
    assert green[2:] == (80, 80)
    assert blue[2:] == (40, 120)


def test_the_bar_is_as_long_as_the_score() -> None:
    for score in (0.25, 0.75):
        sheet = np.asarray(draw_contact_sheet([Image.new("RGB", (100, 100), BACKGROUND)], [score], cell=200))
        bar = sheet[MARGIN + 200 + 8, MARGIN : MARGIN + 200]
        assert (bar == bar[0]).all(axis=-1).sum() == round(score * 200)


def test_an_image_without_a_score_is_left_out() -> None:
    sheet = draw_contact_sheet(plain_images(), [0.2, float("nan"), 0.5], cell=100)
    assert not (np.asarray(sheet) == COLOURS[1]).all(axis=-1).any()


@pytest.mark.parametrize(
    ("images", "scores", "options", "message"),
    [
        (2, [0.1], {}, "got 2 images, 1 scores"),
        (1, [float("nan")], {}, "no scored image to draw"),
        (0, [], {}, "no scored image to draw"),
        (1, [0.5], {"cell": 10}, "cells of at least 80 pixels"),
        (1, [0.5], {"columns": 0}, "at least one column"),
        (1, [0.5], {"names": ["a", "b"]}, "one score, name and band per image"),
    ],
)
def test_senseless_requests_are_refused(
    images: int, scores: list[float], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_contact_sheet([Image.new("RGB", (9, 9))] * images, scores, **options)  # type: ignore[arg-type]


def test_the_command_draws_the_images_it_scored(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip(("a.png", "b.png", "c.png"), plain_images(), strict=True):
        image.save(folder / name)
    (folder / "d.png").write_bytes(b"broken")
    target = tmp_path / "sheet.png"
    assert main(["score", str(folder), "--sheet", str(target), "--model", str(tiny_file)]) == 1
    assert f"wrote {target}" in capsys.readouterr().err
    with Image.open(target) as sheet:
        for colour in COLOURS:
            assert find(sheet.convert("RGB"), colour)[2] >= 80
    assert main(["score", str(folder), "--min-score", "2", "--sheet", str(target), "--model", str(tiny_file)]) == 1
    assert "no image reaches" in capsys.readouterr().err
