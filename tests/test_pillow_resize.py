from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rali_core.constants import CLIP_MEAN, CLIP_STD
from rali_core.pillow_resize import WEIGHT_BITS, bicubic_weights, resize_axis, resize_levels, to_levels
from rali_core.preprocess import PreprocessConfig, preprocess, resize_shorter_side

LENGTHS = st.integers(1, 700)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 to (3, H, W) uint8."""
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def resize_with_pillow(array: np.ndarray, width: int, height: int) -> np.ndarray:
    """One axis after the other, which fixes the order in every version of Pillow."""
    image = Image.fromarray(array)
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def make_image(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if kind == "noise":
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "black and white":  # overshoots as far as can be
        return 255 * generator.integers(0, 2, (height, width, 3), dtype=np.uint8)
    if kind == "halves":  # regular, so that sums end at one half again and again
        return np.broadcast_to((np.indices((height, width)).sum(0) % 2 * 255)[..., None], (height, width, 3)).astype(
            np.uint8
        )
    slope = np.linspace(0, 255, height * width).reshape(height, width, 1)
    return np.broadcast_to(slope, (height, width, 3)).astype(np.uint8)


@settings(deadline=None, max_examples=150)
@given(
    *(LENGTHS, LENGTHS, LENGTHS, LENGTHS),
    st.sampled_from(["noise", "black and white", "halves", "slope"]),
    st.integers(0, 99),
)
def test_every_pixel_is_pillow_s(
    height: int, width: int, new_height: int, new_width: int, kind: str, seed: int
) -> None:
    image = make_image(kind, height, width, seed)
    ours = resize_levels(to_tensor(image), new_height, new_width)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), resize_with_pillow(image, new_width, new_height))


@pytest.mark.parametrize("ratio", [(2, 1), (16, 7), (3, 2), (10, 3), (1, 2), (3, 7), (25, 1)])
def test_simple_ratios_of_blurred_images_are_pillow_s_too(ratio: tuple[int, int]) -> None:
    """Where floating-point arithmetic went wrong: at 16:7 in 2 % of the pixels of a blurred image."""
    photograph = Image.fromarray(make_image("noise", 112, 112, 1)).resize((448, 448), Image.Resampling.BICUBIC)
    image = np.asarray(photograph)
    new = 448 * ratio[1] // ratio[0]
    ours = resize_levels(to_tensor(image), new, new).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, resize_with_pillow(image, new, new))


def test_photographs_prepared_for_the_official_encoder_are_pillow_s(photographs: dict[str, Image.Image]) -> None:
    config = PreprocessConfig(336, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), eight_bit=True)
    for image in photographs.values():
        image = np.asarray(image)
        height, width = image.shape[:2]
        new_width, new_height = max(336, int(336 * width / height)), max(336, int(336 * height / width))
        left, top = (new_width - 336) // 2, (new_height - 336) // 2
        expected = resize_with_pillow(image, new_width, new_height)[top : top + 336, left : left + 336]
        ours = preprocess(to_tensor(image).unsqueeze(0).float() / 255, config)[0, 0]
        assert np.array_equal((ours * 255).round().permute(1, 2, 0).numpy(), expected)


def test_floating_point_arithmetic_would_not_do(photographs: dict[str, Image.Image]) -> None:
    """The reason for integers: the same image without them has pixels of another level."""
    image = photographs["astronaut"]
    pixels = to_tensor(np.asarray(image)).unsqueeze(0).float() / 255
    rounded = (resize_shorter_side(pixels, 336) * 255).round()
    assert (rounded != resize_shorter_side(pixels, 336, eight_bit=True) * 255).float().mean() > 0.01


@given(LENGTHS, LENGTHS)
def test_weights_add_up_and_sums_fit_into_32_bits(length: int, new_length: int) -> None:
    positions, weights = bicubic_weights(length, new_length)
    assert (positions >= 0).all()
    assert (positions < length).all()
    total = weights.sum(dim=0)
    assert ((total - 2**WEIGHT_BITS).abs() <= len(weights)).all(), "each weight is off by half a unit at most"
    assert int(255 * weights.abs().sum(dim=0).max()) + 2 ** (WEIGHT_BITS - 1) < 2**31


def test_all_256_levels_survive_the_way_through_floating_point() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_levels(levels.to(dtype) / 255), levels)
    assert to_levels(torch.tensor([-0.04, 0.0019, 0.002, 0.998, 0.9981, 1.04])).tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (32, 32), (32, 77), (20, 20)])
def test_gradients_are_those_of_the_smooth_resize(height: int, width: int) -> None:
    pixels = (0.3 + 0.4 * torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))).requires_grad_()
    eight_bit = resize_shorter_side(pixels, 32, eight_bit=True)
    smooth = resize_shorter_side(pixels, 32)
    direction = torch.rand(smooth.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((output * direction).sum(), pixels)[0] for output in (eight_bit, smooth))
    assert torch.equal(ours, theirs)
    assert ours.abs().max() > 0
    with torch.no_grad():
        assert torch.allclose(eight_bit, resize_shorter_side(pixels, 32, eight_bit=True), atol=1e-7)


def test_an_image_gives_the_same_pixels_alone_and_in_a_batch() -> None:
    config = PreprocessConfig(24, CLIP_MEAN, CLIP_STD, eight_bit=True)
    pixels = torch.rand(5, 3, 70, 50, generator=torch.Generator().manual_seed(0))
    together = preprocess(pixels, config, coverage="tiles")
    for number in range(5):
        assert torch.equal(preprocess(pixels[number : number + 1], config, coverage="tiles")[0], together[number])


def test_large_images_are_computed_in_parts_without_a_seam() -> None:
    image = make_image("noise", 1500, 800, 0)  # 1500 x 3 lines of 300 sums each are several parts
    ours = resize_axis(to_tensor(image), 300, -1).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, resize_with_pillow(image, 300, 1500))
