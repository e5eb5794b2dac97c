from __future__ import annotations

from pathlib import Path

import pytest

from rali_core.exports import FreeNames, find_sidecars, place_file, remove_moved_sidecars, safe_name, sidecar_path


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("../../x", "_/_/x"),
        ("con", "_con"),
        ("NUL.jpg", "_NUL.jpg"),
        ("a/com1.txt/b", "a/_com1.txt/b"),
        ("console.jpg", "console.jpg"),
        ("a. ", "a__"),
        ("x:y?*.jpg", "x_y__.jpg"),
        ("caf\udce9.jpg", "caf_.jpg"),
        ("", "_"),
        ("/", "_"),
        ("https://host/a b.jpg?x=1", "https_/host/a b.jpg_x=1"),
    ],
)
def test_names_are_made_valid_on_every_system(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_are_cut_and_keep_their_ending() -> None:
    for name in ("x" * 999 + ".jpg", "é" * 300 + ".jpg", "😀" * 300 + ".jpg"):
        safe = safe_name(name)
        assert safe.endswith(".jpg")
        assert len(safe.encode()) <= 200


def test_each_name_is_given_once_on_every_file_system() -> None:
    names = FreeNames(["there.jpg"])
    asked = [
        "a.jpg",
        "A.jpg",
        "a.JPG",
        "a-2.jpg",
        "\u00e9",
        "e\u0301",
        "there.jpg",
        "d",
        "d/x",
        "D/x",
        "d/x/y",
        "e/f",
        "e",
    ]
    given = [names.take(name) for name in asked]
    assert given == [
        "a.jpg", "A-2.jpg", "a-3.JPG", "a-2-2.jpg", "\u00e9", "e\u0301-2", "there-2.jpg",
        "d", "d-2/x", "D-2/x-2", "d-2/x-3/y", "e/f", "e-2",
    ]  # fmt: skip
    by_stem = FreeNames(by_stem=True)
    assert [by_stem.take(name) for name in ("a.jpg", "a.png", "b/a.png")] == ["a.jpg", "a-2.png", "b/a.png"]


def test_ten_thousand_equal_names_are_quick() -> None:
    names = FreeNames()
    assert len({names.take("image.jpg") for _ in range(10_000)}) == 10_000


def test_sidecars_are_found_and_follow_a_new_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.txt", "a.jpg.json", "a.XMP", "a.csv", "ab.txt"):
        (tmp_path / name).touch()
    found = find_sidecars(tmp_path / "a.jpg")
    assert {(path.name, ending) for path, ending in found} == {
        ("a.txt", ".txt"),
        ("a.jpg.json", ".jpg.json"),
        ("a.XMP", ".XMP"),
    }
    assert [sidecar_path(Path("n/b-2.png"), "x/a.jpg", ending).name for ending in (".txt", ".jpg.json")] == [
        "b-2.txt",
        "b-2.png.json",
    ]


def test_a_moved_images_sidecar_stays_while_another_image_has_it(tmp_path: Path) -> None:
    for name in ("a.png", "a.txt", "b.txt", "b.jpg.txt"):
        (tmp_path / name).touch()
    remove_moved_sidecars([tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "b.jpg.txt"])
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.txt"}


def test_a_move_to_another_file_system_copies_and_removes(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    (tmp_path / "a.txt").write_text("a")
    target = other / f"rali-test-{tmp_path.name}" / "b.txt"
    try:
        place_file(tmp_path / "a.txt", target, "move")
        assert target.read_text() == "a"
        assert not (tmp_path / "a.txt").exists()
    finally:
        target.unlink(missing_ok=True)
        target.parent.rmdir()
