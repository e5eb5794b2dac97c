from __future__ import annotations

import pytest
import torch

from rali_core.checkpoint import load_model
from rali_core.images import ImageError
from rali_core.patch_tokens import embed_patches
from rali_core.preprocess import full_size_boxes
from rali_core.quality_map import colour_scores, score_patches, score_tiles, weak_regions
from rali_core.scorer import RaliScorer


def make_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_a_tiles_score_is_that_of_the_tile_alone(tiny_scorer: RaliScorer) -> None:
    image = make_image(96, 64)
    drawn = score_tiles(tiny_scorer, image, tile=32)
    assert drawn is not None
    assert drawn.regions.shape == (3, 2)
    alone = tiny_scorer.score(image[:, 64:, 32:]).scores[0]
    assert float(drawn.regions[2, 1]) == pytest.approx(float(alone), abs=1e-6)
    assert drawn.pixels[64:, 32:].unique().tolist() == pytest.approx([float(alone)], abs=1e-6)


def test_tiles_of_the_encoders_size_are_those_of_full_coverage(tiny_scorer: RaliScorer) -> None:
    config = tiny_scorer.model.preprocess_config
    side = config.image_size
    image = make_image(2 * side, 2 * side)
    drawn = score_tiles(tiny_scorer, image, tile=None)
    assert drawn is not None
    assert drawn.regions.shape == (2, 2)
    boxes = full_size_boxes(2 * side, 2 * side, config)
    crops = [image[:, top : top + side, left : left + side] for top, left in boxes]
    assert drawn.regions.flatten().tolist() == pytest.approx(tiny_scorer.score(crops).scores.tolist(), abs=1e-5)


def test_a_plain_tile_is_no_weak_one(tiny_scorer: RaliScorer) -> None:
    image = make_image(96, 64)
    image[:, :32] = 0.7  # a sky
    drawn = score_tiles(tiny_scorer, image, tile=32)
    assert drawn is not None
    assert drawn.reason is None
    assert drawn.regions[0].tolist() == pytest.approx([float(drawn.regions[1:].mean())] * 2, abs=1e-6)
    halves = torch.zeros(3, 32, 64)
    halves[:, :, 32:] = 1.0
    drawn = score_tiles(tiny_scorer, halves, tile=32)
    assert drawn is not None
    assert drawn.regions.flatten().tolist() == pytest.approx([float(tiny_scorer.score(halves).scores[0])] * 2, abs=1e-6)


def test_a_blank_image_is_weak_everywhere_and_nan_is_no_image(tiny_scorer: RaliScorer) -> None:
    for way in (score_patches, score_tiles):
        drawn = way(tiny_scorer, torch.full((3, 48, 80), 0.5))
        assert drawn is not None
        assert drawn.reason == "no content"
        assert drawn.pixels.shape == (48, 80)
        assert drawn.regions.numel() > 1 if way is score_patches else drawn.regions.shape == (1, 2)
        assert drawn.pixels.unique().tolist() == drawn.regions.unique().tolist() == pytest.approx([0.02])
        spoiled = make_image(48, 80)
        spoiled[1, 5, 5] = float("nan")
        with pytest.raises(ImageError, match="holds NaN"):
            way(tiny_scorer, spoiled)


def test_tiles_that_overlap_share_their_pixels(tiny_scorer: RaliScorer) -> None:
    drawn = score_tiles(tiny_scorer, make_image(32, 48), tile=32)
    assert drawn is not None
    assert drawn.regions.shape == (1, 2)
    assert drawn.pixels[0, 20] == pytest.approx(float(drawn.regions.mean()), abs=1e-6)


def test_a_tile_larger_than_the_image_is_cut_to_it(tiny_scorer: RaliScorer) -> None:
    drawn = score_tiles(tiny_scorer, make_image(20, 20), tile=500)
    assert drawn is not None
    assert drawn.regions.shape == (1, 1)


def test_stopping_leaves_no_half_map(tiny_scorer: RaliScorer) -> None:
    assert score_tiles(tiny_scorer, make_image(200, 200), tile=32, progress=lambda _done, _total: False) is None


@pytest.mark.parametrize("shape", [(64, 64), (40, 100), (200, 60), (1, 1)])
def test_patches_cover_images_of_any_shape(tiny_scorer: RaliScorer, shape: tuple[int, int]) -> None:
    drawn = score_patches(tiny_scorer, make_image(*shape))
    assert drawn.pixels.shape == shape
    assert torch.isfinite(drawn.pixels).all()
    assert drawn.regions.min() >= 0
    assert drawn.regions.max() <= 1


def test_patches_of_a_timm_encoder_are_scored_too(tiny_timm_file: object) -> None:
    scorer = RaliScorer(*(lambda loaded: (loaded.model, loaded.info))(load_model(tiny_timm_file)), device="cpu")  # type: ignore[arg-type]
    assert score_patches(scorer, make_image(64, 64)).regions.shape == (4, 4)


def test_the_class_token_put_in_a_patchs_place_gives_the_pooled_embedding(tiny_timm_file: object) -> None:
    # The patches go through what the class token goes through: check it on the class token itself.
    model = load_model(tiny_timm_file).model  # type: ignore[arg-type]
    trunk = model.encoder.trunk
    inputs = make_image(64, 64).unsqueeze(0)
    with torch.inference_mode():
        tokens = trunk.forward_features(inputs)
        through = model.encoder.head(trunk.forward_head(tokens[:, :1].reshape(-1, 1, tokens.shape[-1])))
        torch.testing.assert_close(through, model.embed(inputs))
        assert embed_patches(model.encoder, inputs).shape == (1, 4, 4, 64)


def test_an_open_clip_encoder_is_left_unchanged(tiny_scorer: RaliScorer) -> None:
    before = tiny_scorer.model.encoder.output_tokens
    score_patches(tiny_scorer, make_image(32, 32))
    assert tiny_scorer.model.encoder.output_tokens is before


def test_weak_regions_are_absolute_or_a_share() -> None:
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    assert weak_regions(scores, 0.25).tolist() == [[1, 1], [0, 0]]
    assert weak_regions(scores, 0.25, "weakest share").tolist() == [[1, 0], [0, 0]]
    assert weak_regions(scores, 0.0, "weakest share").sum() == 0
    assert weak_regions(torch.full((4, 4), 0.5), 0.5, "weakest share").sum() == 0


def test_colours_run_from_red_to_green() -> None:
    drawn = colour_scores(torch.tensor([[0.0, 0.5, 1.0]]))
    assert drawn.shape == (3, 1, 3)
    assert drawn[0, 0, 0] > drawn[1, 0, 0]
    assert drawn[1, 0, 2] > drawn[0, 0, 2]


def test_invalid_settings_are_refused(tiny_scorer: RaliScorer) -> None:
    with pytest.raises(ValueError, match="tile must be at least 16 pixels, got 8"):
        score_tiles(tiny_scorer, make_image(32, 32), tile=8)
    with pytest.raises(ValueError, match="at most 32:1, got 100 x 2: use tiles"):
        score_patches(tiny_scorer, make_image(2, 100))
    with pytest.raises(ValueError, match="a fraction must lie in 0..1, got 2"):
        weak_regions(torch.zeros(2, 2), 2.0, "weakest share")
    with pytest.raises(ValueError, match="mode must be one of below score, weakest share, got 'x'"):
        weak_regions(torch.zeros(2, 2), 0.5, "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected low < high, got 1 and 0"):
        colour_scores(torch.zeros(2, 2), 1.0, 0.0)
