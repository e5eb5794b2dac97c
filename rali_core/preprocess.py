"""Pixels to encoder input: resize the shorter side, crop, normalise; all on tensors.

The steps and their order are those of CLIP's image processor, which RALI uses (Zhao et al. 2025): shorter side to
`image_size` with antialiased bicubic interpolation, centre crop, per-channel normalisation. Differences from the
Pillow-based reference: nothing is rounded to 8 bits between or after the two resize passes, unless the configuration
asks for Pillow's own pixels, and images longer than `MAX_ASPECT_RATIO` are cut to that ratio before they are resized.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .constants import COVERAGES, Coverage
from .devices import to_device
from .pillow_resize import resize_levels, straight_through, to_levels

MAX_ASPECT_RATIO = 32
"""Longer images are cut around their centre, so that a 1 x 100,000 strip cannot exhaust the memory."""

BAND_PIXELS = 2**20
"""Pixels of an image that are processed at a time."""

MAX_TILES = 8
"""Upper limit of crops per image for `coverage="tiles"`; they stay evenly spread over the long side."""

FULL_SIZE_FROM: dict[str, float] = {"adaptive": 3.0, "full": 1.25}
"""The coverages that add full-size crops, if the image's shorter side is at least so many times the encoder's."""

FULL_SIZE_CROPS = 4
"""Default maximum of crops at the image's own size."""

FULL_SIZE_GROWTH = 1 / 6
"""How fast the total weight of the crops at the image's own size grows with the ratio of its shorter side to the
encoder's, from 0 at 1. The whole image has the rest: one that is resized less shows more of its damage as a whole."""

FULL_SIZE_SHARE: dict[str, float] = {"adaptive": 1 / 2, "full": 2 / 3}
"""The most that this weight becomes. People's scores of large photographs agree better with a half; with two thirds
damage that shows at full size alone counts more."""

OPTIONAL = {"eight_bit", "full_size_crops"}
"""Fields of `PreprocessConfig` that a model file may leave out."""


@dataclass(frozen=True)
class PreprocessConfig:
    """How pixels become encoder input.

    Attributes:
        image_size: Side of the square encoder input, in pixels.
        mean: Channel means to subtract (RGB, for pixels in [0, 1]).
        std: Channel standard deviations to divide by (RGB, for pixels in [0, 1]).
        eight_bit: Round to 8 bits before, between and after the two resize passes, and compute these in integers
            as Pillow does: the pixels are those of a Pillow-based recipe. Gradients pass through as if nothing were
            rounded.
        full_size_crops: Maximum number of crops at the image's own size, for the coverages `"adaptive"` and `"full"`,
            1 to 64.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    eight_bit: bool = False
    full_size_crops: int = FULL_SIZE_CROPS

    def __post_init__(self) -> None:
        if type(self.image_size) is not int or not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size must be a whole number of pixels in 1..4096, got {self.image_size!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(v, int | float) for v in values):
                raise ValueError(f"{name} must be three numbers (RGB), got {values!r}")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std!r}")
        if not isinstance(self.eight_bit, bool):
            raise ValueError(f"eight_bit must be true or false, got {self.eight_bit!r}")
        if type(self.full_size_crops) is not int or not 1 <= self.full_size_crops <= 64:
            raise ValueError(f"full_size_crops must be a whole number in 1..64, got {self.full_size_crops!r}")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types."""
        values = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        for name in OPTIONAL:  # older files do not have them
            if values[name] == getattr(type(self), name):
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreprocessConfig:
        """The configuration from a `to_dict`.

        Raises:
            ValueError: A key is missing or unknown, or a value is out of range.
        """
        if not isinstance(values, dict) or set(values) - OPTIONAL != {"image_size", "mean", "std"}:
            raise ValueError(f"expected the keys image_size, mean and std, got {values!r}")
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def check_pixels(pixels: Tensor) -> None:
    """Check that `pixels` is a valid argument of the public functions here.

    Args:
        pixels: (B, 3, H, W), floating point, expected in [0, 1]; or uint8.

    Raises:
        TypeError: Neither floating point nor uint8.
        ValueError: Another shape, an empty axis, NaN or infinite values, or values clearly outside [0, 1].
    """
    if not isinstance(pixels, Tensor) or not (pixels.is_floating_point() or pixels.dtype == torch.uint8):
        got = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
        raise TypeError(f"expected a floating-point tensor of pixels in [0, 1], got {got}")
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"expected pixels of shape (B, 3, H, W), got {tuple(pixels.shape)}")
    if 0 in pixels.shape:
        raise ValueError(f"expected at least one image of at least 1 x 1 pixel, got shape {tuple(pixels.shape)}")
    if pixels.dtype == torch.uint8:
        return
    low, high = torch.stack(torch.aminmax(pixels.detach())).tolist()  # the device is waited for once
    if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN makes either comparison false
        raise ValueError("the pixels hold NaN or infinite values; an image before it may have gone wrong")
    if low < -0.05 or high > 1.05:
        raise ValueError(
            f"expected pixels in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "divide by 255 if they are 0..255, or map from [-1, 1] with (x + 1) / 2"
        )


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the shorter side became `size`; the longer one is truncated, as in CLIP's processor."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def resize_shorter_side(pixels: Tensor, size: int, *, eight_bit: bool = False) -> Tensor:
    """Resize so that the shorter side is `size` pixels, with antialiased bicubic interpolation (a = -0.5).

    Args:
        pixels: (B, 3, H, W) in [0, 1], or uint8, which takes less memory with the same result.
        size: Target length of the shorter side in pixels.
        eight_bit: Pillow's own pixels; see `PreprocessConfig`.

    Returns:
        (B, 3, h, w) with min(h, w) = size, clamped to [0, 1] (bicubic overshoots at edges; Pillow clips too).
    """
    height, width = pixels.shape[-2:]
    longest = MAX_ASPECT_RATIO * min(height, width)
    if max(height, width) > longest:
        pixels = center_crop(pixels, min(height, longest), min(width, longest))
        height, width = pixels.shape[-2:]
    new_height, new_width = resized_shape(height, width, size)
    whole = pixels.dtype == torch.uint8
    if eight_bit:
        levels = resize_levels(pixels if whole else to_levels(pixels), new_height, new_width)
        if not (pixels.requires_grad and torch.is_grad_enabled()):
            return levels.to(torch.float32 if whole else pixels.dtype) / 255.0
    # Pillow resizes along x first (from version 13 on not for very tall images) and clips between the passes;
    # without that, bright edges differ by up to 12/255.
    wide = _resample_in_bands(pixels, new_width)
    smooth = _resample(wide, (new_height, new_width))
    return straight_through(levels, smooth) if eight_bit else smooth


def _resample_in_bands(pixels: Tensor, width: int) -> Tensor:
    """Resample rows to another width in bands, so that all pixels never exist as floating point at once."""
    rows = max(1, BAND_PIXELS // (len(pixels) * pixels.shape[-1]))
    bands = (band.float() / 255.0 if band.dtype == torch.uint8 else band for band in pixels.split(rows, dim=-2))
    return torch.cat([_resample(band, (band.shape[-2], width)) for band in bands], dim=-2)


def _as_float(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    return pixels.to(dtype) / 255.0 if pixels.dtype == torch.uint8 else pixels.clamp(0.0, 1.0)


def _resample(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[-2:]) != shape:
        try:
            pixels = _interpolate(pixels, shape)
        except (NotImplementedError, RuntimeError):
            if pixels.device.type in ("cpu", "cuda"):
                raise
            pixels = _interpolate(pixels.cpu(), shape).to(pixels.device)  # missing on MPS before torch 2.8
    return pixels.clamp(0.0, 1.0)


def _interpolate(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    return functional.interpolate(pixels, size=shape, mode="bicubic", antialias=True, align_corners=False)


def center_crop(pixels: Tensor, height: int, width: int) -> Tensor:
    """Cut (..., height, width) out of the centre; the odd pixel goes to the right and below, as in CLIP's processor."""
    top = (pixels.shape[-2] - height) // 2
    left = (pixels.shape[-1] - width) // 2
    return pixels[..., top : top + height, left : left + width]


def tile_offsets(length: int, size: int) -> list[int]:
    """Starts of the fewest evenly spread windows of `size` that cover `length`, at most `MAX_TILES`."""
    count = min(-(-length // size), MAX_TILES)
    if count == 1:
        return [(length - size) // 2]
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def tile_crops(pixels: Tensor, size: int) -> Tensor:
    """Square crops, evenly spread along the longer side.

    Args:
        pixels: (B, 3, h, w) whose shorter side is `size`.
        size: Side of each crop in pixels.

    Returns:
        (B, T, 3, size, size), T = ceil(longer side / size), at most `MAX_TILES`.
    """
    height, width = pixels.shape[-2:]
    if height >= width:
        crops = [pixels[..., top : top + size, :] for top in tile_offsets(height, size)]
    else:
        crops = [pixels[..., left : left + size] for left in tile_offsets(width, size)]
    return torch.stack(crops, dim=1)


def full_size_boxes(
    height: int, width: int, config: PreprocessConfig, *, coverage: Coverage = "full"
) -> list[tuple[int, int]]:
    """Positions of the crops at an image's own size.

    Args:
        height: Height of the image in pixels.
        width: Its width.
        config: Size and number of the crops.
        coverage: As for `preprocess`.

    Returns:
        (top, left) of each square of `image_size` pixels, row by row: the centres of a grid of equal cells, as
        square as possible, at most `full_size_crops` and no more than cover the image. Empty if the coverage adds
        none to an image of this size, see `FULL_SIZE_FROM`.
    """
    size = config.image_size
    if min(height, width) < FULL_SIZE_FROM.get(coverage, float("inf")) * size:
        return []
    most_rows, most_columns = -(-height // size), -(-width // size)
    grids = [
        (rows, columns)
        for rows in range(1, min(most_rows, config.full_size_crops) + 1)
        for columns in range(1, min(most_columns, config.full_size_crops // rows) + 1)
    ]

    def fitness(grid: tuple[int, int]) -> tuple[int, float, int]:
        rows, columns = grid
        cell = (height / rows) / (width / columns)
        return rows * columns, min(cell, 1 / cell), -abs(rows - columns)

    rows, columns = max(grids, key=fitness)
    return [(top, left) for top in _centred(height, rows, size) for left in _centred(width, columns, size)]


def _centred(length: int, count: int, size: int) -> list[int]:
    """Starts of windows of `size` in the centres of `count` equal parts of `length`; the same from both ends."""
    starts = [max(0, int((2 * i + 1) * length / (2 * count) - size / 2)) for i in range((count + 1) // 2)]
    if count % 2:
        starts[-1] = (length - size) // 2
    return starts + [length - size - start for start in reversed(starts[: count // 2])]


class View(NamedTuple):
    """A part of an image that the encoder sees as one crop, in the image's pixels.

    Attributes:
        left: First column.
        top: First row.
        width: Columns.
        height: Rows.
        full_size: At its own size, not resized.
    """

    left: int
    top: int
    width: int
    height: int
    full_size: bool


def locate_views(height: int, width: int, config: PreprocessConfig, *, coverage: Coverage) -> list[View]:
    """The regions of an image that the crops of `preprocess` show.

    Args:
        height: Height of the image in pixels.
        width: Its width.
        config: As for `preprocess`.
        coverage: Likewise.

    Returns:
        T regions, in the order of the crops.
    """
    size, short = config.image_size, min(height, width)
    long = min(max(height, width), MAX_ASPECT_RATIO * short)
    resized = max(resized_shape(short, long, size))
    starts = [(resized - size) // 2] if coverage == "center" else tile_offsets(resized, size)
    views = []
    for start in starts:
        place = (max(height, width) - long) // 2 + round(start * short / size)
        left, top = (place, 0) if width > height else (0, place)
        views.append(View(left, top, short, short, False))
    boxes = full_size_boxes(height, width, config, coverage=coverage)
    return views + [View(left, top, size, size, True) for top, left in boxes]


def view_weights(height: int, width: int, config: PreprocessConfig, *, coverage: Coverage) -> Tensor:
    """The weights of the crops of `preprocess` in an image's score.

    Args:
        height: Height of the image in pixels.
        width: Its width.
        config: As for `preprocess`.
        coverage: Likewise.

    Returns:
        (T,) float32, summing to 1: equal where all crops are of the whole image; those at its own size have
        together what `FULL_SIZE_GROWTH` and `FULL_SIZE_SHARE` say.
    """
    views = locate_views(height, width, config, coverage=coverage)
    crops = sum(view.full_size for view in views)
    larger = min(height, width) / config.image_size - 1
    share = min(FULL_SIZE_GROWTH * larger, FULL_SIZE_SHARE[coverage]) if crops else 0.0
    whole = (1 - share) / (len(views) - crops)
    return torch.tensor([share / crops if view.full_size else whole for view in views])


def check_coverage(coverage: str) -> None:
    """Raises ValueError for anything but one of `COVERAGES`."""
    if coverage not in COVERAGES:
        raise ValueError(f"coverage must be one of {', '.join(COVERAGES)}, got {coverage!r}")


def preprocess(pixels: Tensor, config: PreprocessConfig, *, coverage: Coverage = "center") -> Tensor:
    """Turn pixels into encoder input; differentiable.

    Args:
        pixels: (B, 3, H, W) floating point in [0, 1] or uint8, any H and W from 1 up. Computed in float32 at least.
        config: Size and normalisation of the encoder.
        coverage: `"center"` is the paper's centre crop; `"tiles"` takes evenly spread square crops along the longer
            side, so that nothing of the image is left out up to 8:1; `"full"` adds crops at the image's own size,
            if it is larger than the encoder's input, and `"adaptive"` if it is much larger (see `FULL_SIZE_FROM`).

    Returns:
        (B, T, 3, S, S), T crops per image (1 for `"center"`), normalised; their weights are those of `view_weights`.

    Raises:
        TypeError: `pixels` is neither floating point nor uint8.
        ValueError: `pixels` has another shape or range, or `coverage` is unknown.

    Examples:
        >>> config = PreprocessConfig(image_size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> tuple(preprocess(torch.rand(2, 3, 300, 600), config, coverage="tiles").shape)
        (2, 2, 3, 224, 224)
    """
    check_pixels(pixels)
    check_coverage(coverage)
    if pixels.dtype in (torch.float16, torch.bfloat16):
        pixels = pixels.float()
    size = config.image_size
    resized = resize_shorter_side(pixels, size, eight_bit=config.eight_bit)
    crops = center_crop(resized, size, size).unsqueeze(1) if coverage == "center" else tile_crops(resized, size)
    height, width = pixels.shape[-2:]
    boxes = full_size_boxes(height, width, config, coverage=coverage)
    if boxes:
        own = [_as_float(pixels[..., top : top + size, left : left + size], crops.dtype) for top, left in boxes]
        crops = torch.cat([crops, *(crop.unsqueeze(1) for crop in own)], dim=1)
    mean, std = (
        to_device(torch.tensor(values, dtype=crops.dtype), crops.device).view(3, 1, 1)
        for values in (config.mean, config.std)
    )
    return (crops - mean) / std
