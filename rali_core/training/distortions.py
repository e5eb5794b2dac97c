"""Synthetic distortions of known type and level, for ordered training pairs, for descriptions and for tests.

The types follow KADID-10k (Lin et al., "KADID-10k: A large-scale artificially distorted IQA database", QoMEX 2019) and,
beyond it, flaws of generated images: upscaler and checkerboard artefacts, smeared detail, wavy shapes,
WebP. Strengths are our own, five levels each; 1 is the weakest.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

Distortion = Literal[
    "blur", "lens_blur", "motion_blur", "smear", "noise", "chroma_noise", "poisson_noise", "impulse_noise",
    "speckle_noise", "jpeg", "jpeg2000", "webp", "low_resolution", "pixelate", "upscaler", "checkerboard", "ringing",
    "oversharpen", "brighten", "darken", "haze", "contrast_low", "contrast_high", "saturation_low", "saturation_high",
    "colour_shift", "colour_diffusion", "banding", "dither", "patch_jitter", "warp",
]  # fmt: skip
DISTORTIONS: tuple[Distortion, ...] = get_args(Distortion)
LEVELS = 5

Values = NDArray[np.float32]
"""(H, W, 3) in 0..255."""

BLUR_SIGMA = (1.0, 2.0, 3.5, 5.5, 8.0)
"""Standard deviation of the Gaussian in pixels."""
LENS_RADIUS = (1.5, 3.0, 5.0, 7.5, 11.0)
"""Radius of the disc in pixels."""
MOTION_LENGTH = (5, 9, 15, 23, 35)
"""Length of the streak in pixels; its direction is random."""
SMEAR_WINDOW = (3, 5, 7, 9, 11)
"""Window of the median filter in pixels: detail turns into flat patches, as after a strong denoiser."""
NOISE_SIGMA = (8.0, 16.0, 28.0, 45.0, 70.0)
"""Standard deviation of white noise per channel, on the 0..255 scale."""
CHROMA_NOISE_SIGMA = (12.0, 22.0, 36.0, 54.0, 80.0)
"""Standard deviation of white noise in Cb and Cr."""
POISSON_PHOTONS = (120.0, 45.0, 18.0, 8.0, 3.0)
"""Photons per pixel at full white."""
IMPULSE_SHARE = (0.01, 0.03, 0.07, 0.14, 0.25)
"""Share of the pixels that turn black or white."""
SPECKLE_SIGMA = (0.08, 0.15, 0.26, 0.42, 0.65)
"""Standard deviation of the noise that multiplies the image."""
JPEG_QUALITY = (40, 24, 14, 8, 4)
"""Quality setting of libjpeg."""
LIGHT_JPEG_QUALITY = 95
"""A quality setting that nobody sees, and that should not change a score."""
JPEG2000_RATE = (40.0, 80.0, 150.0, 280.0, 500.0)
"""Compression ratio of OpenJPEG."""
WEBP_QUALITY = (30, 16, 8, 3, 0)
"""Quality setting of libwebp."""
LOW_RESOLUTION_FACTOR = (1.6, 2.5, 4.0, 6.0, 9.0)
"""Each side is divided by this and brought back with bicubic interpolation."""
PIXELATE_FACTOR = (2, 3, 5, 8, 12)
"""The same with blocks of one colour."""
UPSCALER_FACTOR = (1.5, 2.0, 3.0, 4.5, 6.5)
"""Each side is divided by this, brought back with Lanczos and sharpened hard: halos and plastic detail."""
CHECKERBOARD_AMPLITUDE = (5.0, 10.0, 18.0, 30.0, 48.0)
"""Amplitude of a two-pixel checkerboard in the image's detail, as transposed convolutions leave it."""
RINGING_CUTOFF = (0.55, 0.36, 0.24, 0.15, 0.09)
"""Frequencies above this share of Nyquist are cut sharply."""
SHARPEN_PERCENT = (120, 250, 450, 800, 1400)
"""Strength of an unsharp mask of radius 2."""
BRIGHTEN_GAMMA = (0.75, 0.55, 0.4, 0.28, 0.18)
"""Exponent on [0, 1]."""
DARKEN_GAMMA = (1.4, 1.9, 2.7, 3.9, 5.5)
"""Exponent on [0, 1]."""
HAZE_SHARE = (0.15, 0.3, 0.45, 0.6, 0.75)
"""Share of light grey that is mixed in."""
CONTRAST_LOW_FACTOR = (0.75, 0.55, 0.38, 0.24, 0.13)
"""Distance from the mean colour is multiplied by this."""
CONTRAST_HIGH_FACTOR = (1.4, 1.9, 2.7, 4.0, 6.5)
"""The same."""
SATURATION_LOW_FACTOR = (0.7, 0.45, 0.25, 0.1, 0.0)
"""Distance from grey is multiplied by this."""
SATURATION_HIGH_FACTOR = (1.6, 2.3, 3.3, 5.0, 8.0)
"""The same."""
SHIFT_PIXELS = (2, 4, 7, 11, 16)
"""Red and blue are moved this far to opposite sides."""
DIFFUSION_SIGMA = (4.0, 8.0, 14.0, 22.0, 34.0)
"""Standard deviation of the Gaussian on Cb and Cr."""
BANDING_STEPS = (20, 12, 8, 5, 3)
"""Values that are left per channel."""
DITHER_STEPS = (8, 6, 4, 3, 2)
"""Values that are left per channel, with ordered dithering."""
JITTER_PIXELS = (1, 2, 4, 7, 11)
"""Pixels are taken from a random place at most this far away, in 2 x 2 patches."""
WARP_PIXELS = (2.0, 4.0, 7.0, 12.0, 18.0)
"""Amplitude of a smooth random displacement of about 20 pixels' wavelength: wavy, melted shapes."""


def distort(image: Image.Image, kind: Distortion, level: int, *, seed: int = 0) -> Image.Image:
    """Distort an image.

    Args:
        image: RGB, 8 bits a channel.
        kind: Type of the distortion.
        level: 1 (weakest) to 5.
        seed: Seed of the types that draw at random; the same seed gives the same pattern at every level.

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
    random = np.random.default_rng(seed)
    if kind in _ON_IMAGES:
        return _ON_IMAGES[kind](image, level - 1)
    values: Values = np.asarray(_ON_VALUES[kind](np.asarray(image, dtype=np.float32), level - 1, random))
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def recode(image: Image.Image, container: str, **options: Any) -> Image.Image:
    """An RGB image after one of Pillow's formats, with its options, such as `quality` of `"JPEG"`."""
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    with Image.open(buffer) as decoded:
        recoded: Image.Image = decoded.convert("RGB")
    return recoded


def resize_square(image: Image.Image, side: int) -> Image.Image:
    """A square image at another side, bicubic; the image itself where that is its side."""
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)


def _shrink_and_enlarge(image: Image.Image, factor: float, down: Image.Resampling, up: Image.Resampling) -> Image.Image:
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, down).resize(image.size, up)


def _upscale(image: Image.Image, level: int) -> Image.Image:
    lanczos = Image.Resampling.LANCZOS
    enlarged = _shrink_and_enlarge(image, UPSCALER_FACTOR[level], lanczos, lanczos)
    return enlarged.filter(ImageFilter.UnsharpMask(radius=2, percent=120, threshold=0))


def _blend_colour(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _diffuse_colour(image: Image.Image, level: int) -> Image.Image:
    luma, *chroma = image.convert("YCbCr").split()
    blurred = [channel.filter(ImageFilter.GaussianBlur(DIFFUSION_SIGMA[level])) for channel in chroma]
    return Image.merge("YCbCr", (luma, *blurred)).convert("RGB")


_ON_IMAGES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "blur": lambda image, level: image.filter(ImageFilter.GaussianBlur(BLUR_SIGMA[level])),
    "smear": lambda image, level: image.filter(ImageFilter.MedianFilter(SMEAR_WINDOW[level])),
    "jpeg": lambda image, level: recode(image, "JPEG", quality=JPEG_QUALITY[level]),
    "jpeg2000": lambda image, level: recode(
        image, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[JPEG2000_RATE[level]]
    ),
    "webp": lambda image, level: recode(image, "WEBP", quality=WEBP_QUALITY[level]),
    "low_resolution": lambda image, level: _shrink_and_enlarge(
        image, LOW_RESOLUTION_FACTOR[level], Image.Resampling.BICUBIC, Image.Resampling.BICUBIC
    ),
    "pixelate": lambda image, level: _shrink_and_enlarge(
        image, PIXELATE_FACTOR[level], Image.Resampling.BOX, Image.Resampling.NEAREST
    ),
    "upscaler": _upscale,
    "oversharpen": lambda image, level: image.filter(
        ImageFilter.UnsharpMask(radius=2, percent=SHARPEN_PERCENT[level], threshold=0)
    ),
    "contrast_low": lambda image, level: ImageEnhance.Contrast(image).enhance(CONTRAST_LOW_FACTOR[level]),
    "contrast_high": lambda image, level: ImageEnhance.Contrast(image).enhance(CONTRAST_HIGH_FACTOR[level]),
    "saturation_low": lambda image, level: _blend_colour(image, SATURATION_LOW_FACTOR[level]),
    "saturation_high": lambda image, level: _blend_colour(image, SATURATION_HIGH_FACTOR[level]),
    "colour_diffusion": _diffuse_colour,
}


def _convolve(values: Values, kernel: NDArray[np.float64]) -> Any:
    from scipy.signal import fftconvolve

    margin = kernel.shape[0] // 2
    padded = np.pad(values, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    result: Values = fftconvolve(padded, kernel[:, :, None].astype(np.float32), mode="valid", axes=(0, 1))
    return result


def _lens_blur(values: Values, level: int, _: np.random.Generator) -> Any:
    radius = LENS_RADIUS[level]
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)  # a soft rim, so that small radii differ
    return _convolve(values, disc / disc.sum())


def _motion_blur(values: Values, level: int, random: np.random.Generator) -> Any:
    length, angle = MOTION_LENGTH[level], random.uniform(0, np.pi)
    reach = length // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    streak = np.clip(1 - np.abs(across), 0, 1) * (np.abs(along) <= reach + 0.5)
    return _convolve(values, streak / streak.sum())


def _noise(values: Values, level: int, random: np.random.Generator) -> Any:
    return values + NOISE_SIGMA[level] * random.standard_normal(values.shape, dtype=np.float32)


def _chroma_noise(values: Values, level: int, random: np.random.Generator) -> Any:
    blue, red = CHROMA_NOISE_SIGMA[level] * random.standard_normal((2, *values.shape[:2]), dtype=np.float32)
    # Cb and Cr to RGB: ITU-T T.871 (JFIF).
    return values + np.stack([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue], axis=-1)


def _poisson_noise(values: Values, level: int, random: np.random.Generator) -> Any:
    photons = POISSON_PHOTONS[level]
    counted: Values = (random.poisson(values / 255 * photons) * (255 / photons)).astype(np.float32)
    return counted


def _impulse_noise(values: Values, level: int, random: np.random.Generator) -> Any:
    drawn = random.random(values.shape[:2], dtype=np.float32)
    white = random.random(values.shape[:2], dtype=np.float32) < 0.5
    hit = drawn < IMPULSE_SHARE[level]
    return np.where(hit[..., None], np.where(white, 255.0, 0.0)[..., None], values).astype(np.float32)


def _speckle_noise(values: Values, level: int, random: np.random.Generator) -> Any:
    return values * (1 + SPECKLE_SIGMA[level] * random.standard_normal(values.shape, dtype=np.float32))


def _checkerboard(values: Values, level: int, _: np.random.Generator) -> Any:
    height, width = values.shape[:2]
    y, x = np.mgrid[:height, :width]
    board = ((x // 2 + y // 2) % 2 * 2 - 1).astype(np.float32)
    grey = values.mean(axis=2)
    gradient = np.hypot(*np.gradient(grey))
    activity = 0.5 + np.clip(gradient / 20, 0, 1)  # stronger where there is detail
    return values + (CHECKERBOARD_AMPLITUDE[level] * board * activity)[..., None].astype(np.float32)


def _ringing(values: Values, level: int, _: np.random.Generator) -> Any:
    margin = 32  # mirrored, so that opposite borders do not ring into each other
    padded = np.pad(values, ((margin, margin), (margin, margin), (0, 0)), mode="reflect" if min(
        values.shape[:2]) > margin else "edge")  # fmt: skip
    vertical = np.fft.fftfreq(padded.shape[0])[:, None] * 2
    horizontal = np.fft.rfftfreq(padded.shape[1])[None, :] * 2
    kept = np.hypot(vertical, horizontal) <= RINGING_CUTOFF[level]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * kept[..., None]
    filtered = np.fft.irfft2(spectrum, s=padded.shape[:2], axes=(0, 1)).astype(np.float32)
    return filtered[margin:-margin, margin:-margin]


def _gamma(exponents: tuple[float, ...]) -> Callable[[Values, int, np.random.Generator], Any]:
    return lambda values, level, _: (255 * (values / 255) ** exponents[level]).astype(np.float32)


def _haze(values: Values, level: int, _: np.random.Generator) -> Any:
    share = HAZE_SHARE[level]
    return (1 - share) * values + share * 215


def _shift_colour(values: Values, level: int, random: np.random.Generator) -> Any:
    angle = random.uniform(0, 2 * np.pi)
    down, right = round(SHIFT_PIXELS[level] * np.sin(angle)), round(SHIFT_PIXELS[level] * np.cos(angle))
    y, x = np.mgrid[: values.shape[0], : values.shape[1]]
    shifted = values.copy()
    for channel, sign in ((0, 1), (2, -1)):
        rows = np.clip(y + sign * down, 0, values.shape[0] - 1)
        columns = np.clip(x + sign * right, 0, values.shape[1] - 1)
        shifted[..., channel] = values[rows, columns, channel]
    return shifted


def _banding(values: Values, level: int, _: np.random.Generator) -> Any:
    step = 255 / (BANDING_STEPS[level] - 1)
    return (values / step).round() * step


def _dither(values: Values, level: int, _: np.random.Generator) -> Any:
    bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) / 16 - 0.5 + 1 / 32
    height, width = values.shape[:2]
    threshold = np.tile(bayer, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
    step = 255 / (DITHER_STEPS[level] - 1)
    return ((values / step + threshold).round() * step).astype(np.float32)


def _jitter_patches(values: Values, level: int, random: np.random.Generator) -> Any:
    height, width = values.shape[:2]
    unit = random.uniform(-1, 1, size=(2, (height + 1) // 2, (width + 1) // 2))
    offsets = (unit * JITTER_PIXELS[level]).round().astype(int).repeat(2, axis=1).repeat(2, axis=2)
    y, x = np.mgrid[:height, :width]
    rows = np.clip(y + offsets[0, :height, :width], 0, height - 1)
    columns = np.clip(x + offsets[1, :height, :width], 0, width - 1)
    return values[rows, columns]


def _warp(values: Values, level: int, random: np.random.Generator) -> Any:
    from scipy.ndimage import gaussian_filter, map_coordinates

    fields = [gaussian_filter(random.standard_normal(values.shape[:2]), 10) for _ in range(2)]
    y, x = np.mgrid[: values.shape[0], : values.shape[1]].astype(np.float64)
    moved = [
        axis + WARP_PIXELS[level] * field / max(float(np.abs(field).max()), 1e-12)
        for axis, field in zip((y, x), fields, strict=True)
    ]
    channels = [map_coordinates(values[..., c], moved, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


_ON_VALUES: dict[str, Callable[[Values, int, np.random.Generator], Any]] = {
    "lens_blur": _lens_blur,
    "motion_blur": _motion_blur,
    "noise": _noise,
    "chroma_noise": _chroma_noise,
    "poisson_noise": _poisson_noise,
    "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise,
    "checkerboard": _checkerboard,
    "ringing": _ringing,
    "brighten": _gamma(BRIGHTEN_GAMMA),
    "darken": _gamma(DARKEN_GAMMA),
    "haze": _haze,
    "colour_shift": _shift_colour,
    "banding": _banding,
    "dither": _dither,
    "patch_jitter": _jitter_patches,
    "warp": _warp,
}
