from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rali_core.dataset import DatasetResult
from rali_core.dataset.sources import open_source
from rali_core.dataset.storage import expand_braces, relative
from rali_core.scorer import RaliScorer

from .conftest import encode, make_image, read_rows

Score = Callable[..., DatasetResult]


def ids(source: Path | str, **options: str) -> list[str]:
    return [item.id for item in open_source(str(source), **options).items]  # type: ignore[arg-type]


def test_a_folder_is_searched_deeply_and_only_for_images(photos: Path) -> None:
    found = ids(photos)
    assert len(found) == 21
    assert {"broken.png", "01.jpg", "inner/00.png"} < set(found)
    assert found == ids(photos), "the order is the same each time"


def test_a_result_inside_the_folder_is_not_part_of_it(photos: Path) -> None:
    before = ids(photos)
    (photos / "scored" / "_rali").mkdir(parents=True)
    (photos / "scored" / "_rali" / "manifest.json").touch()
    shutil.copy(photos / "01.jpg", photos / "scored" / "_contact-sheet.jpg")
    assert ids(photos) == before


def test_globs_and_braces_choose_files(photos: Path) -> None:
    assert ids(photos / "*.jpg") == sorted(path.name for path in photos.glob("*.jpg"))
    assert ids(f"{photos}/**/*.png", kind="files") == sorted(
        str(path.relative_to(photos)) for path in photos.rglob("*.png")
    )
    assert ids(photos / "{01,02}.*g") == ["01.jpg", "02.png"]
    assert expand_braces("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_a_list_has_a_path_per_line_relative_to_its_folder(photos: Path, score: Score, tmp_path: Path) -> None:
    lines = ["photos/02.png", "", str(photos / "01.jpg"), "photos/gone.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    score(tmp_path / "list.txt")
    rows = read_rows(tmp_path / "out")
    assert list(rows) == [line for line in lines if line]
    assert rows["photos/gone.png"]["error"] == f"no such file: {photos / 'gone.png'}"
    assert rows["photos/02.png"]["uri"] == str(photos / "02.png")


def test_an_image_that_is_named_twice_is_an_error(score: Score, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("photos/02.png\nphotos/01.jpg\nphotos/02.png\n")
    with pytest.raises(
        ValueError, match=r"each image must be named once, and 1 names occur more often: photos/02\.png"
    ):
        score(tmp_path / "list.txt")
    assert not list((tmp_path / "out").glob("part-*"))


def test_the_bytes_of_a_parquet_column_score_as_the_files_do(
    parquet_file: Path, score: Score, tmp_path: Path, tiny_file: Path
) -> None:
    score(parquet_file, carry=["prompt"], shard_size=3)
    rows = read_rows(tmp_path / "out")
    assert list(rows) == [f"images.parquet#{number}" for number in range(11)]
    expected = RaliScorer.from_pretrained(tiny_file, device="cpu").score([make_image(n) for n in range(11)]).scores
    assert [row["score"] for row in rows.values()] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [row["prompt"] for row in rows.values()][:4] == ["a cat", "a dog", None, "a cat"]
    assert rows["images.parquet#3"]["uri"] == f"{parquet_file}#3"


def test_ids_may_come_from_a_column_and_must_be_unique(parquet_file: Path, score: Score, tmp_path: Path) -> None:
    score(parquet_file, id_column="key")
    assert set(read_rows(tmp_path / "out")) == {f"k{number}" for number in range(11)}
    with pytest.raises(ValueError, match="3 names occur more often: a cat, a dog, None"):
        score(parquet_file, "other", id_column="prompt")


def test_hugging_faces_struct_holds_bytes_or_a_path(score: Score, tmp_path: Path) -> None:
    make_image(7).save(tmp_path / "seven.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"bytes": encode(7), "path": "x.png"}, {"bytes": None, "path": "seven.png"}, None]
    pq.write_table(pa.table({"image": pa.array(values, kind)}), tmp_path / "hf.parquet")
    score(tmp_path / "hf.parquet")
    first, second, third = read_rows(tmp_path / "out").values()
    assert first["score"] == second["score"] is not None
    assert third["error"].endswith("hf.parquet#2: the image column is empty here")


def test_a_column_of_paths_is_relative_to_its_file(photos: Path, score: Score, tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": ["photos/01.jpg", None, "photos/02.png"]}), tmp_path / "paths.parquet")
    score(tmp_path / "paths.parquet")
    rows = list(read_rows(tmp_path / "out").values())
    assert [row["error"] for row in rows] == [None, "the image column is empty here", None]
    assert rows[2]["uri"] == str(photos / "02.png")


def test_a_parquet_file_without_a_known_column_says_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": ["x"], "photo": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="none of the columns label, photo has a known name"):
        open_source(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match="there is no column 'nope'; the columns are label, photo"):
        open_source(str(tmp_path / "a.parquet"), image_column="nope")
    pq.write_table(pa.table({"image": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="column 'image' is int64; expected binary"):
        open_source(str(tmp_path / "b.parquet"))


def test_a_folder_of_parquet_files_with_a_damaged_one_costs_a_row(
    parquet_file: Path, score: Score, tmp_path: Path
) -> None:
    (parquet_file.parent / "z.parquet").write_bytes(b"PAR1 and then nothing")
    score(parquet_file.parent)
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 12
    assert "not a usable Parquet file" in rows["z.parquet"]["error"]


def test_images_inside_tars_score_as_the_files_do(
    tar_file: Path, score: Score, tmp_path: Path, tiny_file: Path
) -> None:
    score(tar_file.parent / "set-{000..000}.tar")
    rows = read_rows(tmp_path / "out")
    assert list(rows) == [f"set-000.tar/{number:03d}.jpg" for number in range(6)]
    images = [Image.open(io.BytesIO(encode(number, "jpeg"))) for number in range(6)]
    expected = RaliScorer.from_pretrained(tiny_file, device="cpu").score(images).scores
    assert [row["score"] for row in rows.values()] == pytest.approx(expected.tolist(), abs=1e-6)
    assert rows["set-000.tar/002.jpg"]["uri"] == f"{tar_file}#002.jpg"


def test_a_tar_that_is_cut_off_costs_what_is_missing(tar_file: Path, score: Score, tmp_path: Path) -> None:
    with tarfile.open(tar_file) as tar:
        cut = tar.getmember("004.jpg").offset_data + 10
    tar_file.write_bytes(tar_file.read_bytes()[:cut])
    score(tar_file.parent)
    rows = read_rows(tmp_path / "out")
    assert [name for name, row in rows.items() if row["error"] is None] == [
        f"set-000.tar/{n:03d}.jpg" for n in range(4)
    ]
    assert "not a complete, uncompressed tar" in rows["set-000.tar"]["error"]
    assert "expected" in rows["set-000.tar/004.jpg"]["error"]


def test_urls_are_read_through_fsspec(photos: Path, score: Score, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(photos.rglob("*.jpg")):
            archive.write(path, f"deep/{path.relative_to(photos)}")
    score(f"zip://deep::{tmp_path / 'all.zip'}")
    score(photos / "**/*.jpg", "local", kind="files")
    remote, local = read_rows(tmp_path / "out"), read_rows(tmp_path / "local")
    assert {name: row["score"] for name, row in remote.items()} == {name: row["score"] for name, row in local.items()}
    assert remote["01.jpg"]["uri"] == f"zip://deep/01.jpg::{tmp_path / 'all.zip'}"


def test_relative_names_of_urls() -> None:
    assert relative("s3://bucket/set/a/b.jpg", "s3://bucket/set") == "a/b.jpg"
    assert relative("s3://bucket/settle/b.jpg", "s3://bucket/set") == "s3://bucket/settle/b.jpg"
    assert relative("zip://a/b.jpg::x.zip", "zip://::x.zip") == "a/b.jpg"


@pytest.mark.skipif(os.name == "nt", reason="file names there are Unicode")
def test_names_that_are_not_utf_8_are_scored_too(score: Score, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / os.fsdecode(b"caf\xe9\n.png")).write_bytes(encode(1))
    score(tmp_path / "odd")
    assert list(read_rows(tmp_path / "out")) == ["caf\\xe9\n.png"]
    assert next(iter(read_rows(tmp_path / "out").values()))["error"] is None


def test_an_ambiguous_source_is_refused(tmp_path: Path, parquet_file: Path, tar_file: Path, photos: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder: /nonexistent"):
        open_source("/nonexistent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images, Parquet files or tars in"):
        open_source(str(tmp_path / "empty"))
    shutil.copy(parquet_file, tar_file.parent)
    with pytest.raises(ValueError, match="holds parquet and webdataset files: say which with --kind"):
        open_source(str(tar_file.parent))
    assert len(ids(tar_file.parent, kind="webdataset")) == 6
    with pytest.raises(ValueError, match="--keep-column belong to Parquet sources"):
        open_source(str(photos), id_column="key")
    with pytest.raises(ValueError, match="kind must be one of files, list, parquet, webdataset, got 'csv'"):
        open_source(str(photos), kind="csv")  # type: ignore[arg-type]


def parquet_columns() -> dict[str, pa.Array]:
    """Three images and their paths, in all the types that today's writers use."""
    images, paths = [encode(number) for number in range(3)], [f"{number}.png" for number in range(3)]
    record = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    deep = pa.struct([("meta", pa.struct([("w", pa.int32())])), ("image", record)])
    both = [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)]
    return {
        "binary view": pa.array(images, pa.binary_view()),
        "large binary": pa.array(images, pa.large_binary()),
        "dictionary of binary": pa.array(images, pa.binary()).dictionary_encode(),
        "string": pa.array(paths),
        "string view": pa.array(paths, pa.string_view()),
        "dictionary of string": pa.array(paths).dictionary_encode(),
        "struct": pa.array(both, record),
        "struct of views": pa.array(both, pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])),
        "struct of a path": pa.array([{"path": path} for path in paths]),
        "nested struct": pa.array([{"meta": {"w": 1}, "image": one} for one in both], deep),
    }


@pytest.mark.parametrize("kind", parquet_columns())
def test_parquet_columns_of_todays_writers_are_read(kind: str, score: Score, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(number))
    captions = pa.array(["a", "b", "a"]).dictionary_encode()
    names = pa.array(["x", "y", "z"], pa.string_view())
    pq.write_table(
        pa.table({"image": parquet_columns()[kind], "key": names, "caption": captions}), tmp_path / "t.parquet"
    )
    score(tmp_path / "t.parquet", id_column="key", carry=["caption"])
    score(tmp_path / "[0-9].png", "files")
    rows, expected = read_rows(tmp_path / "out"), read_rows(tmp_path / "files")
    assert [row["error"] for row in rows.values()] == [None] * 3
    assert [row["score"] for row in rows.values()] == [row["score"] for row in expected.values()]
    assert [(name, row["caption"]) for name, row in rows.items()] == [("x", "a"), ("y", "b"), ("z", "a")]


@pytest.mark.parametrize("form", ["bytes", "both", "paths"])
def test_lists_of_images_are_an_image_each(form: str, score: Score, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(number))
    record = pa.struct([("bytes", pa.binary()), ("path", pa.string())] if form == "both" else [("bytes", pa.binary())])
    one = {
        "bytes": lambda n: {"bytes": encode(n)},
        "both": lambda n: {"bytes": encode(n), "path": f"{n}.png"},
        "paths": lambda n: f"{n}.png",
    }[form]
    values = [[one(0), one(1)], [], None, [one(2)]]
    column = pa.array(values, pa.list_(pa.string() if form == "paths" else record))
    pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet", row_group_size=2)
    score(tmp_path / "t.parquet")
    score(tmp_path / "[0-9].png", "files")
    rows = read_rows(tmp_path / "out")
    assert list(rows) == ["t.parquet#0.0", "t.parquet#0.1", "t.parquet#1", "t.parquet#2", "t.parquet#3.0"]
    good = [row["score"] for row in rows.values() if row["error"] is None]
    assert good == pytest.approx([row["score"] for row in read_rows(tmp_path / "files").values()], abs=1e-6)
    assert all("the image column is empty here" in rows[f"t.parquet#{row}"]["error"] for row in (1, 2))


def test_a_field_of_a_struct_can_be_named(score: Score, tmp_path: Path) -> None:
    values = [{"left": {"bytes": encode(1)}, "right": {"bytes": encode(2)}}]
    pq.write_table(pa.table({"pair": values}), tmp_path / "t.parquet")
    score(tmp_path / "t.parquet", image_column="pair.right")
    (tmp_path / "2.png").write_bytes(encode(2))
    score(tmp_path / "2.png", "file")
    assert read_rows(tmp_path / "out")["t.parquet#0"]["score"] == read_rows(tmp_path / "file")["2.png"]["score"]
    with pytest.raises(ValueError, match="there is no column 'pair.middle': 'pair' is struct"):
        open_source(str(tmp_path / "t.parquet"), image_column="pair.middle")


def test_string_types_may_differ_between_files(score: Score, tmp_path: Path) -> None:
    for name, kind in (("a", pa.binary()), ("b", pa.large_binary()), ("c", pa.binary_view())):
        pq.write_table(pa.table({"image": pa.array([encode(1)], kind)}), tmp_path / f"{name}.parquet")
    score(tmp_path / "*.parquet")
    assert [row["error"] for row in read_rows(tmp_path / "out").values()] == [None] * 3


def test_a_tar_that_holds_a_name_twice_has_a_row_for_each(score: Score, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, number in (
            ("a.png", 1),
            ("a.png", 2),
            ("b.png", 3),
            ("a.png", 4),
            ("__MACOSX/._a.png", 5),
            ("._b.png", 6),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(encode(number))
            tar.addfile(member, io.BytesIO(encode(number)))
    score(tmp_path / "t.tar")
    rows = read_rows(tmp_path / "out")
    assert list(rows) == ["t.tar/a.png", "t.tar/a.png#2", "t.tar/b.png", "t.tar/a.png#3"]
    assert len({row["score"] for row in rows.values()}) == 4


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be there")
def test_an_existing_file_is_local_whatever_its_name(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a::b"
    (folder / "s3:" / "bucket").mkdir(parents=True)
    names = ["12::30.jpg", "zip:::x.png", "a b?.png", "{1,2}.png", "[x].png", "s3:/bucket/y.png"]
    for name in names:
        (folder / name).write_bytes(encode(1))
    score(folder)
    assert {row["error"] for row in read_rows(tmp_path / "out").values()} == {None}
    assert set(read_rows(tmp_path / "out")) == set(names)
    monkeypatch.chdir(folder)
    for number, name in enumerate([*names, "s3://bucket/y.png"]):
        score(name, f"one-{number}")
        assert [row["error"] for row in read_rows(tmp_path / f"one-{number}").values()] == [None]
    (folder / "list.txt").write_text("\n".join(names))
    score(folder / "list.txt", "listed")
    assert {row["error"] for row in read_rows(tmp_path / "listed").values()} == {None}


def test_companions_of_macos_are_left_out(photos: Path) -> None:
    before = ids(photos)
    (photos / "__MACOSX" / "inner").mkdir(parents=True)
    for name in ("._01.jpg", "inner/._00.png", "__MACOSX/inner/._00.png"):
        (photos / name).write_bytes(b"\0\5\x16\7" * 20)
    assert ids(photos) == before


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_lists_of_other_systems_are_sources(encoding: str, score: Score, tmp_path: Path) -> None:
    (tmp_path / "café").mkdir()
    (tmp_path / "café" / "a b.png").write_bytes(encode(1))
    (tmp_path / "list.txt").write_bytes('"café\\a b.png"\r\n'.encode(encoding))
    score(tmp_path / "list.txt")
    assert [row["error"] for row in read_rows(tmp_path / "out").values()] == [None]
