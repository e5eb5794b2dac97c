from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rali_core import devices
from rali_core.checkpoint import load_model
from rali_core.labels import read_labels
from rali_core.model import RaliModel
from rali_core.scorer import RaliScorer
from rali_core.training import token_cache
from rali_core.training.token_cache import (
    CopyReader,
    SquareReader,
    TokenCache,
    cache_tokens,
    drop_patches,
    embed_images,
    flip_and_recompress,
    hash_weights,
    mirror_tokens,
    to_inputs,
)
from rali_core.vision_transformer import PatchPattern, ViTConfig, split_checkerboard


class Counting:
    """Renders grey images and counts; fails at one number."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made: list[int] = []
        self.fail_at = fail_at

    def __call__(self, index: int) -> NDArray[np.uint8]:
        if index == self.fail_at:
            raise KeyboardInterrupt
        self.made.append(index)
        return np.full((42, 42, 3), index % 256, np.uint8)


def cache(model: RaliModel, render: Counting, count: int, path: Path, key: str = "x") -> TokenCache:
    return cache_tokens(model, 2, render, (count,), path, key=key, workers=0)


def test_tokens_are_computed_once_and_again_for_another_key(dino_file: Path, tmp_path: Path) -> None:
    model, render = load_model(dino_file).model, Counting()
    first = cache(model, render, 7, tmp_path / "a.npy")
    assert first[3].shape == (10, model.encoder.shape.width), "a class token and 3 x 3 patches"
    cache(model, render, 7, tmp_path / "a.npy")
    assert render.made == list(range(7))
    cache(model, render, 7, tmp_path / "a.npy", key="y")
    assert render.made == [*range(7), *range(7)]
    assert np.array_equal(pickle.loads(pickle.dumps(first))[3], first[3]), "another process opens the file itself"


def test_a_stopped_cache_resumes(dino_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "PROGRESS_EVERY", 20)
    monkeypatch.setattr(token_cache, "images_per_pass", lambda *_: 3)
    model = load_model(dino_file).model
    with pytest.raises(KeyboardInterrupt):
        cache(model, Counting(fail_at=50), 60, tmp_path / "a.npy")
    render = Counting()
    resumed = cache(model, render, 60, tmp_path / "a.npy")
    assert render.made == list(range(42, 60)), "written every 20 images, at the end of a pass"
    assert np.array_equal(resumed.array, cache(model, Counting(), 60, tmp_path / "b.npy").array)


def test_the_rest_of_the_encoder_makes_the_same_embeddings_of_tokens_as_the_whole_one_of_images(
    dino_file: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        devices, "has_bf16_instructions", lambda: False
    )  # bfloat16 would round more than the cache does
    model = load_model(dino_file).model
    read = SquareReader([row.path for row in read_labels(labels)][:6], 42)
    whole = embed_images(model, [read(index) for index in range(6)])
    for frozen in (0, 5, 11):
        tokens = cache_tokens(model, frozen, read, (6,), tmp_path / f"{frozen}.npy", key=0, workers=0)
        assert embed_images(model, tokens, frozen) == pytest.approx(whole, abs=5e-3), "16 bits"
    exact = to_inputs(np.stack([read(0)]), model.preprocess_config, torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(model.encoder.forward_rest(model.encoder.forward_first(exact, 5), 5), model.encoder(exact))


def test_patches_are_dropped_and_the_class_token_stays() -> None:
    images = [np.arange(9, dtype=np.float16)[:, None] + 10 * number for number in range(4)]
    kept = drop_patches(images, 0.5, np.random.default_rng(0))
    assert kept.shape == (4, 5, 1)
    assert (kept[:, 0, 0] == [0, 10, 20, 30]).all()
    assert all(
        len(set(row)) == 5 and set(row) <= set(image[:, 0]) for row, image in zip(kept[..., 0], images, strict=True)
    )
    assert len({tuple(row) for row in kept[..., 0] - kept[:, :1, 0]}) > 1, "others of each image"
    assert np.array_equal(drop_patches(images, 0.0, np.random.default_rng(0)), np.stack(images))
    assert drop_patches(images, 0.99, np.random.default_rng(0)).shape == (4, 2, 1), "one at least"
    own = drop_patches(images, 0.5, np.random.default_rng(0), pairs=1)[..., 0] - [[0], [10], [20], [30]]
    assert np.array_equal(own[2], own[3]), "the same of both images of a pair"
    assert not np.array_equal(own[1], own[2])


@pytest.mark.parametrize("pattern", ["all", "checkerboard"])
def test_tokens_of_a_mirrored_image_are_put_in_the_order_of_the_image(pattern: PatchPattern) -> None:
    shape = ViTConfig(image_size=7, patch=1, width=1, layers=2, heads=1, hidden=4, pattern=pattern)
    image = torch.randperm(49).view(1, 7, 7, 1)
    own, mirrored = (
        grid.reshape(1, -1, 1) if pattern == "all" else split_checkerboard(grid.reshape(1, -1, 1))
        for grid in (image, image.flip(2))
    )
    order = mirror_tokens(shape)
    assert len(order) == shape.seen_tokens
    assert order[0] == 0, "the class token stays the first"
    assert torch.equal(mirrored[:, order[1:] - 1], own)


def test_copies_are_read_beside_their_image(photographs: dict[str, Image.Image], tmp_path: Path) -> None:
    photographs["cat"].save(tmp_path / "cat.png")
    paths = [tmp_path / "cat.png"] * 2
    read, alone = CopyReader(paths, 64), SquareReader(paths, 64)(0)
    (first, resized_first), (second, compressed_first) = read(0), read(1)
    assert np.array_equal(first, alone)
    assert np.array_equal(second, alone)
    assert np.array_equal(resized_first, np.asarray(flip_and_recompress(Image.fromarray(alone))))
    assert not np.array_equal(compressed_first, resized_first)
    for copy in (resized_first, compressed_first):
        assert np.abs(copy.astype(int) - alone[:, ::-1]).mean() < 4


def test_the_middle_square_is_read(tmp_path: Path) -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    square = SquareReader([tmp_path / "wide.png"], 20)(0)
    assert square.shape == (20, 20, 3)
    assert (square == 200).all()


def test_a_flipped_and_recompressed_copy_is_nearly_the_mirror_image(photographs: dict[str, Image.Image]) -> None:
    image = photographs["cat"]
    copy = np.asarray(flip_and_recompress(image), dtype=int)
    difference = np.abs(copy - np.asarray(image)[:, ::-1]).mean()
    assert 0 < difference < 4


def test_embeddings_are_those_of_the_scorer_and_kept(labels: Path, dino_file: Path, tmp_path: Path) -> None:
    loaded = load_model(dino_file)
    paths = [row.path for row in read_labels(labels)][:20]
    images = cache_tokens(loaded.model, 4, SquareReader(paths, 42), (20,), tmp_path / "i.npy", key=0, workers=0)
    embeddings = embed_images(loaded.model, images, 4, tmp_path / "e.npy", key="a")
    with torch.inference_mode():
        scores = loaded.model.head(embeddings).numpy()
    expected = RaliScorer(loaded.model, loaded.info, device="cpu").score(paths).scores
    assert scores == pytest.approx(expected, abs=0.02), "Pillow's resizing instead of torch's"
    with torch.no_grad():
        loaded.model.encoder.trunk.norm.bias.add_(1.0)
    assert torch.equal(embed_images(loaded.model, images, 4, tmp_path / "e.npy", key="a"), embeddings), (
        "taken from the file"
    )
    assert not torch.equal(embed_images(loaded.model, images, 4, tmp_path / "e.npy", key="b"), embeddings)
    assert hash_weights(loaded.model.encoder.state_dict()) != hash_weights(
        load_model(dino_file).model.encoder.state_dict()
    )


def test_weights_that_compute_the_same_have_one_hash() -> None:
    """A model file rounds to 16 bits, and training may leave a negative zero where there was a positive one."""
    positive, negative, other = ({"a": torch.tensor([value, 1.0])} for value in (0.0, -0.0, 1e-8))
    assert hash_weights(positive) == hash_weights(negative) != hash_weights(other)
    assert hash_weights({"b": positive["a"]}) != hash_weights(positive)
