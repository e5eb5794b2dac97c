"""A folder's images in natural order, and scores that were saved with images."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rali_core.files import Survey, natural_key
from rali_core.folder import list_folder, score_table, split_patterns
from rali_core.images import ImageError
from rali_core.saved_score import read_saved_score
from rali_core.scorer import ImageScore
from rali_core.sheet import BANNER_POSITIONS, draw_banner


def test_what_pillow_reads_with_a_plugin_counts_or_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jxl").touch()
    message = r"no image in .*; left out 1 file .*: 1 \.jxl \(to read them: pip install pillow-jxl-plugin\)"
    with pytest.raises(FileNotFoundError, match=message):
        list_folder(tmp_path / "images", recursive=True)
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pillow_jxl.py").write_text(
        "from PIL import Image, PngImagePlugin\nImage.register_extension('PNG', '.jxl')\n"
    )
    assert [path.name for path in list_folder(tmp_path / "images")] == ["a.jxl"]


def test_a_plugin_that_is_broken_costs_its_own_format_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pillow_jxl", raising=False)
    (tmp_path / "pillow_jxl.py").write_text("raise ImportError('libjxl.so: cannot open shared object file')")
    assert [path.name for path in list_folder(tmp_path)] == ["a.png"]
    assert "pillow_jxl is installed but cannot be imported: libjxl.so" in caplog.text


def test_a_folder_is_listed_in_natural_order(tmp_path: Path) -> None:
    names = ["a10.png", "a2.png", "A1.jpg", "b/c3.png", "b/c20.png", "b2/x.png", "notes.txt", "._a1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def listed(**options: object) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in list_folder(tmp_path, **options)]  # type: ignore[arg-type]

    assert listed() == ["A1.jpg", "a2.png", "a10.png"]
    assert listed(recursive=True) == ["A1.jpg", "a2.png", "a10.png", "b/c3.png", "b/c20.png", "b2/x.png"]
    assert listed(recursive=True, include=["a*.PNG", "b/*"], exclude=["*20*"]) == ["a2.png", "a10.png", "b/c3.png"]
    assert split_patterns("*.png; a b.jpg,\n c*") == ["*.png", "a b.jpg", "c*"]
    assert sorted(["v1.10", "v1.9", "v1", "V1.9b"], key=natural_key) == ["v1", "v1.9", "V1.9b", "v1.10"]
    (tmp_path / "none").mkdir()
    for options, folder, message in (
        ({}, "none", "there is no image in .*none; folders inside it are searched with recursive"),
        ({"include": ["z*"]}, ".", "include and exclude leave none of the 3 images"),
        ({}, "nothing", "expected a folder, .*there is none|nothing of that name"),
        ({}, "notes.txt", "expected a folder, got a file"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            list_folder(tmp_path / folder, **options)  # type: ignore[arg-type]


def test_a_hundred_thousand_names_are_listed(tmp_path: Path) -> None:
    for number in range(100_000):
        os.close(os.open(tmp_path / f"{number}.png", os.O_CREAT))
    survey = Survey()
    listed = list_folder(tmp_path, survey=survey)
    assert [path.stem for path in listed] == [str(number) for number in range(100_000)]
    assert not survey.unreadable


def test_the_table_has_a_line_for_each_image() -> None:
    results = [ImageScore(0, 0.5, "fair", 40.0), ImageScore(1, float("nan"), "", float("nan"), "damaged, alas")]
    assert score_table(["a.png", 'b "x".png'], results, [0, 1]).splitlines() == [
        "rank,file,score,band,percentile,reason", "1,a.png,0.5000,fair,40.0,", ',"b ""x"".png",,,,"damaged, alas"',
    ]  # fmt: skip


def test_a_saved_score_is_read_from_the_file_or_the_list_beside_it(tmp_path: Path) -> None:
    image = Image.effect_noise((40, 30), 50).convert("RGB")
    info = PngInfo()
    info.add_text("prompt", "{}")
    info.add_text("rali_score", "0.1234")
    image.save(tmp_path / "a.png", pnginfo=info)
    exif = image.getexif()
    exif[0x0110], exif[0x010F], exif[0x010E] = "prompt:{}", "workflow:{}", "rali_score:0.5678"
    for name in ("b.webp", "c.jpg"):
        image.save(tmp_path / name, exif=exif.tobytes())
    image.save(tmp_path / "d.png")
    lines = [
        {"file": "d.png", "rali_score": 0.3},
        {"file": "d.png", "rali_score": 0.4, "rank": 2},
        {"file": "x", "rali_score": 1},
    ]
    text = "\n".join(["{broken", *map(json.dumps, lines), '{"file": "d.png", "rali_score": null}', '"text"'])
    (tmp_path / "rali_scores.jsonl").write_text(text)
    found = {name: read_saved_score(tmp_path / name) for name in ("a.png", "b.webp", "c.jpg", "d.png")}
    assert {name: (saved.score, saved.source) for name, saved in found.items() if saved} == {
        "a.png": (0.1234, "metadata"), "b.webp": (0.5678, "metadata"), "c.jpg": (0.5678, "metadata"),
        "d.png": (0.4, "sidecar"),
    }  # fmt: skip
    image.save(tmp_path / "e.png")
    assert read_saved_score(tmp_path / "e.png") is None
    (tmp_path / "f.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match="not an image"):
        read_saved_score(tmp_path / "f.png")


@pytest.mark.parametrize("position", BANNER_POSITIONS)
def test_a_banner_leaves_the_image_whole_or_stands_over_it(position: str) -> None:
    image = Image.new("RGB", (300, 150), (10, 20, 200))
    drawn = draw_banner(image, "0.250  poor", 0.25, position=position, height=24)
    over = position.startswith("over")
    assert drawn.size == (300, 150 if over else 174)
    top = 0 if position in ("above", "over the top") else drawn.height - 24
    bar = [drawn.getpixel((x, top)) for x in range(300)]
    assert len({*bar[:75]}) == len({*bar[75:]}) == 1
    assert bar[74] != bar[75]
    kept = drawn.crop((0, 24 if top == 0 else 0, 300, drawn.height - (0 if top == 0 else 24)))
    assert kept.getcolors() == [(300 * (126 if over else 150), (10, 20, 200))]
    with pytest.raises(ValueError, match="position must be one of|at least 12"):
        draw_banner(image, "", 0.5, position="left" if over else "below", height=12 if over else 3)
