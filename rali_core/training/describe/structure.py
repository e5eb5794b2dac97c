"""Measures of detail: blur, noise and effective resolution, each of one luma plane.

- Blur: F. Crete et al., "The blur effect: perception and estimation with a new no-reference perceptual blur metric",
  SPIE 6492, 2007, as scikit-image has it (`skimage.measure.blur_effect`).
- Noise: D. L. Donoho and I. M. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81, 1994: the
  median absolute deviation of the finest diagonal wavelet coefficients, as scikit-image has it
  (`skimage.restoration.estimate_sigma`). Difference: the median runs over all coefficients, also those that are
  exactly zero in flat or clipped areas, which scikit-image drops; with them, a clean drawing has no noise.
- Effective resolution: the power spectrum of a natural image falls as 1 / f^2 (D. J. Field, "Relations between the
  statistics of natural images and the response properties of cortical cells", JOSA A 4, 1987), so f^2 times the radial
  power is flat, and a picture that was enlarged by s ends at 1 / s of the Nyquist frequency. Reported is the frequency
  below which a share of this whitened power lies (the spectral roll-off of audio analysis).
"""

from __future__ import annotations

import numpy as np
import pywt
import scipy.fft
from numpy.typing import NDArray
from skimage.measure import blur_effect

BLUR_WINDOW = 11
"""Side of the averaging filter in pixels, as in the paper."""
MAD_OF_A_NORMAL = 0.6744897501960817
"""Median absolute deviation of a standard normal variable."""
ROLL_OFF = 0.95
"""Share of the whitened power that lies below the effective resolution."""


def measure_blur(luma: NDArray[np.float32]) -> float:
    """Blur of an image.

    Args:
        luma: (H, W) in [0, 255].

    Returns:
        In [0, 1]; 0 is sharp, 1 is blurred until nothing is left, also for an image without any structure.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # no gradient at all is 0 / 0
        value = float(blur_effect(luma / np.float32(255.0), h_size=BLUR_WINDOW))
    return min(max(value, 0.0), 1.0) if np.isfinite(value) else 1.0


def measure_noise(luma: NDArray[np.float32]) -> float:
    """Standard deviation of noise.

    Args:
        luma: (H, W) in [0, 255].

    Returns:
        Grey levels of 0..255; 0 is clean. Fine texture counts as noise, as in every estimate from one image.
    """
    diagonal = pywt.dwt2(luma, "db2")[1][2]
    return float(np.median(np.abs(diagonal)) / MAD_OF_A_NORMAL)


def measure_resolution(luma: NDArray[np.float32]) -> float:
    """Effective resolution: how far the detail of an image reaches, as a share of what its pixels could hold.

    Args:
        luma: (H, W) in [0, 255].

    Returns:
        In [0, 1] of the Nyquist frequency; 1 is detail down to the pixel, 0.5 what half as many pixels a side could
        hold as well, 0 an image of one colour. Noise counts as detail.
    """
    height, width = luma.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    centred = luma - np.float32(np.average(luma, weights=window))
    power = np.abs(scipy.fft.rfft2(centred * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]) * 2.0
    bins = max(8, min(height, width) // 2)
    index = np.ceil(radius * bins).astype(np.int64).ravel()
    inside = (index >= 1) & (index <= bins)
    total = np.bincount(index[inside], weights=power.ravel()[inside], minlength=bins + 1)[1:]
    count = np.bincount(index[inside], minlength=bins + 1)[1:]
    frequency = (np.arange(bins) + 1.0) / bins
    whitened = np.cumsum(total / np.maximum(count, 1) * frequency**2)
    if not whitened[-1] > 1e-6:
        return 0.0
    return float(np.interp(ROLL_OFF * whitened[-1], whitened, frequency))
