"""All measurements of an image in one record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...images import to_rgb
from .artefacts import measure_banding, measure_blocking, measure_ringing
from .structure import measure_blur, measure_noise, measure_resolution
from .tone import measure_clipping, measure_colour, measure_colourfulness, measure_contrast

SMALLEST = 16
"""Pixels a side; in a smaller image the measures mean nothing."""


@dataclass(frozen=True)
class Measurements:
    """What was measured on one image; the modules named tell how and after whom.

    Attributes:
        blur: In [0, 1]; 0 is sharp (`structure`).
        noise: Standard deviation in grey levels of 0..255; 0 is clean (`structure`).
        resolution: How far detail reaches, as a share of the Nyquist frequency, in [0, 1]; 1 is best (`structure`).
        blocking: Step at the borders of 8 x 8 blocks over that inside; 1 is none, more is worse (`artefacts`).
        ringing: Ripples beside edges in grey levels of 0..255; 0 is clean (`artefacts`).
        banding: Height of false contours in grey levels per pixel; 0 is smooth (`artefacts`).
        lightness: Mean L*, 0 (black) to 100 (white); extremes are worse (`tone`).
        shadows: Share of the image clipped to black, in [0, 1]; 0 is best (`tone`).
        highlights: Share of the image clipped to white, in [0, 1]; 0 is best (`tone`).
        contrast: Root mean square contrast, in [0, 0.5]; low values are flat (`tone`).
        cast: Distance of the mean colour from grey in the a*b* plane; 0 is neutral (`tone`).
        cast_hue: Direction of the cast in degrees: 0 red-magenta, 90 yellow, 180 green, 270 blue (`tone`).
        cast_dominance: Above 0 the whole image leans to the cast's side (`tone`).
        colourfulness: 0 is grey, 45 average, 110 and more extreme (`tone`).
    """

    blur: float
    noise: float
    resolution: float
    blocking: float
    ringing: float
    banding: float
    lightness: float
    shadows: float
    highlights: float
    contrast: float
    cast: float
    cast_hue: float
    cast_dominance: float
    colourfulness: float


def measure_image(image: Image.Image) -> Measurements:
    """Measure an image at its own size; the time grows with the number of pixels.

    Args:
        image: Any 8-bit mode, at least 16 pixels a side; transparency is composited on white.

    Raises:
        ValueError: The image is smaller than 16 pixels on a side.
    """
    if min(image.size) < SMALLEST:
        raise ValueError(f"expected an image of at least {SMALLEST} x {SMALLEST} pixels to measure, got {image.size}")
    image = to_rgb(image)
    rgb = np.asarray(image)
    grey = np.asarray(image.convert("L"))
    luma = grey.astype(np.float32)
    shadows, highlights = measure_clipping(luma)
    colour = measure_colour(rgb)
    return Measurements(
        blur=measure_blur(luma),
        noise=measure_noise(luma),
        resolution=measure_resolution(luma),
        blocking=measure_blocking(luma),
        ringing=measure_ringing(luma),
        banding=measure_banding(grey),
        lightness=colour.lightness,
        shadows=shadows,
        highlights=highlights,
        contrast=measure_contrast(luma),
        cast=colour.cast,
        cast_hue=colour.cast_hue,
        cast_dominance=colour.cast_dominance,
        colourfulness=measure_colourfulness(rgb),
    )
