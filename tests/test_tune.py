from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rali_core.checkpoint import load_model
from rali_core.labels import read_labels, scores_of
from rali_core.training.config import ScoreRole, TuneConfig
from rali_core.training.distortion_triplets import plan_triplets, render_triplet
from rali_core.training.token_cache import mirror_tokens, to_inputs
from rali_core.training.tune import ScoredImages, TripletImages, share_batch, tune_encoder

CONFIG = TuneConfig(
    steps=50, batch_size=24, learning_rate=3e-4, head_learning_rate=3e-3, warmup_steps=3, triplets_per_batch=2,
    consistency_images=2, ema_decay=0.9, validate_every=0,
)  # fmt: skip


FROZEN = 9


def to_tokens(dino_file: Path, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float16]:
    """(N, T, W) of N images of 42 pixels."""
    model = load_model(dino_file).model
    with torch.no_grad():
        inputs = to_inputs(np.stack(images), model.preprocess_config, torch.device("cpu"))
        tokens: NDArray[np.float16] = model.encoder.forward_first(inputs, FROZEN).half().numpy()
    return tokens


def scored(
    dino_file: Path, labels: Path, role: ScoreRole = "absolute", *, name: str = "set", scale: float = 1.0
) -> ScoredImages:
    rows = read_labels(labels)[:84]
    images = [np.asarray(Image.open(row.path).resize((42, 42))) for row in rows]
    return ScoredImages(name, list(to_tokens(dino_file, images)), scores_of(rows) * scale, role)


def triplet_images(dino_file: Path) -> TripletImages:
    triplets = plan_triplets([], [], count=10, seed=0)
    return TripletImages(triplets, [to_tokens(dino_file, render_triplet(triplet, 42)) for triplet in triplets])


def tune(
    dino_file: Path,
    folder: Path,
    sets: list[ScoredImages],
    config: TuneConfig = CONFIG,
    copies: list[NDArray[np.float16]] | None = None,
) -> tuple[list, dict]:  # type: ignore[type-arg]
    model = load_model(dino_file).model
    if copies is None:
        copies = [np.stack(pair) for pair in zip(sets[0].images[:10:2], sets[0].images[1:10:2], strict=True)]
    log = tune_encoder(
        model, sets, triplet_images(dino_file), copies, [sets[0]], config=config, frozen_blocks=FROZEN, folder=folder,
        inputs=0, seed=0, workers=0,
    )  # fmt: skip
    return log, {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}


def test_tuning_learns_the_scores(dino_file: Path, labels: Path, tmp_path: Path) -> None:
    log, state = tune(dino_file, tmp_path, [scored(dino_file, labels)])
    assert log[-1]["SRCC set"] > 0.5
    assert set(log[0]) == {"step", "loss", "smooth L1", "1 - PLCC", "consistency", "ranking", "range"}
    before = load_model(dino_file).model.encoder.state_dict()
    changed = {name.split(".")[2] for name in state if "blocks" in name and not torch.equal(before[name], state[name])}
    assert changed == {"9", "10", "11"}


def test_the_scale_of_a_correlated_set_does_not_matter(dino_file: Path, labels: Path, tmp_path: Path) -> None:
    config = TuneConfig(steps=3, batch_size=16, learning_rate=1e-4, ema_decay=0.0)
    losses = [
        tune(
            dino_file,
            tmp_path / f"{role}{scale}",
            [scored(dino_file, labels), scored(dino_file, labels, role, name="b", scale=scale)],
            config,
        )[0][-1]["loss"]
        for role, scale in (("correlation", 1.0), ("correlation", 0.5), ("absolute", 0.5))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.04), "AdamW's first steps amplify what rounding leaves"
    assert losses[2] != pytest.approx(losses[0], rel=0.08)


def test_a_mapped_set_counts_as_an_absolute_one(dino_file: Path, labels: Path, tmp_path: Path) -> None:
    config = TuneConfig(steps=2, batch_size=16)
    first, second = (
        tune(
            dino_file, tmp_path / role, [scored(dino_file, labels), scored(dino_file, labels, role, name="b")], config
        )[1]
        for role in ("mapped", "absolute")
    )  # fmt: skip
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sets_on_the_scale_are_made_comparable(dino_file: Path, labels: Path, tmp_path: Path) -> None:
    """Within each set nothing changes if one's scores lie lower; over both, the same images cannot score differently."""
    one = scored(dino_file, labels, scale=0.5)
    agreeing, contradicting = (
        tune(dino_file, tmp_path / str(shift), [one, replace(one, name="b", scores=one.scores + shift)])[0][-1]
        for shift in (0.0, 0.5)
    )
    assert contradicting["1 - PLCC"] > agreeing["1 - PLCC"] + 0.05


def test_two_tunings_with_patch_dropout_and_one_seed_are_equal(dino_file: Path, labels: Path, tmp_path: Path) -> None:
    config = TuneConfig(steps=2, batch_size=8, patch_dropout=0.5)
    first, second = (tune(dino_file, tmp_path / str(run), [scored(dino_file, labels)], config)[1] for run in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_both_images_of_a_pair_keep_the_same_places(dino_file: Path, labels: Path, tmp_path: Path) -> None:
    one = scored(dino_file, labels)
    mirrored = np.argsort(mirror_tokens(load_model(dino_file).model.encoder.shape))
    config = replace(CONFIG, steps=10, patch_dropout=0.5)
    moved = {
        name: tune(dino_file, tmp_path / name, [one], config, [np.stack([image, image[order]]) for image in one.images])
        for name, order in (("mirrored", mirrored), ("itself", slice(None)))
    }
    terms = {name: log[-1]["consistency"] for name, (log, _) in moved.items()}
    assert terms["mirrored"] < 1e-5, "the mirror image's tokens in the order of the image's"
    assert terms["itself"] > 1e-3


def test_sets_share_a_batch_by_the_cube_root_of_their_sizes() -> None:
    assert share_batch([8_000, 1_000, 64], 34) == [20, 10, 4]
    assert share_batch([8_000, 3], 40) == [37, 3], "never more than there are"
