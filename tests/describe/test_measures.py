"""Each measurement: known values, and a monotonic answer to the distortion that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab
from skimage.measure import blur_effect
from skimage.restoration import estimate_sigma

from rali_core.describe.measures import (
    Measurements,
    crop_boxes,
    measure_blocking,
    measure_blur,
    measure_clipping,
    measure_colour,
    measure_colourfulness,
    measure_contrast,
    measure_image,
    measure_noise,
    measure_resolution,
)
from rali_core.training.distortions import distort

Photographs = dict[str, Image.Image]
NAMES = ("astronaut", "coffee", "cat", "rocket", "motorcycle")


def luma_of(image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(image.convert("L"), dtype=np.float32)


def to_image(values: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def multiply(*factors: float) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, level: to_image(np.asarray(image) * factors[level - 1])


def flatten(image: Image.Image, level: int) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    return to_image(128 + (values - 128) * (0.8, 0.6, 0.4, 0.25, 0.12)[level - 1])


def fade(image: Image.Image, level: int) -> Image.Image:
    return Image.blend(image, image.convert("L").convert("RGB"), (0.2, 0.4, 0.6, 0.75, 0.9)[level - 1])


def tint_grey(image: Image.Image, level: int) -> Image.Image:
    values = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    return to_image(values * 0.7 + 30 + np.array([1.0, 0.0, -1.0]) * (4, 8, 16, 24, 30)[level - 1])


def by_kind(kind: str) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, level: distort(image, kind, level)  # type: ignore[arg-type]


def cast_of(image: Image.Image) -> float:
    return measure_colour(np.asarray(image)).cast


ANSWERS = [
    # measure, distortion, levels (0 is the photograph itself), 1 rises and -1 falls
    pytest.param(lambda i: measure_blur(luma_of(i)), by_kind("blur"), range(6), 1, id="blur"),
    pytest.param(lambda i: measure_noise(luma_of(i)), by_kind("noise"), range(6), 1, id="noise"),
    pytest.param(lambda i: measure_resolution(luma_of(i)), by_kind("low_resolution"), range(6), -1, id="resolution"),
    pytest.param(lambda i: measure_blocking(luma_of(i)), by_kind("jpeg"), range(6), 1, id="blocking"),
    pytest.param(lambda i: measure_contrast(luma_of(i)), flatten, range(6), -1, id="contrast"),
    pytest.param(lambda i: measure_colourfulness(np.asarray(i)), fade, range(6), -1, id="colourfulness"),
    pytest.param(lambda i: measure_colour(np.asarray(i)).lightness, multiply(0.8, 0.6, 0.4, 0.25, 0.12), range(6), -1, id="dark"),
    pytest.param(lambda i: measure_colour(np.asarray(i)).lightness, multiply(1.2, 1.4, 1.7, 2.2, 3.0), range(6), 1, id="bright"),
    pytest.param(lambda i: measure_clipping(luma_of(i))[0], multiply(0.8, 0.6, 0.4, 0.25, 0.12), range(6), 1, id="shadows"),
    pytest.param(lambda i: measure_clipping(luma_of(i))[1], multiply(1.7, 2.2, 3.0, 4.0, 6.0), range(6), 1, id="highlights"),
    pytest.param(cast_of, tint_grey, range(1, 6), 1, id="cast"),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("measure", "damage", "levels", "direction"), ANSWERS)
def test_a_measurement_follows_its_own_distortion_on_photographs(
    photographs: Photographs,
    name: str,
    measure: Callable[[Image.Image], float],
    damage: Callable[[Image.Image, int], Image.Image],
    levels: range,
    direction: int,
) -> None:
    photograph = photographs[name]
    values = [measure(damage(photograph, level) if level else photograph) for level in levels]
    assert all(direction * (after - before) > 0 for before, after in pairwise(values)), values


def test_white_noise_is_measured_to_five_per_cent() -> None:
    for sigma in (2.0, 10.0, 30.0):
        noise = np.random.default_rng(0).normal(128.0, sigma, (256, 256)).astype(np.float32)
        assert measure_noise(noise) == pytest.approx(sigma, rel=0.05)


def test_noise_agrees_with_scikit_image_where_no_coefficient_is_zero(photographs: Photographs) -> None:
    luma = luma_of(photographs["coffee"]) + np.random.default_rng(0).normal(0.0, 3.0, (400, 600)).astype(np.float32)
    assert measure_noise(luma) == pytest.approx(estimate_sigma(luma), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_blur_and_colour_have_the_values_of_scikit_image(photographs: Photographs, name: str) -> None:
    photograph = photographs[name]
    luma = luma_of(photograph)
    assert measure_blur(luma) == pytest.approx(blur_effect(luma / 255.0, h_size=11), abs=1e-6)
    lab = rgb2lab(np.asarray(photograph)[::2, ::2])
    light, green_red, blue_yellow = lab.reshape(-1, 3).mean(axis=0)
    colour = measure_colour(np.asarray(photograph))
    assert colour.lightness == pytest.approx(light, abs=1e-3)
    assert colour.cast == pytest.approx(np.hypot(green_red, blue_yellow), abs=1e-2)
    spread = np.hypot(lab[..., 1].std(), lab[..., 2].std())
    assert colour.cast_dominance == pytest.approx((colour.cast - spread) / spread, abs=1e-2)


@pytest.mark.parametrize("cutoff", [0.25, 0.5, 0.8])
def test_resolution_finds_where_a_natural_spectrum_ends(cutoff: float) -> None:
    # Amplitudes of 1 / f with random phases up to the cutoff, nothing beyond: the roll-off lies at 95 % of it.
    side = 256
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]) * 2.0
    amplitude = np.where((radius > 0) & (radius <= cutoff), 1.0 / np.maximum(radius, 1e-9), 0.0)
    noise = np.fft.fft2(np.random.default_rng(0).standard_normal((side, side)))
    image = np.fft.ifft2(noise * amplitude).real
    luma = (128.0 + 40.0 * image / image.std()).astype(np.float32)
    assert measure_resolution(luma) == pytest.approx(0.95 * cutoff, abs=0.03)


def test_blocking_counts_only_steps_on_the_grid() -> None:
    steps = np.repeat(np.arange(8) % 2 * 20.0, 8)[None, :].repeat(64, axis=0).astype(np.float32)
    # Steps of 20 across every border and none inside, in one of two directions; 0.25 is the floor.
    assert measure_blocking(steps) == pytest.approx(((20.25 / 0.25) + 1.0) / 2.0)
    assert measure_blocking(np.roll(steps, 3, axis=1)) < 1.0


def test_colour_measures_have_their_known_values() -> None:
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert measure_colourfulness(red) == pytest.approx(0.3 * np.hypot(255.0, 127.5), rel=1e-5)
    colour = measure_colour(red)
    # CIE L*a*b* of sRGB red under D65.
    assert (colour.lightness, colour.cast, colour.cast_hue) == pytest.approx((53.24, 104.55, 40.0), abs=0.05)
    grey = measure_colour(np.full((32, 32, 3), 119, dtype=np.uint8))
    assert grey.lightness == pytest.approx(50.03, abs=0.05)
    assert grey.cast < 0.01
    halves = np.repeat(np.float32([0, 255]), 16)[None, :].repeat(32, axis=0)
    assert measure_contrast(halves) == pytest.approx(0.5)
    assert measure_clipping(halves) == (0.5, 0.5)


@pytest.mark.parametrize("size", [(16, 16), (17, 300), (64, 40)])
def test_a_blank_image_has_no_detail_and_no_artefact(size: tuple[int, int]) -> None:
    blank = measure_image(Image.new("RGB", size, (90, 90, 90)))
    assert (blank.blur, blank.resolution) == (1.0, 0.0)
    assert blank.noise < 1e-6
    assert blank.blocking == 1.0
    assert np.isfinite(astuple(blank)).all()


def test_all_measurements_of_a_photograph_are_finite_and_do_not_depend_on_the_mode(photographs: Photographs) -> None:
    measured = measure_image(photographs["cat"])
    assert isinstance(measured, Measurements)
    assert np.isfinite(astuple(measured)).all()
    assert measure_image(photographs["cat"].convert("RGBA")) == measured


def test_an_image_too_small_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels to measure, got \(40, 15\)"):
        measure_image(Image.new("RGB", (40, 15)))


@pytest.mark.parametrize(
    ("size", "count"), [((512, 512), 1), ((1536, 1536), 1), ((3840, 2160), 9), ((600, 5000), 6), ((16, 200_000), 3)]
)
def test_an_image_is_measured_on_a_bounded_number_of_pixels(size: tuple[int, int], count: int) -> None:
    boxes = crop_boxes(*size)
    assert len(boxes) == count
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert (left % 8, top % 8) == (0, 0), "on the grid of JPEG's blocks"
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) <= 1536 * 1536
    assert len({(right - left, bottom - top) for left, top, right, bottom in boxes}) == 1


@pytest.mark.parametrize("kind", ["noise", "jpeg"])
@pytest.mark.parametrize("name", ["coffee", "cat"])
def test_crops_of_a_large_image_measure_what_all_of_it_does(photographs: Photographs, name: str, kind: str) -> None:
    large = by_kind(kind)(photographs[name].resize((2400, 1800), Image.Resampling.BICUBIC), 1)
    measured = measure_image(large)
    luma = luma_of(large)
    assert measured.blur == pytest.approx(measure_blur(luma), abs=0.03)
    assert measured.noise == pytest.approx(measure_noise(luma), abs=0.1)
    assert measured.resolution == pytest.approx(measure_resolution(luma), abs=0.06)
    assert measured.blocking == pytest.approx(measure_blocking(luma), abs=0.1)
    assert measured.contrast == pytest.approx(measure_contrast(luma), abs=0.02)
    assert measured.lightness == pytest.approx(measure_colour(np.asarray(large)).lightness, abs=1.0)
    assert measured.colourfulness == pytest.approx(measure_colourfulness(np.asarray(large)), abs=2.0)
