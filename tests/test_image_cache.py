from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rali_core.checkpoint import load_model
from rali_core.labels import read_labels
from rali_core.scorer import RaliScorer
from rali_core.training.image_cache import (
    SquareReader,
    augment,
    cache_images,
    embed_images,
    flip_and_recompress,
    hash_weights,
)


class Counting:
    """Renders grey images and counts; fails at one number."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made: list[int] = []
        self.fail_at = fail_at

    def __call__(self, index: int) -> NDArray[np.uint8]:
        if index == self.fail_at:
            raise KeyboardInterrupt
        self.made.append(index)
        return np.full((4, 4, 3), index % 256, np.uint8)


def test_images_are_made_once_and_again_for_another_key(tmp_path: Path) -> None:
    path, shape = tmp_path / "a.npy", (7, 4, 4, 3)
    render = Counting()
    first = cache_images(render, shape, path, key="x", workers=0)
    assert [int(first[index].mean()) for index in range(7)] == list(range(7))
    cache_images(render, shape, path, key="x", workers=0)
    assert render.made == list(range(7))
    cache_images(render, shape, path, key="y", workers=0)
    assert render.made == [*range(7), *range(7)]
    assert np.array_equal(pickle.loads(pickle.dumps(first))[3], first[3]), "another process opens the file itself"


def test_a_stopped_cache_resumes(tmp_path: Path) -> None:
    path, shape = tmp_path / "a.npy", (1200, 4, 4, 3)
    with pytest.raises(KeyboardInterrupt):
        cache_images(Counting(fail_at=700), shape, path, key="x", workers=0)
    render = Counting()
    cache = cache_images(render, shape, path, key="x", workers=0)
    assert render.made == list(range(500, 1200))
    assert all(int(cache[index].mean()) == index % 256 for index in range(1200))


def test_the_middle_square_is_read(tmp_path: Path) -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    square = SquareReader([tmp_path / "wide.png"], 20)(0)
    assert square.shape == (20, 20, 3)
    assert (square == 200).all()


def test_augmentation_cuts_all_to_one_size_and_mirrors_some() -> None:
    images = [np.random.default_rng(n).integers(0, 255, (50, 50, 3), dtype=np.uint8) for n in range(8)]
    sizes = set()
    for seed in range(12):
        cut = augment(images, np.random.default_rng(seed))
        assert len({image.shape for image in cut}) == 1
        sizes.add(cut[0].shape[0])
    assert 50 in sizes
    assert min(sizes) >= 40
    whole = augment(
        images, np.random.default_rng(next(s for s in range(99) if np.random.default_rng(s).random() < 0.5))
    )
    kinds = [np.array_equal(a, b) or -np.array_equal(a, b[:, ::-1]) for a, b in zip(whole, images, strict=True)]
    assert {bool(kind) for kind in kinds} == {True}


def test_a_flipped_and_recompressed_copy_is_nearly_the_mirror_image(photographs: dict[str, Image.Image]) -> None:
    image = np.asarray(photographs["cat"])
    difference = np.abs(flip_and_recompress(image).astype(int) - image[:, ::-1]).mean()
    assert 0 < difference < 4


def test_embeddings_are_those_of_the_scorer_and_kept(labels: Path, dino_file: Path, tmp_path: Path) -> None:
    loaded = load_model(dino_file)
    paths = [row.path for row in read_labels(labels)][:20]
    images = cache_images(SquareReader(paths, 42), (20, 42, 42, 3), tmp_path / "i.npy", key=0, workers=0)
    embeddings = embed_images(loaded.model, images, tmp_path / "e.npy", key="a")
    with torch.inference_mode():
        scores = loaded.model.head(embeddings).numpy()
    expected = RaliScorer(loaded.model, loaded.info, device="cpu").score(paths).scores
    assert scores == pytest.approx(expected, abs=0.02), "Pillow's resizing instead of torch's"
    with torch.no_grad():
        loaded.model.encoder.trunk.norm.bias.add_(1.0)
    assert torch.equal(embed_images(loaded.model, images, tmp_path / "e.npy", key="a"), embeddings), (
        "taken from the file"
    )
    assert not torch.equal(embed_images(loaded.model, images, tmp_path / "e.npy", key="b"), embeddings)
    assert hash_weights(loaded.model.encoder) != hash_weights(load_model(dino_file).model.encoder)
