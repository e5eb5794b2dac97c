"""Latents to pixels, as the pipelines do it at their end: Stable Diffusion 1.5/2, SDXL, SD3 and Flux families."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def latents_to_pixels(
    pipe: Any, latents: Tensor, *, vae: Any = None, height: int | None = None, width: int | None = None
) -> Tensor:
    """Decode a pipeline's latents, also the packed ones of Flux.

    Args:
        pipe: A pipeline with an image VAE.
        latents: (B, C, h, w), or (B, L, 4C) packed.
        vae: Another decoder of the same latents, such as an `AutoencoderTiny`; by default `pipe.vae`.
        height: Height of the picture in pixels, for packed latents; by default the pipeline's own default.
        width: Its width, likewise.

    Returns:
        (B, 3, H, W) in [0, 1], with a gradient where the latents have one; float32, or float64 where the VAE is.

    Raises:
        ValueError: The pipeline has no VAE, its latents have another form, or the picture is not finite.
    """
    decoder = vae if vae is not None else getattr(pipe, "vae", None)
    if decoder is None:
        raise ValueError(f"{type(pipe).__name__} has no VAE to decode with; pass one as vae=")
    if latents.ndim == 3:
        latents = _unpack(pipe, latents, height, width)
    return decode_latents(decoder, latents)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Undo a VAE's latent scaling and decode; computed in float32 where the VAE asks for it.

    Args:
        vae: A diffusers image VAE (`AutoencoderKL`, `AutoencoderTiny`).
        latents: (B, C, h, w) as the denoiser sees them.

    Returns:
        (B, 3, H, W) in [0, 1]; float32, or float64 where the VAE is.

    Raises:
        ValueError: The latents do not fit the VAE, or the picture holds NaN or infinite values.
    """
    config = vae.config
    if latents.ndim != 4 or latents.shape[1] != config.latent_channels:
        raise ValueError(
            f"expected latents of shape (B, {config.latent_channels}, h, w) for {type(vae).__name__}, got "
            f"{tuple(latents.shape)}; this kind of pipeline is not supported here"
        )
    dtype = vae.dtype
    upcast = dtype == torch.float16 and bool(getattr(config, "force_upcast", False))
    latents = latents.to(torch.float32 if upcast or dtype == torch.float32 else dtype)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    scaling = config.scaling_factor
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        latents = latents * latents.new_tensor(std).view(shape) / scaling + latents.new_tensor(mean).view(shape)
    else:
        shift = getattr(config, "shift_factor", None)
        latents = latents / scaling + (shift if shift is not None else 0.0)
    if upcast:
        vae.to(torch.float32)
    try:
        decoded: Tensor = vae.decode(latents, return_dict=False)[0]
    finally:
        if upcast:
            vae.to(torch.float16)
    decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
    pixels = (decoded / 2.0 + 0.5).clamp(0.0, 1.0)
    if not torch.isfinite(pixels.detach()).all():
        raise ValueError(
            f"{type(vae).__name__} in {dtype} decoded to NaN or infinite values; use it in bfloat16 or float32"
        )
    return pixels


def _unpack(pipe: Any, latents: Tensor, height: int | None, width: int | None) -> Tensor:
    unpack = getattr(pipe, "_unpack_latents", None)
    if unpack is None:
        raise ValueError(f"{type(pipe).__name__} gives latents of shape {tuple(latents.shape)}, which no rule unpacks")
    default = getattr(pipe, "default_sample_size", 0) * pipe.vae_scale_factor
    height, width = height or default, width or default
    try:
        unpacked: Tensor = unpack(latents, height, width, pipe.vae_scale_factor)
    except RuntimeError as error:  # a view that does not fit
        raise ValueError(
            f"packed latents of shape {tuple(latents.shape)} are not those of a {height} x {width} picture; "
            "say height= and width="
        ) from error
    return unpacked
