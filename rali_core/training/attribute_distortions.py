"""Further distortions for the probes of image attributes: other ways to the flaws of `distortions.py`.

A probe that knows one way alone detects that way and not its attribute: gamma curves and a gain both overexpose. Some
of these are trained on, the others are held out; `attributes.PROBED` says which. Five levels each, 1 is the weakest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from .distortions import LEVELS, Distortion, distort

Levels = tuple[float, float, float, float, float]


def distort_further(image: Image.Image, kind: str, level: int, *, seed: int = 0) -> Image.Image:
    """As `distortions.distort`, with the kinds of `FURTHER` too, and with several, such as `"blur+jpeg"`, in turn.

    Raises:
        ValueError: As there.
    """
    first, *rest = kind.split("+")
    for part in rest:
        return distort_further(distort_further(image, first, level, seed=seed), part, level, seed=seed)
    if kind not in FURTHER:
        return distort(image, cast(Distortion, kind), level, seed=seed)
    if not 1 <= level <= LEVELS:
        raise ValueError(f"level must lie in 1..{LEVELS}, got {level}")
    return FURTHER[kind](image.convert("RGB"), level - 1)


def _curve(image: Image.Image, curve: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Image.Image:
    """A curve on [0, 1], which is clipped there, on every channel."""
    table = (curve(np.arange(256) / 255).clip(0, 1) * 255).round().astype(int)
    return image.point(table.tolist() * len(image.getbands()))


def _gain(image: Image.Image, level: int, factors: Levels) -> Image.Image:
    return _curve(image, lambda values: values * factors[level])


def _exposure(image: Image.Image, level: int, stops: Levels) -> Image.Image:
    """Stops in linear light, as a camera's exposure; the transfer function is IEC 61966-2-1 (sRGB)."""

    def expose(values: NDArray[np.float64]) -> NDArray[np.float64]:
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) * 2 ** stops[level]
        return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055)

    return _curve(image, expose)


def _s_curve(image: Image.Image, level: int) -> Image.Image:
    steepness = (4.0, 7.0, 11.0, 17.0, 26.0)[level]

    def logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = 1 / (1 + np.exp(steepness * np.array([0.5, -0.5])))
        curve: NDArray[np.float64] = (1 / (1 + np.exp(-steepness * (values - 0.5))) - low) / (high - low)
        return curve

    return _curve(image, logistic)


def _saturate(image: Image.Image, curve: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Image.Image:
    """A curve on the saturation of HSV."""
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue, _curve(saturation, curve), value)).convert("RGB")


def _enlarge_colours(image: Image.Image, level: int) -> Image.Image:
    """Lateral chromatic aberration: red is enlarged and blue reduced about the centre."""
    width, height = image.size
    planes = []
    for plane, sign in zip(image.split(), (1, 0, -1), strict=True):
        scale = 1 + sign * (0.004, 0.008, 0.015, 0.025, 0.04)[level]
        left, top = width / 2 * (1 - 1 / scale), height / 2 * (1 - 1 / scale)
        affine = (1 / scale, 0, left, 0, 1 / scale, top)
        planes.append(plane.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC))
    return Image.merge("RGB", planes)


def _enhance_edges(image: Image.Image, level: int) -> Image.Image:
    for _ in range(level + 1):
        image = image.filter(ImageFilter.EDGE_ENHANCE)
    return image


def _checkerboard_of_three(image: Image.Image, level: int) -> Image.Image:
    """Of three pixels and all over the image; that of `distortions.py` has two and lies in detail."""
    y, x = np.mgrid[: image.height, : image.width]
    board = (x // 3 + y // 3) % 2 * 2.0 - 1
    values = np.asarray(image, dtype=np.float32) + (board * (4, 8, 14, 24, 38)[level])[..., None]
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


FURTHER: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "gain_up": partial(_gain, factors=(1.3, 1.6, 2.0, 2.7, 3.6)),
    "gain_down": partial(_gain, factors=(0.75, 0.55, 0.4, 0.27, 0.16)),
    "exposure_up": partial(_exposure, stops=(0.6, 1.2, 1.8, 2.5, 3.3)),
    "exposure_down": partial(_exposure, stops=(-0.8, -1.6, -2.5, -3.5, -4.6)),
    "s_curve": _s_curve,
    "autocontrast": lambda image, level: ImageOps.autocontrast(image, cutoff=(6, 12, 18, 25, 33)[level]),
    "hsv_low": lambda image, level: _saturate(image, lambda s: s * (0.7, 0.45, 0.25, 0.1, 0.0)[level]),
    "hsv_high": lambda image, level: _saturate(image, lambda s: s * (1.5, 2.0, 2.8, 4.0, 7.0)[level]),
    "muted": lambda image, level: _saturate(image, lambda s: s ** (1.4, 2.0, 3.0, 4.5, 8.0)[level]),
    "vibrance": lambda image, level: _saturate(image, lambda s: 1 - (1 - s) ** (1.6, 2.3, 3.4, 5.0, 8.0)[level]),
    "lateral_aberration": _enlarge_colours,
    "edge_filter": _enhance_edges,
    "checkerboard_of_three": _checkerboard_of_three,
    "adaptive_palette": lambda image, level: image.quantize(
        (48, 24, 12, 7, 4)[level], dither=Image.Dither.NONE
    ).convert("RGB"),
}
"""Kind to a function of an RGB image and a level from 0."""
