from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rali_core.constants import CLIP_MEAN, CLIP_STD
from rali_core.preprocess import (
    COVERAGES,
    MAX_TILES,
    Coverage,
    PreprocessConfig,
    View,
    center_crop,
    full_size_boxes,
    locate_views,
    preprocess,
    resize_shorter_side,
    resized_shape,
    tile_offsets,
    view_weights,
)

OFFICIAL = PreprocessConfig(image_size=336, mean=CLIP_MEAN, std=CLIP_STD)

SIZES = [
    # (width, height): tiny, odd, even, around the encoder's size, huge, 10:1 in both orientations
    (1, 1), (2, 3), (3, 2), (5, 50), (7, 7), (17, 33), (50, 50), (50, 500), (100, 75), (101, 1010), (1010, 101),
    (200, 2000), (2000, 200), (223, 225), (224, 224), (225, 223), (250, 251), (333, 337), (335, 336), (336, 336),
    (337, 335), (336, 335), (336, 3360), (3360, 336), (341, 999), (999, 341), (447, 449), (480, 640), (640, 480),
    (511, 513), (512, 512), (672, 672), (673, 671), (777, 778), (1001, 1001), (1023, 767), (1080, 1920),
    (1365, 2047), (1920, 1080), (2047, 1365), (3000, 2000), (4001, 3003), (4096, 4096),
]  # fmt: skip


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 255


def of_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut out of the photograph where it is large enough, else enlarged."""
    if size[0] <= image.width - 100 and size[1] <= image.height - 60:
        return image.crop((100, 60, 100 + size[0], 60 + size[1]))
    return image.resize(size, Image.Resampling.LANCZOS)


def pillow_reference(image: Image.Image, size: int) -> np.ndarray:
    """Shorter side to `size`, bicubic, centre crop: written with Pillow alone."""
    width, height = image.size
    new = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    resized = image.resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32)


@pytest.mark.parametrize("encoder_size", [336, 224])
def test_resizing_matches_pillow_at_many_sizes(photographs: dict[str, Image.Image], encoder_size: int) -> None:
    assert len(SIZES) >= 40
    for size in SIZES:
        image = of_size(photographs["astronaut"], size)
        ours = center_crop(resize_shorter_side(to_tensor(image), encoder_size), encoder_size, encoder_size)
        difference = np.abs(ours[0].permute(1, 2, 0).numpy() * 255 - pillow_reference(image, encoder_size))
        # Pillow rounds to 8 bits after each of its two passes, we never do: 0.25 is the least there can be on average.
        assert difference.mean() <= 0.3, size
        assert difference.max() <= 3.0, size


def test_resizing_matches_pillow_in_floating_point_much_closer(photographs: dict[str, Image.Image]) -> None:
    # Pillow's mode "F" does not round; the image's range is narrowed so that nothing is clipped either.
    for size in SIZES:
        grey = of_size(photographs["coffee"], size).convert("L").point(lambda value: value // 2 + 64)
        expected = pillow_reference(grey.convert("F"), 336)
        ours = center_crop(resize_shorter_side(to_tensor(grey.convert("RGB")), 336), 336, 336)[0, 0].numpy() * 255
        assert np.abs(ours - expected).max() < 0.02, size


def test_a_crop_shifted_by_one_pixel_would_be_noticed(photographs: dict[str, Image.Image]) -> None:
    image = photographs["astronaut"].resize((1023, 767))
    resized = resize_shorter_side(to_tensor(image), 336)
    left = (resized.shape[-1] - 336) // 2 + 1
    shifted = resized[..., left : left + 336][0].permute(1, 2, 0).numpy() * 255
    assert np.abs(shifted - pillow_reference(image, 336)).mean() > 3.0


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([224, 336]))
def test_the_shorter_side_gets_the_size_and_the_longer_one_is_truncated(height: int, width: int, size: int) -> None:
    new_height, new_width = resized_shape(height, width, size)
    assert min(new_height, new_width) == size
    assert max(new_height, new_width) == int(size * max(height, width) / min(height, width))


@given(st.integers(224, 20_000))
def test_tiles_cover_the_long_side_evenly(length: int) -> None:
    offsets = tile_offsets(length, 224)
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= length - 224 for offset in offsets)
    assert len(offsets) <= MAX_TILES
    if len(offsets) > 1:
        assert (offsets[0], offsets[-1]) == (0, length - 224)
    if length <= MAX_TILES * 224:
        steps = np.diff(offsets)
        assert (steps <= 224).all(), "nothing of the image is left out"


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 140), st.integers(1, 140), st.sampled_from(COVERAGES))
def test_every_size_gives_square_crops_whose_weights_sum_to_one(height: int, width: int, coverage: Coverage) -> None:
    config = PreprocessConfig(image_size=32, mean=CLIP_MEAN, std=CLIP_STD)
    crops = preprocess(torch.rand(2, 3, height, width), config, coverage=coverage)
    weights = view_weights(height, width, config, coverage=coverage)
    assert crops.shape == (2, len(weights), 3, 32, 32)
    assert torch.isfinite(crops).all()
    assert float(weights.sum()) == pytest.approx(1.0)


PLAIN = PreprocessConfig(image_size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 9))
def test_full_size_crops_are_the_images_own_pixels(height: int, width: int, most: int) -> None:
    config = replace(PLAIN, full_size_crops=most)
    pixels = torch.rand(1, 3, height, width)
    crops = preprocess(pixels, config, coverage="full")[0]
    views = locate_views(height, width, config, coverage="full")
    own = [(view, crop) for view, crop in zip(views, crops, strict=True) if view.full_size]
    assert (len(own) > 0) == (min(height, width) >= 40), "where the image is clearly larger than the encoder's input"
    assert len(own) <= most
    for view, crop in own:
        assert torch.equal(crop, pixels[0, :, view.top : view.top + 32, view.left : view.left + 32])
    for view, _ in own:  # a mirrored image gives the mirrored crops; a pixel may be odd in the middle
        assert any(abs(width - 32 - view.left - other.left) <= 1 and view.top == other.top for other, _ in own)


@pytest.mark.parametrize(
    ("height", "width", "places"),
    [
        (39, 39, []),
        (64, 64, [(0, 0), (0, 32), (32, 0), (32, 32)]),
        (200, 40, [(9, 4), (59, 4), (109, 4), (159, 4)]),
        (128, 256, [(16, 48), (16, 176), (80, 48), (80, 176)]),
    ],
)
def test_full_size_crops_are_spread_evenly(height: int, width: int, places: list[tuple[int, int]]) -> None:
    assert full_size_boxes(height, width, PLAIN) == places


@pytest.mark.parametrize(
    ("side", "share", "adaptive"),
    [(32, 0, 0), (39, 0, 0), (40, 0.25 / 6, 0), (64, 1 / 6, 0), (112, 2.5 / 6, 2.5 / 6), (128, 0.5, 0.5),
     (160, 2 / 3, 0.5), (512, 2 / 3, 0.5)],
)  # fmt: skip
def test_crops_count_more_the_larger_the_image_is(side: int, share: float, adaptive: float) -> None:
    for coverage, expected in (("full", share), ("adaptive", adaptive)):
        weights = view_weights(side, side, PLAIN, coverage=coverage)  # type: ignore[arg-type]
        assert float(weights[1:].sum()) == pytest.approx(expected)


@pytest.mark.parametrize("side", [40, 95, 96, 128])
def test_adaptive_coverage_is_full_for_large_images_and_tiles_for_others(side: int) -> None:
    pixels, alike = torch.rand(1, 3, side, 2 * side), "full" if side >= 96 else "tiles"
    same = preprocess(pixels, PLAIN, coverage=alike)  # type: ignore[arg-type]
    assert torch.equal(preprocess(pixels, PLAIN, coverage="adaptive"), same)
    weights = [view_weights(side, 2 * side, PLAIN, coverage=coverage) for coverage in ("adaptive", alike)]  # type: ignore[arg-type]
    assert torch.equal(*weights)


def test_what_lies_where_is_said_in_the_images_own_pixels() -> None:
    views = locate_views(100, 300, PLAIN, coverage="tiles")
    assert [(view.left, view.top, view.width, view.height) for view in views] == [
        (0, 0, 100, 100), (100, 0, 100, 100), (200, 0, 100, 100),
    ]  # fmt: skip
    assert locate_views(300, 100, PLAIN, coverage="center") == [View(0, 100, 100, 100, False)]


def test_normalisation_is_that_of_the_configuration() -> None:
    crops = preprocess(torch.full((1, 3, 8, 8), 0.5), PreprocessConfig(8, (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)))
    assert torch.allclose(crops[0, 0, :, 0, 0], torch.tensor([0.8, 1.2, 1.0]))


def test_a_strip_of_extreme_length_does_not_exhaust_the_memory() -> None:
    crops = preprocess(torch.rand(1, 3, 1, 200_000), OFFICIAL, coverage="tiles")
    assert crops.shape == (1, MAX_TILES, 3, 336, 336)


def test_gradients_are_those_of_finite_differences() -> None:
    config = PreprocessConfig(image_size=6, mean=CLIP_MEAN, std=CLIP_STD)
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(1, 3, 9, 11, dtype=torch.float64, generator=generator) * 0.4 + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: preprocess(x, config, coverage="full"), (pixels,))


def test_sixteen_bit_pixels_are_computed_in_float32() -> None:
    assert preprocess(torch.rand(1, 3, 40, 40).half(), OFFICIAL).dtype == torch.float32


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), TypeError, "floating-point tensor of pixels in .0, 1., got torch.int32"),
        (torch.zeros(3, 4, 4), ValueError, r"shape \(B, 3, H, W\), got \(3, 4, 4\)"),
        (torch.zeros(1, 4, 4, 4), ValueError, r"shape \(B, 3, H, W\), got \(1, 4, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), ValueError, "at least one image"),
        (torch.zeros(1, 3, 0, 4), ValueError, "at least one image of at least 1 x 1 pixel"),
        (torch.full((1, 3, 4, 4), float("nan")), ValueError, "NaN or infinite"),
        (torch.full((1, 3, 4, 4), float("-inf")), ValueError, "NaN or infinite"),
        (torch.full((1, 3, 4, 4), 200.0), ValueError, r"from 200 to 200; divide by 255"),
        (torch.full((1, 3, 4, 4), -1.0), ValueError, r"map from \[-1, 1\]"),
    ],
)  # fmt: skip
def test_unusable_pixels_are_refused_with_the_reason(pixels: torch.Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        preprocess(pixels, OFFICIAL)


def test_an_unknown_coverage_is_refused() -> None:
    with pytest.raises(ValueError, match="coverage must be one of center, tiles, adaptive, full, got 'all'"):
        preprocess(torch.rand(1, 3, 8, 8), OFFICIAL, coverage="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size must be a whole number"),
        ({"image_size": 224.0}, "image_size must be a whole number"),
        ({"mean": (0.5, 0.5)}, "mean must be three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be positive"),
    ],
)
def test_an_unusable_configuration_is_refused(values: dict[str, object], message: str) -> None:
    settings = {"image_size": 224, "mean": CLIP_MEAN, "std": CLIP_STD, **values}
    with pytest.raises(ValueError, match=message):
        PreprocessConfig(**settings)  # type: ignore[arg-type]


def test_a_configuration_survives_the_way_through_json() -> None:
    assert PreprocessConfig.from_dict(OFFICIAL.to_dict()) == OFFICIAL
    with pytest.raises(ValueError, match="expected the keys image_size, mean and std"):
        PreprocessConfig.from_dict({"image_size": 3})
