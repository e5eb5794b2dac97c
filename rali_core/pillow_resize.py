"""Bicubic resizing of 8-bit images that gives exactly Pillow's pixels, on any device.

Pillow (`Image.resize` with `BICUBIC`, observed in 10.4 to 13.0) resizes along one axis at a time, with weights rounded
to multiples of 2^-22 and sums of whole numbers, rounded to 8 bits after each pass. Floating-point arithmetic gives
the neighbouring level if a sum is near one half, which is frequent: at simple ratios the same few weights recur in
every row. Integers do not. Checked against Pillow in `tests/test_pillow_resize.py`, equal in every pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .devices import to_device

WEIGHT_BITS = 22
"""255 times the sum of the absolute weights stays below 2^31 with these."""

SUMS_AT_ONCE = 2**16
"""Number of values that fit into a processor's cache; larger blocks take several times as long."""

CUBIC = -0.5
"""Keys' parameter a, as Pillow and CLIP's processor use it."""


def bicubic_weights(length: int, new_length: int) -> tuple[Tensor, Tensor]:
    """The source pixels of each pixel of a resized line, with their weights.

    Args:
        length: Pixels of the line.
        new_length: Pixels of the resized line.

    Returns:
        (T, new_length) int64 positions and (T, new_length) int32 weights in units of 2^-22, on the CPU; T is the
        largest number of pixels that any of them needs, and the others' weights are 0.
    """
    scale = length / new_length
    stretch = max(scale, 1.0)  # downscaling widens the kernel, which is the antialiasing
    centers = (torch.arange(new_length, dtype=torch.float64, device="cpu") + 0.5) * scale
    first = (centers - 2.0 * stretch + 0.5).trunc().clamp(min=0)
    end = (centers + 2.0 * stretch + 0.5).trunc().clamp(max=length)
    steps = torch.arange(int((end - first).max()), dtype=torch.float64, device="cpu").unsqueeze(1)
    positions = first + steps
    weights = _cubic((positions - centers + 0.5).abs() * (1.0 / stretch))
    weights = torch.where(positions < end, weights, 0.0)
    weights = weights / weights.sum(dim=0)
    fixed = (weights * 2**WEIGHT_BITS + torch.copysign(torch.full_like(weights, 0.5), weights)).trunc()
    return positions.clamp(max=length - 1).long(), fixed.int()


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel (1981) at non-negative distances."""
    near = ((CUBIC + 2.0) * distance - (CUBIC + 3.0)) * distance * distance + 1.0
    far = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * CUBIC
    return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))


def resize_axis(levels: Tensor, new_length: int, axis: int) -> Tensor:
    """Resize along one axis.

    Args:
        levels: uint8, any shape.
        new_length: Pixels along `axis` afterwards.
        axis: Which axis.

    Returns:
        uint8, the same shape but for `axis`.
    """
    moved: Tensor = levels.movedim(axis, 0)
    lines = moved.flatten(1)  # (L, M): sums of whole lines
    positions, weights = (to_device(tensor, levels.device) for tensor in bicubic_weights(len(lines), new_length))
    columns = max(1, SUMS_AT_ONCE // new_length)
    parts = [_add_up(part, positions, weights) for part in lines.split(columns, dim=1)]
    resized: Tensor = torch.cat(parts, dim=1).unflatten(1, moved.shape[1:]).movedim(0, axis)
    return resized


def _add_up(lines: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """(L, M) uint8 lines to (new_length, M)."""
    lines = lines.int()
    total = lines.new_full((positions.shape[1], lines.shape[1]), 2 ** (WEIGHT_BITS - 1))
    for position, weight in zip(positions, weights, strict=True):
        total.addcmul_(lines.index_select(0, position), weight.unsqueeze(1))
    return (total >> WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)


def resize_levels(levels: Tensor, height: int, width: int) -> Tensor:
    """Resize along x, then along y, as Pillow does (from version 13 on not for images over twice as high as wide).

    Args:
        levels: (..., H, W) uint8.
        height: Pixels along y afterwards.
        width: Pixels along x afterwards.

    Returns:
        (..., height, width) uint8; an axis that has its length already is unchanged.
    """
    for axis, new_length in ((-1, width), (-2, height)):
        if levels.shape[axis] != new_length:
            levels = resize_axis(levels, new_length, axis)
    return levels


def to_levels(pixels: Tensor) -> Tensor:
    """Floating-point pixels in [0, 1] to the nearest of 256 levels, uint8, without a gradient."""
    # uint8 truncates; in place, because a large photograph takes longer here than in the sums.
    return pixels.detach().mul(255.0).add_(0.5).clamp_(0.0, 255.0).to(torch.uint8)


def straight_through(levels: Tensor, smooth: Tensor) -> Tensor:
    """The levels as floating-point pixels in [0, 1], with the gradient of `smooth`, which has the same shape."""
    return smooth + (levels.to(smooth.dtype) / 255.0 - smooth).detach()
