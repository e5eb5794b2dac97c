from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rali_core.cli import main
from rali_core.sheet import BACKGROUND, BAND_COLOURS, BAR_HEIGHT, MARGIN, band_colour, draw_contact_sheet

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


def test_a_bars_colour_is_that_of_the_scores_band() -> None:
    for score, band in ((0.0, 0), (0.19, 0), (0.2, 1), (0.59, 2), (0.6, 3), (0.8, 4), (1.0, 4)):
        assert band_colour(score) == BAND_COLOURS[band]
        sheet = draw_contact_sheet([Image.new("RGB", (80, 80), "white")], [score])
        assert find(sheet, BAND_COLOURS[band])[3] == BAR_HEIGHT
    assert band_colour(0.75, (0.3, 0.5, 0.6, 0.7)) == BAND_COLOURS[4]


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
def test_invalid_requests_are_refused(
    images: int, scores: list[float], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_contact_sheet([Image.new("RGB", (9, 9))] * images, scores, **options)  # type: ignore[arg-type]


def test_the_command_draws_the_images_it_scored(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
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


def test_images_can_stay_in_their_order_and_without_bars() -> None:
    sheet = draw_contact_sheet(plain_images(), [-3.0, 40.0, 12.0], columns=3, cell=120, ranked=False, bars=False)
    red, green, blue = (find(sheet, colour) for colour in COLOURS)
    assert red[0] < green[0] < blue[0]
    plain = Image.new("RGB", (120, 120), BACKGROUND)
    with_bar, without = (np.asarray(draw_contact_sheet([plain], [0.5], cell=120, bars=bars)) for bars in (True, False))
    row = MARGIN + 120 + 8
    assert (with_bar[row] != BACKGROUND).any()
    assert (without[row] == BACKGROUND).all()


def test_small_images_are_enlarged_in_whole_pixels_where_asked() -> None:
    checks = Image.fromarray(np.kron([[200, 0], [0, 200]], np.ones((16, 16))).astype(np.uint8))
    sheet = draw_contact_sheet([checks], [0.5], cell=120, enlarge=True)
    assert find(sheet, (0, 0, 0))[2:] == (96, 96)
    assert {tuple(value) for value in np.asarray(sheet)[MARGIN + 12 : MARGIN + 108, MARGIN + 12 : MARGIN + 108].reshape(-1, 3)} == {
        (0, 0, 0), (200, 200, 200),
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_a_16_bit_grey_image_is_as_bright_as_its_8_bit_copy(mode: str, tiny_file: Path, tmp_path: Path) -> None:
    values = np.full((100, 100), 100 * 257)
    deep = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    assert deep.mode == mode
    assert draw_contact_sheet([deep], [0.5], cell=100).getpixel((MARGIN + 50, MARGIN + 50)) == (100, 100, 100)
    deep.save(tmp_path / "deep.tiff")
    target = tmp_path / "sheet.png"
    assert main(["score", str(tmp_path / "deep.tiff"), "--sheet", str(target), "--model", str(tiny_file)]) == 0
    with Image.open(target) as sheet:
        assert sheet.getpixel((MARGIN + 120, MARGIN + 120)) == (100, 100, 100)


def test_notes_stand_between_score_and_name_and_take_room_only_where_there_are_any() -> None:
    images, scores = [Image.new("RGB", (200, 150), "teal")] * 2, [0.7, 0.3]
    plain = draw_contact_sheet(images, scores, names=["a", "b"])
    assert draw_contact_sheet(images, scores, names=["a", "b"], notes=["", ""]).size == plain.size
    noted = draw_contact_sheet(images, scores, names=["a", "b"], notes=["", "blurred, blocky"])
    assert noted.height > plain.height
    ink = np.asarray(noted.convert("L")) < 100
    assert ink[280:, 264:].sum() > ink[280:, :252].sum() + 100, "the second has a line more"
    with pytest.raises(ValueError, match="expected one score, name and band per image"):
        draw_contact_sheet(images, scores, notes=["one"])
