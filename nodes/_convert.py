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

from ..rali_core.images import to_pixels

OVERSHOOT = 0.5


def split_images(batches: list[Tensor] | None, *, name: str = "images") -> list[Tensor]:
    """A list of IMAGE batches, of any sizes, to single images (1, H, W, C); views, nothing is copied. May be none."""
    images = []
    for batch in batches or []:
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            got = f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"{name}: expected an IMAGE of shape (batch, height, width, channels), got {got}")
        images += list(batch.split(1)) if len(batch) else []
    return images


def join_images(images: list[Tensor]) -> list[Tensor]:
    """Single images (1, H, W, C) to one batch where they all have one size, else to a list of batches of one."""
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


def split_masks(batches: list[Tensor] | None, count: int) -> list[Tensor] | None:
    """MASKs to `count` masks (1, H, W); None where there is none."""
    if not batches:
        return None
    masks = [mask for batch in batches for mask in (batch if batch.ndim == 3 else batch.unsqueeze(0)).split(1)]
    return _counted(masks, count, "masks")


def join_masks(masks: list[Tensor]) -> list[Tensor]:
    """Single masks to one batch where they all have one size, else to a list."""
    return [torch.cat(masks)] if len({tuple(mask.shape) for mask in masks}) == 1 else masks


def split_latents(latents: list[dict[str, Any]] | None, count: int) -> list[dict[str, Any]] | None:
    """LATENTs to `count` latents of one; what belongs to the batch (noise mask, batch index) is split with it."""
    if not latents:
        return None
    single = []
    for latent in latents:
        samples = latent["samples"]
        if not isinstance(samples, Tensor):
            raise ValueError(f"latents: expected one tensor of samples, got {type(samples).__name__}")
        mask = latent.get("noise_mask")
        of_frames = mask is not None and _is_of_frames(latent)
        for index in range(len(samples)):
            one = {**latent, "samples": samples[index : index + 1]}
            if mask is not None and len(mask) > 1 and not of_frames:
                place = index % len(mask)  # a shorter one is repeated, as the host does it
                one["noise_mask"] = mask[place : place + 1]
            if "batch_index" in latent:
                one["batch_index"] = [latent["batch_index"][index]]
            single.append(one)
    return _counted(single, count, "latents")


def _is_of_frames(latent: dict[str, Any]) -> bool:
    """A video's mask without a batch axis is one mask per frame, the same for the whole batch."""
    return bool(latent["samples"].ndim == 5 and latent["noise_mask"].ndim < 5)


def join_latents(latents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Single latents to one where their shapes and their other entries allow it, else to a list."""
    first = latents[0]
    if len({tuple(latent["samples"].shape) for latent in latents}) > 1 or len({tuple(sorted(x)) for x in latents}) > 1:
        return latents
    joined = {**first, "samples": torch.cat([latent["samples"] for latent in latents])}
    if "noise_mask" in first and _is_of_frames(first):
        if any(latent["noise_mask"] is not first["noise_mask"] for latent in latents):
            return latents
    elif "noise_mask" in first:
        if len({tuple(latent["noise_mask"].shape) for latent in latents}) > 1:
            return latents
        joined["noise_mask"] = torch.cat([latent["noise_mask"] for latent in latents])
    if "batch_index" in first:
        joined["batch_index"] = [index for latent in latents for index in latent["batch_index"]]
    return [joined]


def check_numbers(values: list[Any] | None, count: int, name: str) -> list[Any] | None:
    """A list with one number per image; None where nothing is wired."""
    return _counted(list(values), count, name) if values else None


def _counted(items: list[Any], count: int, name: str) -> list[Any]:
    if len(items) != count:
        raise ValueError(
            f"{name}: expected one for each of the {count} images, got {len(items)}; "
            "they must come from the same batch, in the same order"
        )
    return items
