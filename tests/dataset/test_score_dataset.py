from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from PIL import Image

from rali_core.checkpoint import ModelInfo, save_model
from rali_core.dataset import DatasetResult
from rali_core.files import hash_file
from rali_core.model import RaliModel
from rali_core.scorer import RaliScorer

from .conftest import approximately, read_rows

Score = Callable[..., DatasetResult]


def test_each_image_has_one_row_with_the_librarys_score(
    photos: Path, score: Score, tmp_path: Path, tiny_file: Path
) -> None:
    result = score(photos, workers=2)
    assert (result.images, result.done, result.scored_now, result.errors_now) == (21, 21, 21, 1)
    assert not result.stopped
    rows = read_rows(tmp_path / "out")
    expected = RaliScorer.from_pretrained(tiny_file, device="cpu").score(
        [row["uri"] for row in rows.values()], on_error="record"
    )
    for (name, row), value, band, percentile, error in zip(
        rows.items(), expected.scores, expected.bands, expected.percentiles, expected.errors, strict=True
    ):
        if name == "broken.png":
            assert row["error"] == error
            assert (row["score"], row["band"], row["percentile"], row["width"]) == (None, None, None, None)
            continue
        assert row["score"] == pytest.approx(value, abs=1e-6)
        assert (row["band"], row["error"]) == (band, None)
        assert row["percentile"] == pytest.approx(percentile, abs=1e-3)
        assert row["model_hash"] == hash_file(tiny_file)
    one = rows["inner/00.png"]
    with Image.open(one["uri"]) as image:
        assert (one["width"], one["height"]) == image.size


def test_the_schema_is_the_stated_one_and_the_folder_reads_as_a_table(
    photos: Path, score: Score, tmp_path: Path
) -> None:
    score(photos)
    table = pq.read_table(tmp_path / "out")  # a whole folder: what is no shard there must not disturb it
    assert table.num_rows == 21
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("id", "string"), ("uri", "string"), ("score", "float"), ("band", "string"), ("percentile", "float"),
        ("width", "int32"), ("height", "int32"), ("error", "string"), ("reason", "string"), ("model_hash", "string"),
        ("scored_at", "timestamp[us, tz=UTC]"),
    ]  # fmt: skip
    assert [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out").glob("*.parquet"))] == [5, 5, 5, 5, 1]


def test_a_stopped_run_resumes_to_the_result_of_an_uninterrupted_one(
    photos: Path, score: Score, tmp_path: Path
) -> None:
    seen: list[int] = []

    def stop_after_twelve(done: int, total: int | None) -> bool:
        assert total == 21
        seen.append(done)
        return done < 12

    first = score(photos, progress=stop_after_twelve)
    assert first.stopped
    assert first.done == 10, "two whole shards of five"
    assert first.done == first.scored_now
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert len(stamps) == 2
    second = score(photos, progress=lambda done, total: seen.append(done))  # noqa: ARG005
    assert (second.done, second.scored_now, second.stopped) == (21, 11, False)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "what was there is not made again"
    score(photos, "other")
    assert read_rows(tmp_path / "out") == approximately(read_rows(tmp_path / "other"))
    third = score(photos)
    assert (third.done, third.scored_now) == (21, 0)


def test_images_that_are_added_later_are_not_part_of_a_started_run(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos, progress=lambda done, total: False)  # noqa: ARG005
    (photos / "00-new.png").write_bytes((photos / "02.png").read_bytes())
    assert score(photos).images == 21
    assert "00-new.png" not in read_rows(tmp_path / "out")


def test_other_options_are_an_error_that_says_which(
    photos: Path, score: Score, tmp_path: Path, tiny_model: RaliModel
) -> None:
    score(photos)
    other = tmp_path / "other.safetensors"
    tiny_model.head.scores.data.mul_(0.5)
    save_model(other, tiny_model, ModelInfo("tiny", "Apache-2.0"))
    with pytest.raises(ValueError, match=r"--model: tiny \(.{12}\) in the first run, tiny \(.{12}\) now\nUse"):
        score(photos, model=other)
    with pytest.raises(ValueError, match="--coverage: center in the first run, tiles now\n  --shard-size: 5 .* 6 now"):
        score(photos, coverage="tiles", shard_size=6)
    with pytest.raises(ValueError, match="SOURCE: .*photos in the first run, .*inner now"):
        score(photos / "inner")
    assert score(photos, batch_size=2, workers=2).scored_now == 0, "these do not change the scores"


def test_a_domain_is_told_and_kept(photos: Path, score: Score, tmp_path: Path, telling_file: Path) -> None:
    score(photos, model=telling_file, domain="generated")
    told = RaliScorer.from_pretrained(telling_file, device="cpu", domain="generated images")
    row = read_rows(tmp_path / "out")["02.png"]
    assert row["score"] == pytest.approx(told.score(photos / "02.png").scores[0], abs=1e-6)
    assert score(photos, model=telling_file, domain="generated images").scored_now == 0
    with pytest.raises(ValueError, match="--domain: generated images in the first run, None now"):
        score(photos, model=telling_file)
    with pytest.raises(ValueError, match="unknown domain 'drawings'"):
        score(photos, "other", model=telling_file, domain="drawings")
    assert not list((tmp_path / "other").glob("*")), "refused before anything is listed"


def test_a_damaged_shard_is_scored_again_and_a_foreign_one_is_kept(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    before = read_rows(tmp_path / "out")
    part = tmp_path / "out" / "part-000002.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    result = score(photos)
    assert result.scored_now == 5
    assert "part-000002.parquet: not a readable Parquet file" in result.repaired[0]
    assert read_rows(tmp_path / "out") == before
    score(photos, "other")
    part.write_bytes((tmp_path / "other" / part.name).read_bytes())
    with pytest.raises(ValueError, match="part-000002.parquet belongs to another result"):
        score(photos)
    part.unlink()
    (tmp_path / "out" / "part-000777.parquet").touch()
    with pytest.raises(ValueError, match="holds Parquet files that are not of this result, such as part-000777"):
        score(photos)


def test_two_runs_at_a_time_do_not_mix(photos: Path, score: Score, tmp_path: Path) -> None:
    (tmp_path / "out" / "_rali").mkdir(parents=True)
    with FileLock(tmp_path / "out" / "_rali" / "lock"), pytest.raises(OSError, match="another run is writing to"):
        score(photos)


def test_leftovers_of_a_killed_run_are_removed(photos: Path, score: Score, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".writing-abc.parquet").write_bytes(b"half a shard")
    score(photos)
    assert sorted(path.name for path in (tmp_path / "out").glob(".*")) == []


def test_a_manifest_of_a_later_version_is_refused(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    path = tmp_path / "out" / "_rali" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(ValueError, match="cannot be used: format 2; this version reads 1"):
        score(photos)


def test_a_decoder_that_dies_costs_one_row(
    photos: Path, score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for name, fault in {
        "03-segfault": "SIGSEGV", "07-killed": "SIGKILL", "08-memory": "memory", "12-once": f"once {tmp_path / 'marker'}"
    }.items():  # fmt: skip
        (photos / f"{name}.png").write_text(f"CRASH {fault}")
    result = score(photos, workers=2, plugins=["crashing_format"])
    rows = read_rows(tmp_path / "out")
    assert (result.done, result.errors_now) == (25, 5)
    assert "ended with signal 11 (SIGSEGV), 2 times" in rows["03-segfault.png"]["error"]
    assert "ended with signal 9 (SIGKILL), 2 times" in rows["07-killed.png"]["error"]
    assert "not enough memory" in rows["08-memory.png"]["error"]
    assert "not an image that Pillow can read" in rows["12-once.png"]["error"], "the second try went through"
    score(photos / "**/[0-9][0-9].*", "other", kind="files")
    good = {name: row["score"] for name, row in rows.items() if row["error"] is None}
    assert good == pytest.approx({name: row["score"] for name, row in read_rows(tmp_path / "other").items()}, abs=1e-6)


def test_an_image_that_exceeds_the_timeout_is_given_up(
    photos: Path, score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (photos / "05-hang.png").write_text("CRASH hang")
    score(photos, plugins=["crashing_format"], timeout=10)
    rows = read_rows(tmp_path / "out")
    assert rows["05-hang.png"]["error"] == f"{photos / '05-hang.png'}: not decoded within 10 seconds"
    assert sum(row["error"] is None for row in rows.values()) == 20


def test_a_plugins_format_counts_in_folders_and_what_is_left_out_is_told_in_one_line(
    photos: Path, score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rali")
    (tmp_path / "new_format.py").write_text(
        "from PIL import Image, PngImagePlugin\nImage.register_extension('PNG', '.newpng')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    count = score(photos).done
    first = next(path for path in sorted(photos.iterdir()) if path.suffix == ".png")
    for name in ("z.newpng", "z.heic", "z.txt", ".hidden.xcf"):
        (photos / name).write_bytes(first.read_bytes())
    assert score(photos, "without").done == count
    (line,) = (message for message in caplog.messages if "left out" in message)
    assert line.startswith("left out 4 files that are no images by their names: "), "with one that was there before"
    assert "1 .newpng" in line
    assert "1 .heic" in line
    assert line.endswith(" (to read them: pip install pillow-heif)")
    caplog.clear()
    score(photos, "without")
    assert line in caplog.messages, "told again when a finished result looks for new images"
    assert score(photos, "with", plugins=["new_format"]).done == count + 1


def test_a_plugin_that_is_not_there_ends_the_run_with_its_name(photos: Path, score: Score) -> None:
    with pytest.raises(ValueError, match="the plugin no_such_format cannot be imported: No module named"):
        score(photos, plugins=["no_such_format"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "engine must be local or ray, got 'spark'"),
        ({"shard_size": 0}, "must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 1, got -1"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"actors": 2}, "these options belong to the engine ray: actors"),
    ],
)
def test_options_out_of_range_are_refused(photos: Path, score: Score, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(photos, **options)


def test_a_result_needs_a_local_folder(photos: Path, tiny_file: Path) -> None:
    from rali_core.dataset import score_dataset

    with pytest.raises(ValueError, match="the result needs a local folder"):
        score_dataset(photos, "s3://bucket/out", model=tiny_file)
    assert not os.path.exists("s3:")


def test_reasons_are_columns_of_words_and_severities(
    photos: Path, score: Score, tmp_path: Path, probing_file: Path, tiny_file: Path
) -> None:
    Image.new("RGB", (40, 40)).save(photos / "black.png")
    with pytest.raises(ValueError, match="the model 'tiny' tells no attributes"):
        score(photos, model=tiny_file, reasons=True)
    score(photos, model=probing_file, reasons=True)
    rows = read_rows(tmp_path / "out")
    scorer = RaliScorer.from_pretrained(probing_file, device="cpu", attributes=True)
    for name, row in rows.items():
        if name in ("broken.png", "black.png"):
            assert (row["words"], row["blur"], row["noise"]) == (None, None, None)
            continue
        told = scorer.score(row["uri"]).attributes[0]
        assert told is not None
        assert row["words"] == ", ".join(told.words)
        assert {"blur": row["blur"], "noise": row["noise"]} == pytest.approx(told.values, abs=1e-5)
    assert len({row["words"] for row in rows.values()}) > 1, "null and at least one text"
    with pytest.raises(ValueError, match="--reasons: words, blur, noise in the first run, none now"):
        score(photos, model=probing_file)
