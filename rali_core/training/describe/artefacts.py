"""Measures of coding artefacts: blocking, ringing and banding, each of one luma plane.

- Blocking: the two features of Z. Wang, H. R. Sheikh and A. C. Bovik, "No-reference perceptual quality assessment of
  JPEG compressed images", ICIP 2002: mean absolute difference across the borders of 8 x 8 blocks and inside blocks.
  Difference: reported is their quotient and not the fitted score, which also falls with blur.
- Ringing: as in P. Marziliano et al., "Perceptual blur and ringing metrics: application to JPEG2000", Signal
  Processing: Image Communication 19, 2004, the sides of strong edges are searched for oscillations across the edge.
  Differences: both directions and not only rows; the oscillation is the energy of fourth differences (a soft edge has
  little) across the edge less that along it, so that noise and texture, which have no direction, cancel out.
- Banding: steps between areas that are flat on both sides, after the candidates of Z. Tu et al., "BBAND index: a
  no-reference banding artifact predictor", ICASSP 2020. Difference: their height is added up, visibility is not
  modelled, and steps at the borders of 8 x 8 blocks, which are blocking, are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BLOCK = 8
"""Side of the transform blocks of JPEG in pixels."""
FLOOR = 0.25
"""Grey levels; activity below this is taken as this, so that blank areas give no huge quotients."""
EDGE_STEP = 20.0
"""Grey levels; a Sobel magnitude (divided by 8) above this is a strong edge."""
SPACINGS = (1, 2, 3)
"""Pixels between the taps of the fourth differences: ripples with periods of about 2 to 9 pixels."""
REACH = 8
"""Pixels; so far from a strong edge ringing is sought, from where a fourth difference no longer touches the edge on."""
BAND_RUN = 2
"""Pixels on either side of a step that must be flat."""
BAND_STEP = 96
"""Grey levels; larger steps are outlines, not bands."""


def measure_blocking(luma: NDArray[np.float32]) -> float:
    """Visibility of an 8 x 8 block grid that starts at the upper left corner.

    Args:
        luma: (H, W) in [0, 255].

    Returns:
        Mean step at block borders over that inside blocks: about 1 without a grid, more with one. Images of less than
        two blocks a side have 1.
    """
    ratios = []
    for plane in (luma, luma.T):
        steps = np.abs(np.diff(plane, axis=1)).mean(axis=0)
        border = steps[BLOCK - 1 :: BLOCK]
        inside = np.delete(steps, np.arange(BLOCK - 1, len(steps), BLOCK))
        if len(border) and len(inside):
            ratios.append((border.mean() + FLOOR) / (inside.mean() + FLOOR))
    return float(np.mean(ratios)) if ratios else 1.0


def measure_ringing(luma: NDArray[np.float32]) -> float:
    """Ripples beside strong edges.

    Args:
        luma: (H, W) in [0, 255].

    Returns:
        Amplitude of ripples along edges in grey levels of 0..255, times the share of them that follows the edge; 0 is
        clean, also where there are no strong edges. Blurring and noise hide ripples and lower it,
        ripples closer to an edge than the filters reach (weak low-pass, most of JPEG's) are missed, and fine parallel
        lines beside an edge count as ripples.
    """
    by_column, by_row = ndimage.sobel(luma, 1), ndimage.sobel(luma, 0)
    step = 8.0 * EDGE_STEP
    outline = ndimage.maximum_filter(np.hypot(by_column, by_row) > step, 3)
    upright = (np.abs(by_column) > step) & (np.abs(by_column) > 2.0 * np.abs(by_row))
    level = (np.abs(by_row) > step) & (np.abs(by_row) > 2.0 * np.abs(by_column))
    excess = energy = 0.0
    pixels = 0
    for spacing in SPACINGS:
        margin = slice(2 * spacing, -2 * spacing)
        along_rows = _fourth_difference(luma, spacing, axis=1)[margin, :]
        along_columns = _fourth_difference(luma, spacing, axis=0)[:, margin]
        for edges, axis, across, along in (
            (upright, 1, along_rows, along_columns),
            (level, 0, along_columns, along_rows),
        ):
            zone = _sides_of_edges(edges, 2 * spacing, axis=axis) & ~outline
            inner = zone[margin, margin]
            over, beside = across[inner], along[inner]
            over_energy, beside_energy = float(over @ over), float(beside @ beside)
            excess += over_energy - beside_energy
            energy += over_energy + beside_energy
            pixels += len(over)
    if excess <= 0.0:
        return 0.0
    return float(np.sqrt(excess * len(SPACINGS) / pixels) * excess / energy)


def _sides_of_edges(edges: NDArray[np.bool_], near: int, *, axis: int) -> NDArray[np.bool_]:
    """Pixels more than `near` and at most `near` + REACH pixels from an edge along one axis."""
    sides: NDArray[np.bool_] = ndimage.maximum_filter1d(edges, 2 * (near + REACH) + 1, axis=axis)
    sides &= ~ndimage.maximum_filter1d(edges, 2 * near + 1, axis=axis)
    return sides


def _fourth_difference(plane: NDArray[np.float32], spacing: int, *, axis: int) -> NDArray[np.float32]:
    """Along one axis, scaled to keep a ripple's amplitude; 4 * spacing pixels fewer there than in `plane`."""
    for _ in range(2):
        first, middle, last = (
            (plane[:, : -2 * spacing], plane[:, spacing:-spacing], plane[:, 2 * spacing :])
            if axis == 1
            else (plane[: -2 * spacing], plane[spacing:-spacing], plane[2 * spacing :])
        )
        plane = first + last - np.float32(2.0) * middle
    scaled: NDArray[np.float32] = plane / np.float32(16.0)
    return scaled


def measure_banding(luma: NDArray[np.uint8]) -> float:
    """False contours: isolated steps of brightness between flat runs.

    Args:
        luma: (H, W), whole grey levels of 0..255.

    Returns:
        Height of the steps beyond one grey level, which 8 bits cannot avoid, added up and divided by the number of
        pixels, in grey levels; 0 is smooth. Drawings of flat areas have such steps by intent.
    """
    height = 0
    for plane in (luma, luma.T):
        steps = np.abs(np.diff(plane.astype(np.int16), axis=1))
        count = steps.shape[1] - 2 * BAND_RUN
        if count < 1:
            continue
        centre = steps[:, BAND_RUN : BAND_RUN + count]
        isolated = (centre > 1) & (centre <= BAND_STEP)
        isolated[:, np.arange(BAND_RUN, BAND_RUN + count) % BLOCK == BLOCK - 1] = False
        flat = steps == 0
        for offset in (*range(BAND_RUN), *range(BAND_RUN + 1, 2 * BAND_RUN + 1)):
            isolated &= flat[:, offset : offset + count]
        height += int((centre[isolated] - 1).sum())
    return height / luma.size
