"""Measurements of an image: blur, noise, resolution, blocking, exposure, contrast and colour.

- Blur: F. Crete et al., "The blur effect", SPIE 6492, 2007, with the values of `skimage.measure.blur_effect`.
- Noise: D. L. Donoho and I. M. Johnstone, Biometrika 81, 1994: the median absolute deviation of the finest diagonal
  wavelet coefficients, as in `skimage.restoration.estimate_sigma`, but coefficients that are exactly zero (flat or
  clipped areas) count, so a clean drawing has no noise.
- Effective resolution: the power spectrum of a natural image falls as 1 / f^2 (D. J. Field, JOSA A 4, 1987), so f^2
  times the radial power is flat, and an image that was enlarged by s ends at 1 / s of the Nyquist frequency. Reported
  is the frequency below which a share of this whitened power lies (the spectral roll-off of audio analysis).
- Blocking: Z. Wang, H. R. Sheikh and A. C. Bovik, ICIP 2002: mean absolute difference across the borders of 8 x 8
  blocks and inside blocks. Reported is their quotient and not the fitted score, which also falls with blur.
- Exposure: mean CIE 1976 lightness L*. Contrast: root mean square (E. Peli, JOSA A 7, 1990).
- Colour cast: the equivalent circle of F. Gasparini and R. Schettini, Pattern Recognition 37, 2004, in the a*b* plane,
  but one circle for the whole image.
- Colourfulness: D. Hasler and S. Suesstrunk, "Measuring colorfulness in natural images", SPIE 5007, 2003, eq. 7 (M3).

Every measure takes one plane (H, W) or a stack of crops of one image (N, H, W), which it measures as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pywt
import scipy.fft
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ..images import to_rgb

SMALLEST = 16
"""Pixels a side; in a smaller image the measures mean nothing."""
CROP, CROPS = 512, 3
"""Side of a crop in pixels, and most crops along a side; an image of more pixels than these hold is cropped."""
BLUR_WINDOW = 11  # side of the averaging filter in pixels, as in the paper
MAD_OF_A_NORMAL = 0.6744897501960817  # median absolute deviation of a standard normal variable
ROLL_OFF = 0.95  # share of the whitened power that lies below the effective resolution
BLOCK = 8  # side of the transform blocks of JPEG in pixels
FLOOR = 0.25  # grey levels; lower bound of activity, so that blank areas give no huge quotients
DARK, BRIGHT = 4, 251  # grey levels; luma at or beyond them counts as clipped

Luma = NDArray[np.float32]
"""(H, W) or (N, H, W) in [0, 255]: ITU-R BT.601 luma, as Pillow's mode L."""


@dataclass(frozen=True)
class Measurements:
    """The measurements of one image."""

    blur: float  # in [0, 1]; 0 is sharp
    noise: float  # standard deviation in grey levels of 0..255; 0 is clean
    resolution: float  # how far detail reaches, as a share of the Nyquist frequency, in [0, 1]; 1 is best
    blocking: float  # step at the borders of 8 x 8 blocks over that inside; 1 is none, more is worse
    lightness: float  # mean L*, 0 (black) to 100 (white); extremes are worse
    shadows: float  # share of the image clipped to black, in [0, 1]; 0 is best
    highlights: float  # share of the image clipped to white, in [0, 1]; 0 is best
    contrast: float  # root mean square contrast, in [0, 0.5]; low values are flat
    cast: float  # distance of the mean colour from grey in the a*b* plane; 0 is neutral, about 10 a visible cast
    cast_hue: float  # direction of the cast in degrees in [0, 360): 0 red-magenta, 90 yellow, 180 green, 270 blue
    cast_dominance: float  # (cast - spread) / spread; above 0 the whole image leans to the cast's side
    colourfulness: float  # 0 is grey, 15 slightly, 45 averagely, 82 highly colourful; 110 and more is extreme


def measure_image(image: Image.Image) -> Measurements:
    """Measure an image at its own size.

    An image of more than 1536 x 1536 pixels is measured on at most nine crops of 512 x 512 pixels that are evenly
    spread over it, together and as if they were one image, so that the time is bounded.

    Args:
        image: Any 8-bit mode; transparency is composited on white.

    Raises:
        ValueError: The image is smaller than 16 pixels on a side.
    """
    if min(image.size) < SMALLEST:
        raise ValueError(f"expected an image of at least {SMALLEST} x {SMALLEST} pixels to measure, got {image.size}")
    crops = [to_rgb(image.crop(box)) for box in crop_boxes(*image.size)]
    rgb = np.stack([np.asarray(crop) for crop in crops])
    luma = np.stack([np.asarray(crop.convert("L")) for crop in crops]).astype(np.float32)
    lightness, cast, hue, dominance = measure_colour(rgb)
    return Measurements(
        measure_blur(luma), measure_noise(luma), measure_resolution(luma), measure_blocking(luma), lightness,
        *measure_clipping(luma), measure_contrast(luma), cast, hue, dominance, measure_colourfulness(rgb),
    )  # fmt: skip


def crop_boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """The measured parts of an image, as (left, top, right, bottom); corners lie on the grid of JPEG's blocks."""
    if width * height <= (CROP * CROPS) ** 2:
        return [(0, 0, width, height)]
    sides = []
    for side in (width, height):  # each crop in the middle of an equal share of the side
        length, count = min(side, CROP), min(-(-side // CROP), CROPS)
        starts = [int(side * (index + 0.5) / count - length / 2) for index in range(count)]
        sides.append([(at := min(max(start, 0), side - length) // BLOCK * BLOCK, at + length) for start in starts])
    return [(left, top, right, bottom) for top, bottom in sides[1] for left, right in sides[0]]


def measure_blur(luma: Luma) -> float:
    """Blur in [0, 1]; 0 is sharp, 1 is completely blurred, also for an image without any structure."""
    values = []
    for axis in (-1, -2):
        sharp = _sobel(luma, axis)
        total = float(sharp.sum(dtype=np.float64))
        sharp -= _sobel(ndimage.uniform_filter1d(luma, BLUR_WINDOW, axis=axis), axis)
        lost = float(np.maximum(sharp, 0.0, out=sharp).sum(dtype=np.float64))
        values.append(1.0 - lost / total if total > 0.0 else 1.0)
    return max(values)


def _sobel(luma: Luma, axis: int) -> Luma:
    """Absolute Sobel gradient along one axis, without the border that scikit-image's blur measure leaves out."""
    if axis == -1:
        luma = luma.swapaxes(-1, -2)
    step = luma[..., 3:, :] - luma[..., 1:-2, :]
    smooth: Luma = step[..., 1:-1] * np.float32(2.0)
    smooth += step[..., :-2]
    smooth += step[..., 2:]
    return np.abs(smooth, out=smooth)[..., 1:]


def measure_noise(luma: Luma) -> float:
    """Standard deviation of noise in grey levels; 0 is clean. Fine texture counts as noise."""
    diagonal = pywt.dwt(pywt.dwt(luma, "db2", axis=-1)[1], "db2", axis=-2)[1]
    return float(np.median(np.abs(diagonal)) / MAD_OF_A_NORMAL)


def measure_resolution(luma: Luma) -> float:
    """Effective resolution, a share of the Nyquist frequency: 1 is detail down to the pixel, 0 an image of one colour.

    Noise counts as detail. Crops are averaged as in Welch's method.
    """
    window, index, count = _spectral_grid(*luma.shape[-2:])
    mean = (luma * window).sum(axis=(-2, -1), keepdims=True) / window.sum()
    spectrum = scipy.fft.rfft2((luma - mean) * window)
    power = (spectrum.real**2 + spectrum.imag**2).reshape(-1, index.size).sum(axis=0)
    bins = len(count)
    frequency = (np.arange(bins) + 1.0) / bins
    total = np.bincount(index, weights=power, minlength=bins + 2)[1:-1]
    whitened = np.cumsum(total / np.maximum(count, 1) * frequency**2)
    return float(np.interp(ROLL_OFF * whitened[-1], whitened, frequency)) if whitened[-1] > 1e-6 else 0.0


@lru_cache(maxsize=4)
def _spectral_grid(height: int, width: int) -> tuple[Luma, NDArray[np.int64], NDArray[np.int64]]:
    """Hann window (H, W), ring of each frequency of a real FFT (the last is beyond Nyquist), sizes of the rings."""
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]) * 2.0
    bins = max(8, min(height, width) // 2)
    index = np.minimum(np.ceil(radius * bins), bins + 1).astype(np.int64).ravel()
    return window, index, np.bincount(index, minlength=bins + 2)[1:-1]


def measure_blocking(luma: Luma) -> float:
    """Visibility of an 8 x 8 block grid that starts at the upper left corner; 1 for less than two blocks a side."""
    ratios = []
    for plane in (luma, luma.swapaxes(-1, -2)):
        steps = np.abs(np.diff(plane, axis=-1)).mean(axis=tuple(range(luma.ndim - 1)))
        border = steps[BLOCK - 1 :: BLOCK]
        inside = np.delete(steps, np.arange(BLOCK - 1, len(steps), BLOCK))
        if len(border) and len(inside):
            ratios.append((border.mean() + FLOOR) / (inside.mean() + FLOOR))
    return float(np.mean(ratios)) if ratios else 1.0


def measure_contrast(luma: Luma) -> float:
    """Root mean square contrast: standard deviation of luma over its range, in [0, 0.5]; 0 is one grey."""
    return float(luma.std() / 255.0)


def measure_clipping(luma: Luma) -> tuple[float, float]:
    """Shares of the image, in [0, 1], that are clipped to (black, white)."""
    return float((luma <= DARK).mean()), float((luma >= BRIGHT).mean())


class Colour(NamedTuple):
    """Lightness and colour cast, as `Measurements` has them."""

    lightness: float
    cast: float
    cast_hue: float
    cast_dominance: float


_CODES = np.arange(256) / 255.0
_LINEAR = np.where(_CODES > 0.04045, ((_CODES + 0.055) / 1.055) ** 2.4, _CODES / 12.92).astype(np.float32)
"""Light of each of sRGB's 256 values (IEC 61966-2-1)."""
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)  # illuminant D65, 2 degrees


def measure_colour(rgb: NDArray[np.uint8]) -> Colour:
    """Mean lightness and colour cast in CIE L*a*b*.

    Args:
        rgb: ([N,] H, W, 3), sRGB; every second pixel of every second row is read, which leaves the means as they are.
    """
    light = [_LINEAR[rgb[..., ::2, ::2, channel]] for channel in range(3)]
    roots = []
    for row, white in zip(_TO_XYZ, _WHITE, strict=True):
        share = sum(np.float32(part / white) * plane for part, plane in zip(row, light, strict=True))
        line = np.float32(7.787) * share + np.float32(4 / 29)  # CIE's cube root is linear near black
        roots.append(np.where(share > 0.008856, np.cbrt(share), line))
    x, y, z = roots
    red_green, yellow_blue = 500.0 * (x - y), 200.0 * (y - z)
    mean_a, mean_b = red_green.mean(dtype=np.float64), yellow_blue.mean(dtype=np.float64)
    cast, spread = float(np.hypot(mean_a, mean_b)), float(np.hypot(red_green.std(), yellow_blue.std()))
    hue = float(np.degrees(np.arctan2(mean_b, mean_a))) % 360.0
    return Colour(116.0 * float(y.mean(dtype=np.float64)) - 16.0, cast, hue, (cast - spread) / max(spread, 1.0))


def measure_colourfulness(rgb: NDArray[np.uint8]) -> float:
    """Colourfulness M3."""
    red, green, blue = (rgb[..., channel].astype(np.float32) for channel in range(3))
    red_green = red - green
    yellow_blue = np.float32(0.5) * (red + green) - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))
