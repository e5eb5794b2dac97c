"""Detects images without content: blank frames get the lowest score instead of the model's.

A model that was trained on photographs gives a black, white or grey frame a middling score. So every way of scoring
calls `has_content` first, and an image without content gets `NO_CONTENT_SCORE` and the reason `NO_CONTENT`.

Without content are:

- images with a side under `MIN_SIDE` pixels;
- (nearly) constant images of any colour, which includes fully transparent ones (composited on white) and the black
  frames of a VAE that overflowed; noise up to a standard deviation of some 2/255 and a few hot pixels make no
  difference;
- smooth ramps: images that a quadratic surface per channel describes but for such noise;
- a thin border around any of these: the outermost 1/32 on each side is ignored.

Everything else has content: structure in large parts of the image, however faint (`WEAK`: a dark or foggy photograph),
or few pixels that stand out clearly (`STRONG`: stars, thin lines on white, a line of text). A watermark on a blank
frame is content. So is noise from some 3/255 on; such an image is left to the model.

Cost: 48 x 48 pixels of an image are read first, whatever its size, and show that there is content in nearly all
photographs: 0.6 ms on one core, 0.2 % of what the bundled model takes for a megapixel (`bench/content_cost.py`). The
others are read at 192 x 192.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_CONTENT = "no content"
"""The reason in results."""

NO_CONTENT_SCORE = 0.02
"""Below all band limits, but not 0, which would look like a failure."""

MIN_SIDE = 8
"""Shorter sides hold too few pixels to judge."""

BORDER = 32
"""The outermost 1/32 on each side is ignored."""

MAX_ROWS = MAX_COLUMNS = 192
"""At most so many rows and columns are read."""

COARSE, COARSE_SHARE = 48, 0.2
"""An image with structure in more than this share of the blocks of so many rows and columns is not looked at closer: it
has content by the rules below as well."""

BLOCK = 4
"""Faint structure is searched for in means of blocks of so many by so many of the pixels that are read."""

WEAK, WEAK_SHARE = 2.0 / 255.0, 0.02
"""Content is a deviation of the means of small blocks by more than this in more than this share of the blocks ..."""

STRONG, STRONG_COUNT = 16.0 / 255.0, 6
"""... or one by more than this in so many single pixels of those that are read."""

GOLDEN_RATIO = 0.6180339887498949
"""Its fractional part, whose multiples modulo 1 are a low-discrepancy sequence."""


def has_content(pixels: Tensor) -> bool:
    """Whether one image holds content; see the module's docstring for the rules. Not differentiable, never raises on
    NaN.

    Args:
        pixels: (3, H, W) or (1, H, W), floating point in [0, 1] or uint8, on any device.

    Returns:
        False for blank, nearly constant and tiny images, smooth ramps, and images with NaN or infinite values.

    Raises:
        ValueError: Another shape.

    Examples:
        >>> has_content(torch.zeros(3, 64, 64)), has_content(torch.rand(3, 64, 64))
        (False, True)
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"expected pixels of shape (3, H, W), got {tuple(pixels.shape)}")
    if min(pixels.shape[1:]) < MIN_SIDE:
        return False
    pixels = pixels.detach()
    return _stands_out(pixels, COARSE, COARSE_SHARE, None) or _stands_out(pixels, MAX_ROWS, WEAK_SHARE, STRONG_COUNT)


def _stands_out(pixels: Tensor, most: int, weak_share: float, strong_count: int | None) -> bool:
    """Whether more than a share of the blocks differ from a smooth surface, or so many single pixels strongly."""
    rows, columns = _choose_rows(pixels.shape[1], most), _choose_columns(pixels.shape[2], most)
    values = _read(pixels, rows, columns)
    flat = values.reshape(len(values), -1)
    high, low = flat.max(axis=1), flat.min(axis=1)
    if not (np.isfinite(high) & np.isfinite(low)).all() or float((high - low).max()) <= WEAK:
        return False  # the usual blank frame: nothing to fit
    x, y = _centred(columns), _centred(rows)
    block = BLOCK if min(len(x), len(y)) >= 8 * BLOCK else 2
    blocks = _means(_means(values, block, 1), block, 2)
    block_x, block_y = _means(x, block, 0), _means(y, block, 0)
    surface = _fit(blocks, block_x, block_y)
    blocks -= _evaluate(surface, block_x, block_y)
    off = np.abs(blocks, out=blocks).max(axis=0)
    if np.count_nonzero(off > WEAK * BLOCK / block) > weak_share * off.size:
        return True
    if strong_count is None:
        return False
    values -= _evaluate(surface, x, y)
    strong = np.abs(values, out=values).max(axis=0) > STRONG
    return int(np.count_nonzero(strong)) >= strong_count


def have_content(pixels: Tensor) -> list[bool]:
    """`has_content` of each image of a (B, 3, H, W) batch."""
    return [has_content(image) for image in pixels]


def lower_blank(scores: Tensor, pixels: Tensor) -> Tensor:
    """A model's scores, with `NO_CONTENT_SCORE` for images without content.

    Args:
        scores: (B,) of the model.
        pixels: (B, 3, H, W), floating point, about [0, 1].

    Returns:
        (B,). The gradient is the model's for all, so that optimisation can leave a blank image.
    """
    blank = torch.tensor([not has_content(image.clamp(0.0, 1.0)) for image in pixels.detach()], device=scores.device)
    return torch.where(blank, scores - scores.detach() + NO_CONTENT_SCORE, scores)


def is_no_content(score: float) -> bool:
    """Whether a score is the one that images without content get, also after it was rounded to float32."""
    return float(np.float32(score)) == float(np.float32(NO_CONTENT_SCORE))


def _choose_rows(height: int, most: int) -> NDArray[np.int64]:
    """Rows to read; if there are many, unevenly spaced, so that no regular pattern is missed."""
    margin = height // BORDER
    inside = height - 2 * margin
    count = min(inside, most)
    spacing = inside / count
    return margin + np.floor(np.arange(count) * spacing + _shifts(count) * (spacing - 1)).astype(np.int64)


def _choose_columns(width: int, most: int) -> NDArray[np.int64]:
    """Columns to read, evenly spaced; each row is read with its own shift to the right, less than that spacing."""
    margin = width // BORDER
    step = -(-(width - 2 * margin) // most)
    return margin + step * np.arange((width - 2 * margin) // step)


def _shifts(count: int) -> NDArray[np.float64]:
    """A low-discrepancy sequence in [0, 1): multiples of the golden ratio."""
    shifts: NDArray[np.float64] = (np.arange(count, dtype=np.float64) * GOLDEN_RATIO) % 1.0
    return shifts


def _read(pixels: Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """(C, rows, columns) float32 in [0, 1], on the CPU."""
    if pixels.device.type != "cpu":
        pixels = pixels.index_select(1, torch.from_numpy(rows).to(pixels.device)).cpu()
        rows = np.arange(len(rows))
    if pixels.dtype == torch.bfloat16:  # which NumPy does not know
        pixels = pixels.float()
    source = pixels.numpy()
    step = int(columns[1] - columns[0])
    starts = columns[0] + np.floor(_shifts(len(rows)) * step).astype(np.int64)
    length = step * (len(columns) - 1) + 1
    read = np.empty((source.shape[0], len(rows), len(columns)), dtype=source.dtype)
    for number, (row, start) in enumerate(zip(rows.tolist(), starts.tolist(), strict=True)):
        read[:, number] = source[:, row, start : start + length : step]
    return read * np.float32(1.0 / 255.0) if read.dtype == np.uint8 else read.astype(np.float32, copy=False)


def _means(values: NDArray[np.float32], block: int, axis: int) -> NDArray[np.float32]:
    """Means over runs of `block` along an axis; a remainder at its end is dropped."""
    whole = values.shape[axis] // block * block
    parts = [
        values[tuple([slice(None)] * axis + [slice(offset, whole, block)])]  # views
        for offset in range(block)
    ]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    total *= np.float32(1.0 / block)
    return total


def _centred(positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Positions mapped to about [-1, 1]."""
    values = positions.astype(np.float32)
    centred: NDArray[np.float32] = (values - values.mean()) / np.float32(max(float(np.ptp(values)) / 2, 1.0))
    return centred


def _powers(values: NDArray[np.float32]) -> NDArray[np.float32]:
    powers: NDArray[np.float32] = np.stack([np.ones_like(values), values, values * values])
    return powers


TERMS = ([0, 1, 0, 2, 1, 0], [0, 0, 1, 0, 1, 2])
"""Exponents of y and of x in a quadratic surface."""


def _fit(blocks: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, 3, 3) coefficients, of y's powers by x's, of the least-squares quadratic surfaces through (C, h, w)."""
    of_x, of_y = _powers(x), _powers(y)
    i, j = TERMS
    gram = (of_y @ of_y.T)[np.ix_(i, i)] * (of_x @ of_x.T)[np.ix_(j, j)]  # sums over a grid are products of sums
    moments = np.matmul(np.matmul(of_y, blocks), of_x.T)[:, i, j]  # (C, terms)
    surface = np.zeros((len(blocks), 3, 3), dtype=np.float32)
    surface[:, i, j] = np.linalg.solve(gram.astype(np.float64), moments.T.astype(np.float64)).T
    return surface


def _evaluate(surface: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, len(y), len(x)) values of the surfaces."""
    values: NDArray[np.float32] = np.matmul(np.matmul(_powers(y).T, surface), _powers(x))
    return values
