from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rali_core.checkpoint import load_model
from rali_core.training.align import DescribedImages, align_encoder
from rali_core.training.config import AlignConfig
from rali_core.training.token_cache import to_inputs

CONFIG = AlignConfig(
    steps=20, batch_size=8, chunk_size=8, learning_rate=3e-4, head_learning_rate=1e-2, warmup_steps=3, validate_every=10
)


def to_tokens(dino_file: Path, images: NDArray[np.uint8]) -> NDArray[np.float16]:
    """(N, T, W) of (N, 42, 42, 3), after ten blocks."""
    model = load_model(dino_file).model
    with torch.no_grad():
        inputs = to_inputs(images, model.preprocess_config, torch.device("cpu"))
        tokens: NDArray[np.float16] = model.encoder.forward_first(inputs, 10).half().numpy()
    return tokens


def described(dino_file: Path, count: int, seed: int) -> DescribedImages:
    """Images of one grey each, described by two texts that name it."""
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, count)
    noise = random.integers(-8, 8, (count, 42, 42, 3))
    images = (levels[:, None, None, None] + noise).clip(0, 255).astype(np.uint8)
    angle = torch.from_numpy(np.repeat(levels, 2) / 256 * np.pi).float()
    texts = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)
    return DescribedImages(list(to_tokens(dino_file, images)), texts, np.repeat(np.arange(count), 2))


def align(dino_file: Path, folder: Path, config: AlignConfig = CONFIG, count: int = 30) -> tuple[list, dict]:  # type: ignore[type-arg]
    model = load_model(dino_file).model
    log = align_encoder(
        model, [described(dino_file, count, 0), described(dino_file, 10, 1)], [described(dino_file, 20, 2)], config=config, frozen_blocks=10,
        folder=folder, inputs=0, seed=0, workers=0,
    )  # fmt: skip
    return log, {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}


def test_alignment_raises_the_recall_of_unseen_images(dino_file: Path, tmp_path: Path) -> None:
    log, state = align(dino_file, tmp_path)
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["recall@5"] > 0.4, "at random it is 0.25"
    before = load_model(dino_file).model.encoder.state_dict()
    changed = {name.split(".")[2] for name in state if "blocks" in name and not torch.equal(before[name], state[name])}
    assert changed == {"10", "11"}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_size_of_a_chunk_changes_memory_only(dino_file: Path, tmp_path: Path, dropout: float) -> None:
    settings = {"steps": 2, "batch_size": 8, "patch_dropout": dropout, "learning_rate": 1e-4}
    twice = [
        align(dino_file, tmp_path / f"{run}", AlignConfig(**settings, chunk_size=4))[1]  # type: ignore[arg-type]
        for run in range(2)
    ]
    assert all(torch.equal(twice[0][name], twice[1][name]) for name in twice[0])
    if not dropout:
        whole = align(dino_file, tmp_path / "whole", AlignConfig(**settings, chunk_size=8))[1]  # type: ignore[arg-type]
        assert all(torch.allclose(whole[name], twice[0][name], atol=1e-4) for name in whole)


def test_a_single_image_cannot_be_aligned(dino_file: Path, tmp_path: Path) -> None:
    model = load_model(dino_file).model
    with pytest.raises(ValueError, match="at least two images with a description, got 1"):
        align_encoder(
            model,
            [described(dino_file, 1, 0)],
            [],
            config=CONFIG,
            frozen_blocks=10,
            folder=tmp_path,
            inputs=0,
            seed=0,
            workers=0,
        )
