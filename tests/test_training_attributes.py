"""The probes of image attributes: what they are fitted on, what is kept of them, and the tool that adds them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rali_core.attributes import AttributeProbes
from rali_core.training.attribute_distortions import FURTHER, distort_further
from rali_core.training.attributes import (
    KINDS,
    MIN_AUC,
    PAIRS,
    PROBED,
    SHAPES,
    UNSEEN,
    DistortedImages,
    fit_probes,
    load_probes,
    save_probes,
)
from rali_core.training.distortions import LEVELS, distort

SOURCES = 40
ALL = ("none", *KINDS, *UNSEEN)
HIDDEN = ("jpeg", "webp", "vibrance")
"""Distortions that leave no trace in the made-up embeddings."""


def made_up_embeddings(seed: int) -> tuple[torch.Tensor, NDArray[np.int64], torch.Tensor]:
    """Content in all of 48 dimensions, each kind of distortion along a direction of its own, the
    unseen ones along those of their attributes, pairs along both; and fifty good images."""
    random = np.random.default_rng(seed)
    levels = DistortedImages(lambda _: np.zeros((8, 8, 3), np.uint8), SOURCES).levels
    directions = np.random.default_rng(99).normal(size=(len(ALL), 48)) * 3
    for kind in UNSEEN:
        alike = [probed.kinds[0] for probed in PROBED.values() if kind in probed.unseen]
        directions[ALL.index(kind)] = directions[[ALL.index(each) for each in alike]].sum(axis=0)
    directions[[0, *(ALL.index(kind) for kind in HIDDEN)]] = 0
    for pair in PAIRS:
        directions[ALL.index(pair)] = directions[[ALL.index(part) for part in pair.split("+")]].sum(axis=0)
    content = random.normal(size=(SOURCES, 1, 48))
    values = 5 + content + directions * levels[:, :, None] / LEVELS + random.normal(0, 0.2, (*levels.shape, 48))
    good = 5 + random.normal(size=(50, 48))
    return torch.from_numpy(values.reshape(-1, 48)).float(), levels, torch.from_numpy(good).float()


def test_each_image_comes_undistorted_and_then_in_every_kind_with_levels_alike_often() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (10, 24, 24, 3), dtype=np.uint8)
    images = DistortedImages(lambda number: pixels[number], 10)
    assert len(images) == 10 * (len(ALL))
    assert np.array_equal(images[3 * (len(ALL))], pixels[3])
    place = ALL.index("blur+jpeg")
    for number, (across, down) in enumerate(SHAPES):
        level = int(images.levels[number, place])
        shaped = Image.fromarray(pixels[number]).resize(
            (round(24 * across), round(24 * down)), Image.Resampling.BICUBIC
        )
        both = distort(distort(shaped, "blur", level, seed=number), "jpeg", level, seed=number)
        expected = np.asarray(both.resize((24, 24), Image.Resampling.BICUBIC))
        assert np.array_equal(images[number * len(ALL) + place], expected)
    counts = np.apply_along_axis(np.bincount, 0, images.levels[:, 1:], minlength=LEVELS + 1)
    assert (counts[1:] == 2).all()


@pytest.mark.parametrize("kind", sorted(FURTHER))
def test_a_further_distortion_grows_with_its_level(kind: str) -> None:
    y, x = np.mgrid[:96, :96] / 95
    texture = np.random.default_rng(0).normal(0, 0.05, (96, 96))
    planes = [0.15 + 0.6 * x, 0.2 + 0.5 * y, 0.5 + 0.25 * np.sin(9 * x + 5 * y)]
    values = np.stack([255 * (plane + texture).clip(0, 1) for plane in planes], axis=-1).astype(np.uint8)
    image, values = Image.fromarray(values), values.astype(np.float32)
    made = [np.asarray(distort_further(image, kind, level), np.float32) for level in range(1, LEVELS + 1)]
    changes = [float(np.abs(each - values).mean()) for each in made]
    assert changes[0] > 0
    assert all(later > sooner for sooner, later in itertools.pairwise(changes))
    with pytest.raises(ValueError, match="must"):
        distort_further(image, kind, 6)


def test_probes_tell_unseen_images_what_is_wrong_and_what_cannot_be_told_is_left_out() -> None:
    embeddings, levels, good = made_up_embeddings(1)
    probes, figures = fit_probes(embeddings, [f"{number}.png" for number in range(SOURCES)], levels, good)
    assert probes is not None
    kept = {attribute.name for attribute in probes.attributes}
    assert kept | set(figures["left_out"]) == set(PROBED)
    assert set(figures["left_out"]) == {"compression", "oversaturation"}
    known, others = figures["left_out"]["oversaturation"]
    assert known > MIN_AUC > others, "told where it was trained, not on another way to the same"
    assert all(attribute.auc == min(figures["auc"][attribute.name]) >= MIN_AUC for attribute in probes.attributes)
    unseen, _, _ = made_up_embeddings(2)
    with torch.no_grad():
        values = probes(unseen).numpy().reshape(SOURCES, len(ALL), -1)
    words = [[probes.describe(row).words for row in image] for image in values]
    assert sum(bool(image[0]) for image in words) <= 6, "of forty images without a flaw"
    place = ALL.index("noise")
    severe = [image[place] for image, level in zip(words, levels[:, place], strict=True) if level >= 3]
    assert np.mean(["noisy" in each for each in severe]) > 0.9
    place = ALL.index("darken+noise")
    both = [image[place] for image, level in zip(words, levels[:, place], strict=True) if level >= 3]
    assert np.mean(["noisy" in each and "underexposed" in each for each in both]) > 0.9, "both flaws of one image"
    flagged = dict(each.rsplit(" ", 1) for each in figures["flagged"]["noise"].split(", "))
    assert float(flagged["noise"]) > 0.7 > 0.2 > float(flagged.get("blur", 0))


def test_probes_and_figures_come_back_from_their_file(tmp_path: Path) -> None:
    embeddings, levels, good = made_up_embeddings(1)
    probes, figures = fit_probes(embeddings, [f"{number // 2}" for number in range(SOURCES)], levels, good)
    save_probes(tmp_path / "a.safetensors", probes, figures)
    again, same = load_probes(tmp_path / "a.safetensors")
    assert isinstance(probes, AttributeProbes)
    assert isinstance(again, AttributeProbes)
    assert (again.attributes, same) == (probes.attributes, figures)
    assert torch.equal(again(embeddings), probes(embeddings))
    save_probes(tmp_path / "b.safetensors", None, {})
    assert load_probes(tmp_path / "b.safetensors") == (None, {})


def test_every_word_is_translated_on_comfyuis_page() -> None:
    texts = (Path(__file__).resolve().parent.parent / "web" / "js" / "texts.js").read_text(encoding="utf-8")
    tables = re.findall(r"words: \{(.*?)\n    \}", texts, re.DOTALL)
    assert len(tables) == 2, "Chinese and Japanese"
    for table in tables:
        known = re.findall(r'(?:"([^"]+)"|(\w+)): "', table)
        assert {quoted or plain for quoted, plain in known} == {probed.word for probed in PROBED.values()}
