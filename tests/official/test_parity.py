from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from rali_core import RaliScorer
from rali_core.official import release as release_module
from rali_core.official.convert import convert


def check(rows: list) -> None:
    assert {row.limit for row in rows if "float32" in row.comparison} == {1e-5}
    for row in rows:
        assert row.spread > 0.1, f"{row}: all images score alike, so that nothing was compared"
        assert row.largest <= row.limit, row


@pytest.mark.parametrize("estimator", ["PCA", "IncrementalPCA"])
def test_scores_of_fifty_images_of_many_sizes_are_those_of_the_official_recipe(
    estimator: str, maker: ModuleType, parity: ModuleType, tmp_path: Path
) -> None:
    release = maker.make_release(tmp_path / "release", estimator=estimator, seed=1)
    images = parity.make_images(54)
    assert len({image.size for image in images}) > 20
    check(parity.measure(release, tmp_path, images, "small"))


@pytest.mark.parametrize("layout", ["transformers 4", "early transformers 4"])
def test_folders_saved_by_transformers_4_score_the_same(
    layout: str, maker: ModuleType, parity: ModuleType, tmp_path: Path
) -> None:
    release = maker.make_release(tmp_path / "release", layout=layout)
    if layout == "early transformers 4":
        _make_readable_for_transformers_5(release, maker, tmp_path / "readable")
        check(_measure_with_other_reference(release, tmp_path / "readable", parity, tmp_path))
    else:
        check(parity.measure(release, tmp_path, parity.make_images(12), layout, tall=0))


def _make_readable_for_transformers_5(release: Path, maker: ModuleType, folder: Path) -> None:
    """The same release as transformers 5 would have saved it, for the reference, which runs on transformers 5."""
    maker.make_release(folder)
    state = torch.load(folder / "ckpt.pt", weights_only=True)["state_dict"]
    early = torch.load(release / "ckpt.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(early[name], tensor) for name, tensor in state.items())
    assert len(early) == len(state) + 2


def _measure_with_other_reference(release: Path, readable: Path, parity: ModuleType, work: Path) -> list:
    scorer = RaliScorer.from_pretrained(
        convert(release, work / "early.safetensors", dtype="float32").path, device="cpu"
    )
    reference = parity.load_helper("reference").Reference(readable)
    images = parity.make_images(12)
    pixels = [reference.pixels(image) for image in images]
    expected = [float(reference.score(tensor)) for tensor in pixels]
    with torch.inference_mode():
        tensor = [float(scorer.model.head(scorer.model.embed(item))) for item in pixels]
    return [
        parity.compare("early", parity.SAME_IMAGE, scorer.score(images).scores, np.array(expected)),
        parity.compare("early", parity.SAME_TENSOR, np.array(tensor), np.array(expected)),
    ]


def test_the_reference_for_tall_images_is_the_processor_itself_for_all_others(
    release: Path, parity: ModuleType
) -> None:
    reference = parity.load_helper("reference").Reference(release)
    for image in parity.make_images(22):
        assert torch.allclose(reference.pixels(image), reference.pixels_of_older_pillow(image), atol=1e-5)


def test_the_comparison_notices_a_wrong_mean(
    release_copy: Path, parity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of the official loader: continuing without the mean."""
    real = release_module.read_pca

    def without_mean(path: Path) -> object:
        record = real(path)
        record.mean[:] = 0
        return record

    monkeypatch.setattr(release_module, "read_pca", without_mean)
    rows = parity.measure(release_copy, tmp_path, parity.make_images(12), "small", tall=0)
    assert all(row.largest > row.limit for row in rows)


@pytest.mark.slow
def test_scores_at_the_official_size_are_those_of_the_official_recipe(
    maker: ModuleType, parity: ModuleType, tmp_path: Path
) -> None:
    # 24 blocks at 577 tokens take seconds per image on two cores; `bench/parity.py` measures 50 and more.
    release = maker.make_release(tmp_path / "release", size=maker.OFFICIAL)
    assert (release / "ckpt.pt").stat().st_size > 1.7e9
    check(parity.measure(release, tmp_path, parity.make_images(5), "ViT-L/14-336", tall=0))
    assert 605e6 < (tmp_path / "float16.safetensors").stat().st_size < 615e6
