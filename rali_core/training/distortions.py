"""Synthetic distortions of known type and level, for ordered training pairs and for tests.

The types follow those that every full-reference set has in common (LIVE: Sheikh et al. 2006; KADID-10k: Lin et al.
2019): Gaussian blur, additive white noise, JPEG compression, and low resolution. Five levels each, 1 is the weakest.
"""

from __future__ import annotations

import io
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFilter

Distortion = Literal["blur", "noise", "jpeg", "low_resolution"]
DISTORTIONS: tuple[Distortion, ...] = get_args(Distortion)
LEVELS = 5

BLUR_SIGMA = (1.0, 2.0, 3.5, 5.5, 8.0)
"""Standard deviation of the Gaussian in pixels."""
NOISE_SIGMA = (8.0, 16.0, 28.0, 45.0, 70.0)
"""Standard deviation of white noise per channel, on the 0..255 scale."""
JPEG_QUALITY = (40, 24, 14, 8, 4)
"""Quality setting of libjpeg."""
LOW_RESOLUTION_FACTOR = (1.6, 2.5, 4.0, 6.0, 9.0)
"""Each side is divided by this and brought back with bicubic interpolation."""


def distort(image: Image.Image, kind: Distortion, level: int, *, seed: int = 0) -> Image.Image:
    """Distort an image.

    Args:
        image: RGB, 8 bits a channel.
        kind: Type of the distortion.
        level: 1 (weakest) to 5.
        seed: Seed of the noise; the other types are deterministic.

    Returns:
        A new RGB image of the same size.

    Raises:
        ValueError: Unknown `kind`, or `level` outside 1..5.
    """
    if kind not in DISTORTIONS:
        raise ValueError(f"kind must be one of {', '.join(DISTORTIONS)}, got {kind!r}")
    if not 1 <= level <= LEVELS:
        raise ValueError(f"level must lie in 1..{LEVELS}, got {level}")
    image = image.convert("RGB")
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(BLUR_SIGMA[level - 1]))
    if kind == "noise":
        values = np.asarray(image, dtype=np.float32)
        noise = np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
        noisy = values + NOISE_SIGMA[level - 1] * noise
        return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    if kind == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY[level - 1])
        with Image.open(buffer) as decoded:
            compressed: Image.Image = decoded.convert("RGB")
        return compressed
    factor = LOW_RESOLUTION_FACTOR[level - 1]
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)
