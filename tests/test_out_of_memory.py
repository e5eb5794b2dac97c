"""A device that has too little memory for a batch, or for one image: a fault that costs that image at most."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rali_core.cli import main
from rali_core.dataset import RaliBatchScorer, score_dataset
from rali_core.model import RaliModel

from .dataset.conftest import read_rows


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for number in range(11):
        wide = 200 if number == 6 else 40  # in tiles, more crops than the others
        Image.fromarray(random.integers(0, 256, (40, wide, 3), dtype=np.uint8)).save(
            tmp_path / "p" / f"{number:02d}.png"
        )
    return tmp_path / "p"


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose device has room for two crops at a time."""
    embed = RaliModel.embed

    def limited(model: RaliModel, crops: Tensor) -> Tensor:
        if len(crops) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return embed(model, crops)

    monkeypatch.setattr(RaliModel, "embed", limited)


@pytest.mark.usefixtures("small_device")
def test_rali_score_keeps_all_that_fits(
    images: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "s.csv"
    arguments = [
        "score",
        str(images),
        "--csv",
        str(table),
        "--model",
        str(tiny_file),
        "--device",
        "cpu",
        "--coverage",
        "tiles",
    ]
    status = main([*arguments, "--batch-size", "8"])
    printed = capsys.readouterr()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    failed = [row["file"] for row in rows if row["error"]]
    assert [Path(row["file"]).name for row in rows] == [f"{number:02d}.png" for number in range(11)]
    assert failed in ([], [str(images / "06.png")])
    assert status == len(failed)
    assert "Traceback" not in printed.err
    assert main([*arguments, "--batch-size", "2"]) == 0, "what is smaller fits"


def test_an_image_whose_score_is_not_finite_is_a_row_with_its_error(
    images: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bright = np.random.default_rng(1).integers(200, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(bright).save(images / "03.png")
    embed = RaliModel.embed

    def overflow(model: RaliModel, crops: Tensor) -> Tensor:
        return embed(model, crops).masked_fill(crops.mean(dim=(1, 2, 3)).unsqueeze(1) > 1.5, float("nan"))

    monkeypatch.setattr(RaliModel, "embed", overflow)
    paths = [str(path) for path in sorted(images.iterdir())]
    made = RaliBatchScorer(model=tiny_file, device="cpu")({"image": np.array(paths, dtype=object)})
    assert [Path(path).name for path, error in zip(paths, made["error"], strict=True) if error] == ["03.png"]
    assert made["error"][3] == "the model gave no finite score in float32"
    assert np.isnan(made["score"]).tolist() == [number == 3 for number in range(11)]


@pytest.mark.usefixtures("small_device")
def test_a_data_set_has_a_row_for_each_all_the_same(images: Path, tiny_file: Path, tmp_path: Path) -> None:
    options = {"model": tiny_file, "device": "cpu", "workers": 1, "batch_size": 8}
    result = score_dataset(images, tmp_path / "out", **options)
    assert (result.done, result.errors_now) == (11, 0)
    tiled = score_dataset(images, tmp_path / "tiles", coverage="tiles", **options)
    assert (tiled.done, tiled.errors_now) == (11, 0), "its crops fit one after the other"
    assert len(read_rows(tmp_path / "tiles")) == 11
