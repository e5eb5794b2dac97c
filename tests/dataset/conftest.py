"""Small photos in all the places that a data set can be in."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rali_core.dataset import DatasetResult, score_dataset


def make_image(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize((int(random.integers(33, 60)), int(random.integers(33, 60))))


def encode(seed: int, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    make_image(seed).save(buffer, form)
    return buffer.getvalue()


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """All rows by id, without the time; a repeated id fails."""
    rows = [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
    by_id = {row["id"]: {key: value for key, value in row.items() if key != "scored_at"} for row in rows}
    assert len(by_id) == len(rows), "an image is there twice"
    return by_id


def approximately(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Equal to the same rows of another run: linear algebra rounds as it meets the memory's alignment and the batch."""
    tolerance = {"score": 1e-6, "percentile": 0.1}
    return {
        name: {
            key: pytest.approx(value, abs=tolerance[key]) if key in tolerance and value is not None else value
            for key, value in row.items()
        }
        for name, row in rows.items()
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty photos in two folders, a file that is no image and one that is damaged."""
    root = tmp_path / "photos"
    (root / "inner").mkdir(parents=True)
    for number in range(20):
        folder = root / "inner" if number % 3 == 0 else root
        make_image(number).save(folder / f"{number:02d}.{'jpg' if number % 2 else 'png'}")
    (root / "notes.md").write_text("no image")
    (root / "broken.png").write_bytes(encode(99)[:60])
    return root


@pytest.fixture
def score(tiny_file: Path, tmp_path: Path) -> Callable[..., DatasetResult]:
    """Score into `out` with the tiny model, five images a shard."""

    def run(source: Path | str, out: str = "out", **options: Any) -> DatasetResult:
        settings = {"model": tiny_file, "shard_size": 5, "batch_size": 4, "workers": 1, "device": "cpu", **options}
        return score_dataset(source, tmp_path / out, **settings)

    return run


@pytest.fixture
def parquet_file(tmp_path: Path) -> Path:
    """Eleven images in three row groups, with a prompt each."""
    path = tmp_path / "set" / "images.parquet"
    path.parent.mkdir()
    table = pa.table(
        {
            "image": pa.array([encode(number) for number in range(11)], pa.binary()),
            "key": [f"k{number}" for number in range(11)],
            "prompt": [["a cat", "a dog", None][number % 3] for number in range(11)],
        }
    )
    pq.write_table(table, path, row_group_size=4)
    return path


@pytest.fixture
def tar_file(tmp_path: Path) -> Path:
    """A WebDataset tar: six samples of an image and a text."""
    path = tmp_path / "shards" / "set-000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            for name, data in ((f"{number:03d}.jpg", encode(number, "jpeg")), (f"{number:03d}.txt", b"a cat")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
