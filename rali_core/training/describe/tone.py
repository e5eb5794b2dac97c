"""Measures of tone and colour: exposure, clipping, contrast, colour cast and colourfulness.

- Exposure: mean CIE 1976 lightness L*.
- Contrast: root mean square contrast, E. Peli, "Contrast in complex images", JOSA A 7, 1990.
- Colour cast: the equivalent circle of F. Gasparini and R. Schettini, "Color balancing of digital photos using simple
  image statistics", Pattern Recognition 37, 2004, in the a*b* plane: the distance of the mean from grey (the grey-world
  assumption: G. Buchsbaum, 1980), and how far it is beyond the spread. Difference: one circle for the whole image.
- Colourfulness: D. Hasler and S. Suesstrunk, "Measuring colorfulness in natural images", SPIE 5007, 2003, eq. 7 (M3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

DARK, BRIGHT = 4, 251
"""Grey levels; luma at or beyond them counts as clipped."""


class Colour(NamedTuple):
    """Lightness and colour cast of an image.

    Attributes:
        lightness: Mean L*, 0 (black) to 100 (white).
        cast: Distance of the mean colour from grey in the a*b* plane; 0 is neutral, about 10 a visible cast.
        cast_hue: Direction of the cast in degrees in [0, 360): 0 red-magenta, 90 yellow, 180 green, 270 blue.
        cast_dominance: (cast - spread) / spread; above 0 the whole image leans to one side, near -1 it does not.
    """

    lightness: float
    cast: float
    cast_hue: float
    cast_dominance: float


def measure_colour(rgb: NDArray[np.uint8]) -> Colour:
    """Mean lightness and colour cast.

    Args:
        rgb: (H, W, 3), sRGB; every second pixel of every second row is read, which leaves the means as they are.
    """
    lab = rgb2lab(rgb[::2, ::2])
    mean_l, mean_a, mean_b = lab.reshape(-1, 3).mean(axis=0)
    cast = float(np.hypot(mean_a, mean_b))
    spread = float(np.hypot(lab[..., 1].std(), lab[..., 2].std()))
    hue = float(np.degrees(np.arctan2(mean_b, mean_a))) % 360.0
    return Colour(float(mean_l), cast, hue, (cast - spread) / max(spread, 1.0))


def measure_contrast(luma: NDArray[np.float32]) -> float:
    """Root mean square contrast: standard deviation of luma over its range, in [0, 0.5]; 0 is one grey."""
    return float(luma.std() / 255.0)


def measure_clipping(luma: NDArray[np.float32]) -> tuple[float, float]:
    """Shares of the image, in [0, 1], that are clipped to (black, white)."""
    return float((luma <= DARK).mean()), float((luma >= BRIGHT).mean())


def measure_colourfulness(rgb: NDArray[np.uint8]) -> float:
    """Colourfulness M3: 0 is grey, 15 slightly, 45 averagely, 82 highly colourful; 110 and more is extreme."""
    red, green, blue = (rgb[..., channel].astype(np.float32) for channel in range(3))
    red_green = red - green
    yellow_blue = 0.5 * (red + green) - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))
