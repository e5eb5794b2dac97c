"""The bundled model: real weights, honest card, sensible scores on real images."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from rali_core.checkpoint import parameter_count, read_metadata
from rali_core.constants import BAND_NAMES, DOMAINS
from rali_core.hub import bundled_model_path, find_model
from rali_core.scorer import RaliScorer
from rali_core.training.config import read_config, to_json
from rali_core.training.distortions import BLUR_SIGMA, JPEG_QUALITY, LEVELS, NOISE_SIGMA, distort, recode

REPOSITORY = Path(__file__).resolve().parent.parent
CARD = REPOSITORY / "weights" / "README.md"


def test_the_model_is_small_enough_to_ship() -> None:
    assert bundled_model_path().stat().st_size <= 48_000_000
    assert find_model("rali-small") == find_model() == bundled_model_path()


def test_score_falls_with_every_stronger_level_of_a_distortion(
    bundled_scorer: RaliScorer, photographs: dict[str, Image.Image]
) -> None:
    pairs: dict[str, list[bool]] = {}
    for name, image in photographs.items():
        for kind in ("blur", "noise", "jpeg"):
            row = [image, *(distort(image, kind, level, seed=7) for level in range(1, LEVELS + 1))]  # type: ignore[arg-type]
            scores = bundled_scorer.score(row).scores
            pairs[f"{name} {kind}"] = [bool(falls) for falls in np.diff(scores) < 0]
    right = np.concatenate(list(pairs.values()))
    assert len(right) == 5 * 3 * 5
    assert right.mean() >= 0.97, {key: value for key, value in pairs.items() if not all(value)}
    # The levels are far apart enough to be seen, and begin where a person begins to see them.
    assert (BLUR_SIGMA[0], NOISE_SIGMA[0], JPEG_QUALITY[0]) == (1.0, 8.0, 40)


def test_mirroring_and_light_compression_hardly_move_a_score(
    bundled_scorer: RaliScorer, photographs: dict[str, Image.Image]
) -> None:
    before = bundled_scorer.score(photographs.values()).scores
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in photographs.values()]
    saved = [recode(image, "JPEG", quality=95) for image in photographs.values()]
    assert np.abs(bundled_scorer.score(mirrored).scores - before).max() <= 0.01
    assert np.abs(bundled_scorer.score(saved).scores - before).max() <= 0.02


def test_good_photographs_score_better_than_ruined_ones(
    bundled_scorer: RaliScorer, photographs: dict[str, Image.Image]
) -> None:
    good = bundled_scorer.score(photographs.values()).scores
    ruined = bundled_scorer.score(
        [distort(image, kind, 5, seed=1) for image in photographs.values() for kind in ("blur", "jpeg", "noise")]
    ).scores
    assert good.min() > ruined.max()
    assert good.mean() - ruined.mean() > 0.2
    result = bundled_scorer.score([np.zeros((64, 64, 3), dtype=np.uint8)])
    assert result.bands[0] in BAND_NAMES


def test_real_photographs_score_the_same_alone_and_in_batches(
    bundled_scorer: RaliScorer, photographs: dict[str, Image.Image]
) -> None:
    images = [*photographs.values(), Image.fromarray(data.camera()), Image.fromarray(data.retina())]
    alone = np.array([bundled_scorer.score(image).scores[0] for image in images])
    together = bundled_scorer.score(images).scores
    backwards = bundled_scorer.score(images[::-1]).scores[::-1]
    assert np.abs(alone - together).max() <= 1e-5
    assert np.abs(alone - backwards).max() <= 1e-5


def test_the_module_gives_the_scorers_scores_with_a_gradient(
    bundled_scorer: RaliScorer, photographs: dict[str, Image.Image]
) -> None:
    image = photographs["coffee"].resize((300, 200))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 255
    pixels.requires_grad_()
    score = bundled_scorer.model(pixels)
    score.sum().backward()
    assert score.item() == pytest.approx(float(bundled_scorer.score(image).scores[0]), abs=1e-5)
    assert pixels.grad is not None
    assert torch.isfinite(pixels.grad).all()
    assert pixels.grad.abs().max() > 0
    with torch.no_grad():
        uphill = bundled_scorer.model((pixels + 0.01 * pixels.grad.sign()).clamp(0, 1))
    assert uphill.item() > score.item(), "a small step along the gradient raises the score"


def test_the_file_states_its_provenance() -> None:
    metadata = read_metadata(bundled_model_path())
    assert tuple(metadata["domains"]) == DOMAINS, "the choices of RALI Load Model"
    training = metadata["training"]
    assert metadata["licence"] == "Apache-2.0"
    assert metadata["source"]["origin"]["backbone"]["name"] == "DINOv2 ViT-S/14"
    assert re.fullmatch(r"[0-9a-f]{64}", metadata["source"]["sha256"])
    assert re.fullmatch(r"[0-9a-f]{40}", training["git_commit"]), "no local changes"
    assert training["figures"]["biq2021"]["test"]["srcc"] >= 0.90
    assert training["figures"]["agiqa-3k"]["test"]["srcc"] >= 0.80
    assert {part["name"] for part in metadata["calibration"]["populations"]} == {"photographs", "generated images"}


def test_the_model_is_that_of_the_configuration() -> None:
    config = read_config(REPOSITORY / "configs" / "rali-small.toml")
    assert read_metadata(bundled_model_path())["training"]["config"] == json.loads(json.dumps(to_json(config)))


def test_the_card_and_the_readme_print_the_files_figures(bundled_scorer: RaliScorer) -> None:
    figures = read_metadata(bundled_model_path())["training"]["figures"]
    card, readme = CARD.read_text(encoding="utf-8"), (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for name in ("biq2021", "agiqa-3k", "pcuid", "sr4kiqa"):
        test = figures[name]["test"]
        assert f"{test['count']:,} | {test['srcc']:.3f}" in card, name
        assert f"{test['plcc']:.3f}" in card, name
    for name in ("biq2021", "agiqa-3k"):
        assert f"{figures[name]['test']['srcc']:.3f}" in readme, name
        assert f"{figures[name]['test']['plcc']:.3f}" in readme, name
    assert f"{figures['biq2021']['test']['mae']:.3f}" in card
    assert f"{figures['agiqa-3k']['test']['mean_srcc_within_groups']:.3f}" in card
    assert f"{parameter_count(bundled_scorer.model) / 1e6:.1f} million" in card


def test_an_explanation_adds_up_on_a_real_photograph(
    bundled_scorer: RaliScorer, photographs: dict[str, Image.Image]
) -> None:
    shares = bundled_scorer.explain(photographs["motorcycle"])
    score = float(bundled_scorer.score(photographs["motorcycle"]).scores[0])
    assert sum(share.contribution for share in shares) == pytest.approx(score, abs=1e-5)
