from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rali_core.cli import main
from rali_core.dataset import DatasetResult, filter_dataset, summarise, summarise_groups
from rali_core.dataset.export import copy_images, link_images, write_list
from rali_core.dataset.summary import write_summary
from rali_core.exports import safe_name

from .conftest import encode, make_image, read_rows

Score = Callable[..., DatasetResult]


def chosen_ids(folder: Path, **conditions: object) -> list[str]:
    chosen = filter_dataset(folder, **conditions)  # type: ignore[arg-type]
    return [item.id for item in chosen.dataset.items(chosen.positions.tolist())]


def test_conditions_choose_what_sorting_the_rows_chooses(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    out = tmp_path / "out"
    scores = {name: row["score"] for name, row in read_rows(out).items() if row["error"] is None}
    ranked = sorted(scores, key=lambda name: -scores[name])
    assert set(chosen_ids(out, top_k=3)) == set(ranked[:3])
    assert set(chosen_ids(out, top_fraction=0.3)) == set(ranked[:6]), "30 % of 20, the image with an error not counted"
    assert set(chosen_ids(out, top_fraction=0.01)) == {ranked[0]}, "rounded up"
    middle = scores[ranked[9]]
    assert set(chosen_ids(out, min_score=middle)) == set(ranked[:10])
    assert set(chosen_ids(out, min_score=middle, top_fraction=0.9)) == set(ranked[:10])
    assert set(chosen_ids(out, top_k=1, per_group="folder")) == {
        max((name for name in scores if name.startswith("inner/")), key=scores.__getitem__),
        max((name for name in scores if not name.startswith("inner/")), key=scores.__getitem__),
    }
    assert chosen_ids(out, min_score=2.0) == []


def test_a_parquet_column_is_kept_by_its_option_and_by_the_options_old_name(
    parquet_file: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = str(tmp_path / "out"), ["--model", str(tiny_file), "--device", "cpu", "--workers", "1"]
    command = ["dataset", "score", str(parquet_file), out, *options, "--keep-column", "prompt", "--carry", "key"]
    assert main(command) == 0
    kept = {(row["prompt"], row["key"]) for row in read_rows(tmp_path / "out").values()}
    assert len(kept) == 11
    assert ("a dog", "k1") in kept
    assert "--carry is deprecated and goes in the next release; use --keep-column" in capsys.readouterr().err


def test_groups_come_from_a_carried_column(parquet_file: Path, score: Score, tmp_path: Path) -> None:
    score(parquet_file, carry=["prompt"])
    out = tmp_path / "out"
    rows = read_rows(out)
    best = set()
    for prompt in ("a cat", "a dog", None):
        group = {name: row["score"] for name, row in rows.items() if row["prompt"] == prompt}
        best |= set(sorted(group, key=lambda name: -group[name])[: int(np.ceil(0.5 * len(group)))])
    assert set(chosen_ids(out, top_fraction=0.5, per_group="prompt")) == best
    groups = {group.value: group for group in summarise_groups(out, "prompt")}
    assert {name: group.scored for name, group in groups.items()} == {"a cat": 4, "a dog": 4, "None": 3}
    cats = [row["score"] for row in rows.values() if row["prompt"] == "a cat"]
    assert groups["a cat"].mean == pytest.approx(np.mean(cats), abs=1e-6)
    assert groups["a cat"].best == pytest.approx(max(cats), abs=1e-6)


def test_equal_scores_are_taken_in_the_order_of_the_data_set(score: Score, tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    for name in "abcdef":
        (tmp_path / "same" / f"{name}.png").write_bytes(encode(1))
    score(tmp_path / "same", batch_size=1)
    assert chosen_ids(tmp_path / "out", top_k=2) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, "give a condition"),
        ({"top_fraction": 0.0}, "top_fraction must be above 0 and at most 1, got 0.0"),
        ({"top_fraction": 1.5}, "top_fraction must be above 0 and at most 1, got 1.5"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"min_score": 0.5, "per_group": "folder"}, "groups matter for top_fraction and top_k only"),
        ({"top_k": 1, "per_group": "nope"}, "there is no column 'nope'; the columns are id, uri, score"),
    ],
)
def test_invalid_conditions_are_refused(
    photos: Path, score: Score, tmp_path: Path, conditions: dict, message: str
) -> None:
    if "per_group" in conditions:
        score(photos)
    with pytest.raises(ValueError, match=message):
        filter_dataset(tmp_path / "out", **conditions)


def test_an_unfinished_result_is_filtered_only_when_asked(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos, progress=lambda done, total: done < 12)  # noqa: ARG005
    with pytest.raises(ValueError, match="only 2 of 5 shards .* exist"):
        filter_dataset(tmp_path / "out", top_k=1)
    assert filter_dataset(tmp_path / "out", min_score=0.0, incomplete=True).scored == 10
    summary = summarise(tmp_path / "out")
    assert (summary.images, summary.done) == (21, 10)


def test_chosen_files_are_listed_linked_and_copied(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    chosen = filter_dataset(tmp_path / "out", top_k=4)
    items = chosen.dataset.items(chosen.positions.tolist())
    listed = io.BytesIO()
    write_list(chosen, listed)
    assert listed.getvalue().decode().splitlines() == [item.path for item in items]
    for place, folder in ((link_images, tmp_path / "links"), (copy_images, tmp_path / "copies")):
        assert place(chosen, folder) == []
        assert place(chosen, folder) == [], "a second time changes nothing"
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        assert set(found) == {item.id for item in items}
        assert all(found[item.id].read_bytes() == Path(item.path).read_bytes() for item in items)
        assert all(path.is_symlink() == (place is link_images) for path in found.values())
        found[items[0].id].unlink()
        found[items[0].id].write_text("something else")
        with pytest.raises(FileExistsError, match="exists already and is a different file"):
            place(chosen, folder)
    Path(items[1].path).unlink()
    assert copy_images(chosen, tmp_path / "late") == [f"{items[1].path}: the file does not exist any more"]


def test_images_inside_containers_become_files(
    parquet_file: Path, tar_file: Path, score: Score, tmp_path: Path
) -> None:
    score(parquet_file, id_column="key")
    chosen = filter_dataset(tmp_path / "out", top_k=11)
    assert copy_images(chosen, tmp_path / "rows") == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "rows").iterdir()} == {
        f"k{number}.png": encode(number) for number in range(11)
    }
    with pytest.raises(ValueError, match="cannot be linked to: copy them"):
        link_images(chosen, tmp_path / "links")
    score(tar_file, "tars")
    assert copy_images(filter_dataset(tmp_path / "tars", top_k=6), tmp_path / "members") == []
    assert (tmp_path / "members" / "set-000.tar" / "004.jpg").read_bytes() == encode(4, "jpeg")


def test_ids_cannot_write_outside_the_folder(score: Score, tmp_path: Path) -> None:
    assert safe_name("../../etc/passwd") == "_/_/etc/passwd"
    assert safe_name("/etc//x/./y") == "etc/x/y"
    assert safe_name("C:\\x\n") == "C__x_"
    table = pa.table({"image": [encode(1)], "name": ["../../../outside.png"]})
    pq.write_table(table, tmp_path / "evil.parquet")
    score(tmp_path / "evil.parquet", id_column="name")
    copy_images(filter_dataset(tmp_path / "out", top_k=1), tmp_path / "a" / "b")
    assert not (tmp_path.parent / "outside.png").exists()
    assert [path.name for path in (tmp_path / "a" / "b").rglob("*.png")] == ["outside.png"]


def test_the_summary_is_what_the_rows_say(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    rows = read_rows(tmp_path / "out").values()
    values = [row["score"] for row in rows if row["score"] is not None]
    summary = write_summary(tmp_path / "out")
    assert (summary.images, summary.done, summary.scored, summary.errors) == (21, 21, 20, 1)
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.quantiles["0.5"] == pytest.approx(np.median(values))
    assert sum(summary.bands.values()) == sum(summary.histogram) == 20
    assert summary.bands["fair"] == sum(row["band"] == "fair" for row in rows)
    assert len(summary.histogram_edges) == len(summary.histogram) + 1
    assert sum(summary.error_reasons.values()) == 1
    assert "photos" not in next(iter(summary.error_reasons))
    assert json.loads((tmp_path / "out" / "_summary.json").read_text()) == summary.to_dict()
    with Image.open(tmp_path / "out" / "_contact-sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 4 * 240
    with Image.open(tmp_path / "out" / "_histogram.png") as histogram:
        assert histogram.format == "PNG"


def test_a_set_of_nothing_but_errors_has_a_summary(score: Score, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"no image")
    score(tmp_path / "bad")
    summary = write_summary(tmp_path / "out")
    assert (summary.scored, summary.errors, summary.mean) == (0, 3, None)
    assert list(summary.error_reasons.values()) == [3], "equal but for the name: counted together"
    assert not (tmp_path / "out" / "_contact-sheet.png").exists()


def test_cli_filter_and_stats(
    photos: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command = [
        "dataset",
        "score",
        str(photos),
        out,
        "--model",
        str(tiny_file),
        "--shard-size",
        "5",
        "--device",
        "cpu",
    ]
    assert main([*command, "--workers", "1"]) == 0
    printed = capsys.readouterr()
    assert "21 images: 20 scored, 1 with an error" in printed.out
    assert "_contact-sheet.png" in printed.out
    assert main(command) == 0
    assert "21 of 21 images were scored before" in capsys.readouterr().err
    assert main([*command, "--coverage", "tiles"]) == 1
    assert "--coverage: center in the first run, tiles now" in capsys.readouterr().err

    assert main(["dataset", "stats", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scored"] == 20
    assert main(["dataset", "stats", out, "--by", "folder"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]].count("inner") == 1

    assert main(["dataset", "filter", out, "--top-fraction", "0.25"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(os.path.isfile(line) for line in lines)
    assert main(["dataset", "filter", out, "--top-k", "2", "--copy", str(tmp_path / "best")]) == 0
    assert len([path for path in (tmp_path / "best").rglob("*") if path.is_file()]) == 2
    assert main(["dataset", "filter", out, "--top-k", "2", "-0", "--list", str(tmp_path / "list")]) == 0
    assert (tmp_path / "list").read_bytes().count(b"\0") == 2
    assert main(["dataset", "filter", str(tmp_path), "--top-k", "2"]) == 1
    assert "holds no result of `rali dataset score`" in capsys.readouterr().err


def test_a_large_image_is_drawn_small_on_the_sheet(score: Score, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    make_image(1).resize((3000, 1000)).save(tmp_path / "images" / "wide.jpg")
    score(tmp_path / "images")
    write_summary(tmp_path / "out")
    with Image.open(tmp_path / "out" / "_contact-sheet.png") as sheet:
        assert sheet.width < 400


def test_each_chosen_image_gets_a_file_whatever_the_ids(score: Score, tmp_path: Path) -> None:
    names = [
        "a:b",
        "a_b",
        "A_B",
        "a",
        "a/b",
        "nul",
        "x" * 400,
        "x" * 401,
        "..",
        "../a",
        "k.png",
        "K.png",
        "k",
        "é",
        "e\u0301",
        "z. ",
    ]
    table = pa.table({"image": [encode(number) for number in range(len(names))], "key": names})
    pq.write_table(table, tmp_path / "t.parquet")
    score(tmp_path / "t.parquet", id_column="key")
    chosen = filter_dataset(tmp_path / "out", min_score=0.0)
    for _ in range(2):
        assert copy_images(chosen, tmp_path / "copies") == []
        files = [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]
        assert len(files) == len({str(path).casefold() for path in files}) == len(names)
    assert {path.read_bytes() for path in files} == {encode(number) for number in range(len(names))}


def test_files_are_moved_sorted_into_bands_and_take_their_sidecars_along(
    photos: Path, score: Score, tmp_path: Path
) -> None:
    for stem in ("02", "inner/00"):
        (photos / f"{stem}.txt").write_text(stem)
    score(photos)
    rows = {name: row for name, row in read_rows(tmp_path / "out").items() if row["error"] is None}
    out, bands = str(tmp_path / "out"), tmp_path / "bands"
    assert main(["dataset", "filter", out, "--into-bands", str(bands), "--sidecars"]) == 0
    expected = {f"{row['band']}/{name}" for name, row in rows.items()}
    expected |= {f"{rows[name]['band']}/{name.replace('.png', '.txt')}" for name in ("02.png", "inner/00.png")}
    assert {str(path.relative_to(bands)) for path in bands.rglob("*") if path.is_file()} == expected
    limit = str(sorted(row["score"] for row in rows.values())[4] + 1e-6)
    for _ in range(2):
        assert (
            main(["dataset", "filter", out, "--max-score", limit, "--move", str(tmp_path / "moved"), "--sidecars"]) == 0
        )
        images = [path for path in (tmp_path / "moved").rglob("*") if path.suffix in (".png", ".jpg")]
        assert len(images) == 5
    assert not any((photos / path.relative_to(tmp_path / "moved")).exists() for path in images)
    assert len([path for path in photos.rglob("*") if path.suffix in (".png", ".jpg")]) == 16


def test_an_unreadable_thumbnail_is_left_out_of_the_sheet(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    for path in photos.rglob("*.jpg"):
        path.unlink()
    assert write_summary(tmp_path / "out").scored == 20
    assert (tmp_path / "out" / "_contact-sheet.png").exists()
