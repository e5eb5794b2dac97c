"""Decodes latents to pixels, as the pipelines do at their end: packed or not, with four or five dimensions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arguments import descends_from, makes_videos
from .predicted_x0 import listen

_OWN_LOOPS = {
    "Cosmos2TextToImagePipeline": "scales its latents in its own way",
    "HunyuanImageRefinerPipeline": "reorders its latents in its own way",
    "Ideogram4Pipeline": "packs its latents in its own way",
    "JoyImageEditPipeline": "keeps reference images among its latents",
    "JoyImageEditPlusPipeline": "keeps reference images among its latents",
    "SanaSprintImg2ImgPipeline": "passes the last denoised latents to its callback instead of the latents",
    "SanaSprintPipeline": "passes the last denoised latents to its callback instead of the latents",
    "StableCascadeDecoderPipeline": "uses a scheduler without a known preview",
    "StableDiffusionPanoramaPipeline": "denoises the views of one image in turn",
    "VisualClozeGenerationPipeline": "makes a grid of images at once",
    "VisualClozePipeline": "runs other pipelines inside",
    "WuerstchenDecoderPipeline": "uses a scheduler without a known preview",
}


_FACTOR_UNUSED = frozenset(
    {
        *("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline", "KandinskyV22InpaintPipeline"),
        *("Kandinsky3Pipeline", "Kandinsky3Img2ImgPipeline", "GlmImagePipeline"),
    }
)
"""Pipelines that leave their VAE's `scaling_factor` out, though its configuration has one."""


def why_no_preview(kind: type) -> str | None:
    """Why a pipeline class has no denoised previews, or None if it has, as far as the class shows.

    Pruning, `RaliStepCallback` and `RaliGuidance` need it; `best_of_n` without pruning does not.
    """
    if makes_videos(kind):
        return "makes videos"
    if kind.__name__ in _OWN_LOOPS:
        return _OWN_LOOPS[kind.__name__]
    if kind.__name__.endswith("CombinedPipeline"):
        return "runs other pipelines inside"
    if "callback_on_step_end" not in inspect.signature(kind.__call__).parameters:
        return "has no callback_on_step_end"
    if not {"vae", "movq"} & set(inspect.signature(kind.__init__).parameters):  # type: ignore[misc]
        return "has no VAE"
    return None


def check_preview(pipe: Any) -> None:
    """Refuse a pipeline without denoised previews.

    Raises:
        ValueError: The message gives the reason.
    """
    reason = why_no_preview(type(pipe))
    if reason is not None:
        raise ValueError(f"{type(pipe).__name__} {reason}: no denoised preview; best_of_n without prune= works")


def watch_latents(pipe: Any, heard: Callable[[Tensor, int | None, int | None], None]) -> Callable[[], None]:
    """Call `heard(latents, height, width)` once a call of the pipeline has prepared its noise, before the first step.

    Args:
        pipe: A pipeline; without `prepare_latents` nothing happens.
        heard: Called with the latents, and the image's height and width in pixels where they are known.

    Returns:
        A function that stops this.
    """
    prepare = getattr(pipe, "prepare_latents", None)
    if prepare is None:
        return lambda: None
    signature = inspect.signature(prepare)

    def after(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        latents = result[0] if isinstance(result, tuple | list) else result
        if isinstance(latents, Tensor) and latents.ndim >= 3:
            given = signature.bind(*args, **kwargs).arguments
            sizes = [given.get(name) for name in ("height", "width")]
            height, width = (int(size) if isinstance(size, int | float) else None for size in sizes)
            heard(latents, height, width)

    return listen(pipe, "prepare_latents", after)


def latents_to_pixels(
    pipe: Any,
    latents: Tensor,
    *,
    vae: Any = None,
    height: int | None = None,
    width: int | None = None,
    check_finite: bool = True,
) -> Tensor:
    """Decode a pipeline's latents, also packed ones (Flux, Qwen-Image, Krea 2, Flux 2) and those of one-frame videos.

    Args:
        pipe: A pipeline with an image VAE.
        latents: (B, C, h, w), (B, C, 1, h, w), or (B, L, P) packed.
        vae: Another decoder of the same latents, such as an `AutoencoderTiny`; by default the pipeline's.
        height: Height of the image in pixels, for packed latents; by default the pipeline's own default.
        width: Its width, likewise.
        check_finite: Refuse pixels that are NaN or infinite.

    Returns:
        (B, 3, H, W) in [0, 1], with a gradient where the latents have one; float32, or float64 where the VAE is.

    Raises:
        ValueError: The pipeline has no VAE, its latents have another form, or the image is not finite.
    """
    own = getattr(pipe, "vae", None)
    own = own if own is not None else getattr(pipe, "movq", None)
    decoder = vae if vae is not None else own
    if decoder is None:
        raise ValueError(f"{type(pipe).__name__} has no VAE to decode with; pass one as vae=")
    if latents.ndim == 3:
        latents = _unpack(pipe, latents, height, width)
    elif (
        latents.ndim == 5
        and latents.shape[1] == 1
        and latents.shape[-1] == getattr(decoder.config, "latent_channels", 0)
    ):
        latents = latents.permute(0, 4, 1, 2, 3)  # Kandinsky 5: (B, 1, h, w, C)
    if getattr(own, "bn", None) is not None:
        latents = _undo_batch_norm(pipe, own, latents)
    unused = decoder is own and descends_from(type(pipe), _FACTOR_UNUSED)
    return decode_latents(decoder, latents, check_finite=check_finite, scaling_factor=1.0 if unused else None)


def decode_latents(
    vae: Any, latents: Tensor, *, check_finite: bool = True, scaling_factor: float | None = None
) -> Tensor:
    """Undo a VAE's latent scaling and decode; computed in float32 where the VAE asks for it.

    Args:
        vae: A diffusers VAE of images (`AutoencoderKL`, `AutoencoderTiny`, `AutoencoderDC`, `VQModel`, ...) or of
            videos (`AutoencoderKLQwenImage`, `AutoencoderKLWan`, ...), of which the first frame is decoded.
        latents: (B, C, h, w) as the denoiser sees them, or (B, C, 1, h, w).
        check_finite: Refuse pixels that are NaN or infinite.
        scaling_factor: The factor that the latents were multiplied by; by default the VAE's own.

    Returns:
        (B, 3, H, W) in [0, 1]; float32, or float64 where the VAE is.

    Raises:
        ValueError: The latents do not fit the VAE, or the image holds NaN or infinite values.
    """
    config = vae.config
    channels = getattr(config, "z_dim", None) or config.latent_channels
    frames = latents.ndim == 5 and latents.shape[2] == 1
    if not (latents.ndim == 4 or frames) or latents.shape[1] != channels:
        raise ValueError(
            f"expected latents of shape (B, {channels}, h, w) or (B, {channels}, 1, h, w) for {type(vae).__name__}, "
            f"got {tuple(latents.shape)}; this kind of pipeline is not supported here"
        )
    dtype = vae.dtype
    upcast = dtype == torch.float16 and bool(getattr(config, "force_upcast", False))
    latents = latents.to(torch.float32 if upcast or dtype == torch.float32 else dtype)
    latents = _unscale(config, latents, scaling_factor)
    of_videos = getattr(config, "z_dim", None) is not None or "temporal_compression_ratio" in config
    if of_videos and not frames:
        latents = latents.unsqueeze(2)
    if frames and not of_videos:
        latents = latents.squeeze(2)
    options = {"force_not_quantize": True} if type(vae).__name__ == "VQModel" else {}
    if upcast:
        vae.to(torch.float32)
    try:
        decoded: Tensor = vae.decode(latents, return_dict=False, **options)[0]
    finally:
        if upcast:
            vae.to(torch.float16)
    if decoded.ndim == 5:
        decoded = decoded[:, :, 0]
    if decoded.ndim != 4 or decoded.shape[1] not in (3, 4):
        raise ValueError(f"expected {type(vae).__name__} to decode to (B, 3, H, W), got {tuple(decoded.shape)}")
    decoded = decoded[:, :3].to(torch.promote_types(decoded.dtype, torch.float32))
    pixels = (decoded / 2.0 + 0.5).clamp(0.0, 1.0)
    if check_finite and not torch.isfinite(pixels.detach()).all():
        raise ValueError(
            f"{type(vae).__name__} in {dtype} decoded to NaN or infinite values; use it in bfloat16 or float32"
        )
    return pixels


def _unscale(config: Any, latents: Tensor, scaling: float | None) -> Tensor:
    """From the denoiser's scale to the VAE's: statistics of each channel, or one factor and shift."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    scaling = getattr(config, "scaling_factor", None) if scaling is None else scaling
    scaling = 1.0 if scaling is None else scaling
    if mean is not None and std is not None:
        shape = (1, -1) + (1,) * (latents.ndim - 2)
        return latents * latents.new_tensor(std).view(shape) / scaling + latents.new_tensor(mean).view(shape)
    shift = getattr(config, "shift_factor", None)
    return latents / scaling + (shift if shift is not None else 0.0)


def _undo_batch_norm(pipe: Any, vae: Any, latents: Tensor) -> Tensor:
    """Flux 2's autoencoder normalises its latents in patches of 2 x 2."""
    whole = latents.shape[1] == vae.config.latent_channels
    if whole and hasattr(pipe, "_unpack_latents_with_ids"):
        return latents  # Flux 2 Klein returns them so with output_type="latent"
    if whole:
        latents = pipe._patchify_latents(latents)
    if latents.shape[1] != len(vae.bn.running_mean):
        return latents  # decode_latents reports what is wrong
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents)
    std = (vae.bn.running_var.view(1, -1, 1, 1) + getattr(vae.config, "batch_norm_eps", 1e-5)).sqrt().to(latents)
    unpatched: Tensor = pipe._unpatchify_latents(latents * std + mean)
    return unpatched


def _unpack(pipe: Any, latents: Tensor, height: int | None, width: int | None) -> Tensor:
    unpack = getattr(pipe, "_unpack_latents", None)
    flux2 = hasattr(pipe, "_unpack_latents_with_ids")
    if unpack is None and not flux2:
        raise ValueError(f"{type(pipe).__name__} gives latents of shape {tuple(latents.shape)}, which no rule unpacks")
    default = getattr(pipe, "default_sample_size", 0) * pipe.vae_scale_factor
    height, width = height or default, width or default
    if hasattr(pipe, "_unpack_latents_no_patch") and latents.shape[-1] == _channels(pipe):
        unpack = pipe._unpack_latents_no_patch  # Bria FIBO patches only if asked to
    known = {
        "latents": latents, "height": height, "width": width, "vae_scale_factor": pipe.vae_scale_factor,
        "patch_size": getattr(pipe, "patch_size", None) or getattr(_denoiser_config(pipe), "patch_size", None),
    }  # fmt: skip
    try:
        if flux2:
            rows, columns = (int(side) // (2 * pipe.vae_scale_factor) for side in (height, width))
            return latents.reshape(len(latents), rows, columns, -1).permute(0, 3, 1, 2)
        assert unpack is not None
        wanted = inspect.signature(unpack).parameters
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ValueError(
                f"{type(pipe).__name__} unpacks its latents by {', '.join(unknown)}, which is not known here"
            )
        unpacked: Tensor = unpack(**{name: known[name] for name in wanted})
    except RuntimeError as error:  # a view that does not fit
        raise ValueError(
            f"packed latents of shape {tuple(latents.shape)} are not those of a {height} x {width} image; "
            "say height= and width="
        ) from error
    return unpacked


def _channels(pipe: Any) -> int | None:
    config = pipe.vae.config
    return getattr(config, "z_dim", None) or getattr(config, "latent_channels", None)


def _denoiser_config(pipe: Any) -> Any:
    return getattr(getattr(pipe, "transformer", None), "config", None)
