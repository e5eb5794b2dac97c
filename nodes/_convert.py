"""The only place that knows ComfyUI's layouts: IMAGE (B, H, W, C), MASK (B, H, W), LATENT {"samples": (B, C, ...)}.

Values outside [0, 1] by up to 0.5, as upscalers and sharpeners leave them, are clipped, like ComfyUI's own Save Image
does; further out is an error that the core raises. A fourth channel is alpha, composited on white by the core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..rali_core.attachments import flat_numbers
from ..rali_core.images import to_pixels

OVERSHOOT = 0.5


def split_images(batches: list[Tensor] | None, *, name: str = "images") -> list[Tensor]:
    """A list of IMAGE batches, of any sizes, to single images (1, H, W, C); views, no copies. May be empty."""
    images = []
    for batch in batches or []:
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            got = f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"{name}: expected an IMAGE of shape (batch, height, width, channels), got {got}")
        images += list(batch.split(1)) if len(batch) else []
    return images


def join_images(images: list[Tensor]) -> list[Tensor]:
    """Single images (1, H, W, C) to one batch if they all have the same size, else to a list of batches of one."""
    if len({tuple(image.shape) for image in images}) == 1:
        return [torch.cat(images)]
    return images


def to_core(image: Tensor) -> Tensor:
    """(1, H, W, C) to the (C, H, W) that the core takes."""
    pixels = image[0].permute(2, 0, 1)
    if pixels.numel() and pixels.is_floating_point():
        low, high = (float(value) for value in torch.aminmax(pixels))
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT and (low < 0 or high > 1):
            return pixels.clamp(0.0, 1.0)
    return pixels


def to_pil(image: Tensor, *, alpha: bool = False) -> Image.Image:
    """(1, H, W, C) to a PIL image; transparency is composited on white unless `alpha` keeps it."""
    pixels = to_core(image)
    if not (alpha and pixels.shape[0] == 4):
        pixels = to_pixels(pixels)
    array = pixels.permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((array * 255.0).round().clip(0, 255).astype(np.uint8))


def from_pil(image: Image.Image) -> Tensor:
    """A PIL image to (1, H, W, 3)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).float().div(255.0).unsqueeze(0)


def from_core(pixels: Tensor) -> Tensor:
    """(3, H, W) to (1, H, W, 3)."""
    return pixels.permute(1, 2, 0).unsqueeze(0).contiguous()


def join_masks(masks: list[Tensor]) -> list[Tensor]:
    """Single masks to one batch if they all have the same size, else to a list."""
    return [torch.cat(masks)] if len({tuple(mask.shape) for mask in masks}) == 1 else masks


def check_numbers(values: list[Any] | None, count: int, name: str) -> list[Any] | None:
    """One number per image from lists, lists of lists and tensors; None if nothing is wired.

    Raises:
        ValueError: There are more or fewer.
    """
    if not values:
        return None
    numbers = flat_numbers(values)
    if len(numbers) != count:
        raise ValueError(
            f"{name}: expected one for each of the {count} images, got {len(numbers)}; "
            "they must come from the same batch, in the same order"
        )
    return numbers
