from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rali_core.dataset import DatasetResult, filter_dataset, summarise
from rali_core.dataset.engine_ray import ShardScorer
from rali_core.dataset.export import copy_images
from rali_core.dataset.manifest import Manifest
from rali_core.dataset.score_shards import ScoringJob
from rali_core.dataset.update import update

from .conftest import approximately, encode, read_rows

Score = Callable[..., DatasetResult]


def stamps(folder: Path) -> dict[str, object]:
    """When each row was made."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("part-*"))]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["id"]: row["scored_at"] for row in rows}


def test_a_folder_that_has_grown_has_its_new_images_scored(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    for time in (1, 2):
        for number in range(7):
            (photos / f"0-{time}-new-{number}.png").write_bytes(encode(100 * time + number))
        (photos / "01.jpg").unlink(missing_ok=True)
        result = score(photos)
        assert (result.images, result.scored_now, result.added, result.stopped) == (21 + 7 * time, 7, 7, False)
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "old rows are left alone"
        assert score(photos).scored_now == 0
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 35
    assert "01.jpg" in rows, "its row stays, though it was deleted"
    summary = summarise(tmp_path / "out")
    assert (summary.images, summary.done, summary.errors) == (35, 35, 1)
    chosen = filter_dataset(tmp_path / "out", min_score=0.0)
    items = chosen.dataset.items(chosen.positions.tolist())
    assert [item.id for item in items] == [name for name, row in rows.items() if row["error"] is None]


def test_a_list_a_parquet_folder_and_tars_grow_too(
    photos: Path, parquet_file: Path, tar_file: Path, score: Score, tmp_path: Path
) -> None:
    assert photos.is_dir()
    listed = tmp_path / "list.txt"
    listed.write_text("photos/02.png\n")
    score(listed, "list")
    listed.write_text("photos/01.jpg\nphotos/02.png\nphotos/04.png\n")
    assert score(listed, "list").added == 2
    score(parquet_file.parent, "parquet", carry=["prompt"])
    shutil.copy(parquet_file, parquet_file.with_name("more.parquet"))
    assert score(parquet_file.parent, "parquet", carry=["prompt"]).added == 11
    assert [row["prompt"] for row in read_rows(tmp_path / "parquet").values()][11:13] == ["a cat", "a dog"]
    score(tar_file.parent, "tars")
    shutil.copy(tar_file, tar_file.with_name("set-001.tar"))
    assert score(tar_file.parent, "tars").added == 6
    assert len(read_rows(tmp_path / "tars")) == 12


def test_a_stopped_run_is_finished_first_and_grows_the_next_time(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    for number in range(12):
        (photos / f"new-{number}.png").write_bytes(encode(50 + number))
    stopped = score(photos, progress=lambda done, total: done < 26)  # noqa: ARG005
    assert (stopped.stopped, stopped.images, stopped.added) == (True, 33, 12)
    (photos / "later.png").write_bytes(encode(90))
    assert score(photos).images == 33
    assert score(photos).images == 34
    assert score(photos).images == len(read_rows(tmp_path / "out")) == 34


def test_a_deleted_source_leaves_the_result_unchanged(
    photos: Path, score: Score, caplog: pytest.LogCaptureFixture
) -> None:
    score(photos)
    shutil.rmtree(photos)
    assert score(photos).scored_now == 0
    assert "new images were not searched for" in caplog.text


def test_failed_images_are_retried_and_the_others_are_kept(photos: Path, score: Score, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"still no image")
    score(photos)
    before = stamps(tmp_path / "out")
    (photos / "broken.png").write_bytes(encode(99))
    result = score(photos, retry_errors=True)
    assert (result.images, result.done, result.scored_now, result.errors_now) == (22, 22, 2, 1)
    rows, after = read_rows(tmp_path / "out"), stamps(tmp_path / "out")
    assert rows["broken.png"]["error"] is None
    assert "not an image" in rows["bad.png"]["error"]
    assert {name for name in after if after[name] != before[name]} == {"broken.png", "bad.png"}
    assert list(after) == list(before), "each row has kept its place"
    score(photos, "fresh")
    assert rows == approximately(read_rows(tmp_path / "fresh"))
    chosen = filter_dataset(tmp_path / "out", min_score=0.0)
    assert copy_images(chosen, tmp_path / "copies") == [], "the listing knows the file as it is now"
    assert score(photos, retry_errors=True).scored_now == 1, "what failed again is tried again"


def test_new_images_and_retries_are_done_in_one_run(photos: Path, score: Score, tmp_path: Path) -> None:
    score(photos)
    (photos / "broken.png").unlink()
    (photos / "new.png").write_bytes(encode(70))
    result = score(photos, retry_errors=True)
    assert (result.images, result.scored_now, result.added, result.errors_now) == (22, 2, 1, 1)
    assert "the file was deleted after the images were listed" in read_rows(tmp_path / "out")["broken.png"]["error"]


@pytest.mark.parametrize("alone", [True, False])
def test_a_tar_that_could_not_be_read_gives_its_images_when_it_can(
    tar_file: Path, score: Score, tmp_path: Path, alone: bool
) -> None:
    whole = tar_file.read_bytes()
    if not alone:
        shutil.copy(tar_file, tar_file.with_name("other.tar"))
    tar_file.write_bytes(b"no tar")
    assert score(tar_file.parent).errors_now == 1
    tar_file.write_bytes(whole)
    score(tar_file.parent, retry_errors=True)
    rows = read_rows(tmp_path / "out")
    assert len(rows) == (6 if alone else 12)
    assert {row["error"] for row in rows.values()} == {None}
    assert summarise(tmp_path / "out").done == summarise(tmp_path / "out").images == len(rows)
    assert score(tar_file.parent, retry_errors=True).scored_now == 0


def test_rows_of_a_parquet_file_and_carried_columns_are_retried(score: Score, tmp_path: Path) -> None:
    paths = [f"{number}.png" for number in range(7)]
    pq.write_table(pa.table({"path": paths, "prompt": list("abcdefg")}), tmp_path / "t.parquet")
    for number in (0, 2, 3, 6):
        (tmp_path / paths[number]).write_bytes(encode(number))
    assert score(tmp_path / "t.parquet", carry=["prompt"]).errors_now == 3
    (tmp_path / "4.png").write_bytes(encode(4))
    result = score(tmp_path / "t.parquet", carry=["prompt"], retry_errors=True)
    assert (result.scored_now, result.errors_now) == (3, 2)
    rows = read_rows(tmp_path / "out")
    assert [row["prompt"] for row in rows.values()] == list("abcdefg")
    assert [row["error"] is None for row in rows.values()] == [True, False, True, True, True, False, True]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not there")
def test_killed_while_growing_and_retrying_each_image_has_one_row(
    photos: Path, score: Score, tmp_path: Path, tiny_file: Path
) -> None:
    for number in range(12):
        (photos / f"bad-{number:02d}.png").write_bytes(b"no image")
    score(photos)
    for number in range(9):
        (photos / f"bad-{number:02d}.png").write_bytes(encode(200 + number))
        (photos / f"new-{number:02d}.png").write_bytes(encode(300 + number))
    code = """
import os, signal, sys
from rali_core.dataset import score_dataset
if __name__ == "__main__":
    source, out, model, limit = sys.argv[1:]
    calls = []
    def progress(done, total):
        calls.append(done)
        if len(calls) > int(limit):
            os.kill(os.getpid(), signal.SIGKILL)
    score_dataset(source, out, model=model, shard_size=5, batch_size=2, workers=1, device="cpu", progress=progress,
                  retry_errors=True)
"""
    (tmp_path / "run.py").write_text(code)
    for limit, status in ((0, -signal.SIGKILL), (2, -signal.SIGKILL), (5, -signal.SIGKILL), (1000, 0)):
        command = [
            sys.executable,
            str(tmp_path / "run.py"),
            str(photos),
            str(tmp_path / "out"),
            str(tiny_file),
            str(limit),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        read_rows(tmp_path / "out")  # fails where an image is there twice
    score(photos, "fresh")
    assert read_rows(tmp_path / "out") == approximately(read_rows(tmp_path / "fresh"))


def test_a_tar_inside_a_grown_folder_keeps_its_places(score: Score, tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    (tmp_path / "a.png").write_bytes(encode(1))
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    score(folder)
    with tarfile.open(folder / "a.tar", "a") as tar:
        tar.add(tmp_path / "a.png", "b.png")
    assert score(folder).added == 1
    assert list(read_rows(tmp_path / "out")) == ["a.tar/a.png", "a.tar/b.png"]


def test_an_actor_of_a_cluster_retries_failed_rows_once(
    photos: Path, score: Score, tmp_path: Path, tiny_file: Path
) -> None:
    score(photos)
    (photos / "broken.png").write_bytes(encode(99))
    out = tmp_path / "out"
    (out / "_rali" / "shared-folder").write_text("token")
    job = ScoringJob(out, update(out, Manifest.load(out), retry=True, grow=True)[0], 1, attempt="an attempt")
    todo, _ = job.unfinished()
    assert list(todo.values()) == [1]
    actor = ShardScorer(job, "token", str(tiny_file), 4, "cpu")
    shards = {"shard": np.array([*todo, 0])}
    counts = actor(shards)
    assert counts["images"].tolist() == [1, 5], "a shard without an error is left alone"
    assert counts["problem"].tolist() == ["", ""]
    assert job.unfinished()[0] == {}
    assert {row["error"] for row in read_rows(out).values()} == {None}
