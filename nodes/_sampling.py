"""ComfyUI's two ways of sampling, KSampler's and SamplerCustomAdvanced's, as functions of the seed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

OnStep = Callable[[int, Tensor], None]
"""Called with the 0-based step and the denoised latent, in the model's own scale."""

Wrapper = Callable[..., Any]
"""Wrapper around each call of the denoiser, for ComfyUI's CALC_COND_BATCH."""


class Sampling(Protocol):
    """Makes a latent from a seed."""

    @property
    def patcher(self) -> Any:
        """ComfyUI's ModelPatcher of the diffusion model."""

    @property
    def steps(self) -> int:
        """Denoising steps of one try."""

    @property
    def things(self) -> tuple[Any, ...]:
        """Everything that the result depends on besides seed and latent."""

    @property
    def ends_noisy(self) -> bool:
        """Whether the result still contains noise, as after the first part of SplitSigmas."""

    def wrapped(self, wrapper: Wrapper) -> Sampling:
        """A copy with a wrapper around each call of the denoiser."""

    def sample(self, latent: dict[str, Any], samples: Tensor, seeds: list[int], on_step: OnStep) -> Tensor:
        """Sample `samples` once per seed, in one batch; with the noise that the core nodes draw for each seed."""


@dataclass(frozen=True)
class KSampling:
    """The inputs of KSampler, without the seed and the latent."""

    model: Any
    positive: Any
    negative: Any
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float

    ends_noisy = False

    @property
    def patcher(self) -> Any:
        return self.model

    @property
    def things(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())

    def wrapped(self, wrapper: Wrapper) -> KSampling:
        from comfy.patcher_extension import WrappersMP

        model = self.model.clone()
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "rali", wrapper)
        return replace(self, model=model)

    def sample(self, latent: dict[str, Any], samples: Tensor, seeds: list[int], on_step: OnStep) -> Tensor:
        import comfy.sample
        import comfy.utils

        noise = torch.cat([comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")) for seed in seeds])
        sampled: Tensor = comfy.sample.sample(
            self.model,
            noise,
            self.steps,
            self.cfg,
            self.sampler_name,
            self.scheduler,
            self.positive,
            self.negative,
            _repeat(samples, len(seeds)),
            denoise=self.denoise,
            noise_mask=latent.get("noise_mask"),
            callback=lambda step, denoised, _noisy, _total: on_step(step, denoised),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seeds[0],
        )
        return sampled


@dataclass(frozen=True)
class CustomSampling:
    """The inputs of SamplerCustomAdvanced, without the latent; the default noise is RandomNoise's."""

    noise: Any | None
    guider: Any
    sampler: Any
    sigmas: Tensor

    @property
    def patcher(self) -> Any:
        return self.guider.model_patcher

    @property
    def steps(self) -> int:
        return max(len(self.sigmas) - 1, 0)

    @property
    def things(self) -> tuple[Any, ...]:
        return self.noise, self.guider, self.sampler, self.sigmas

    @property
    def ends_noisy(self) -> bool:
        return self.steps > 0 and float(self.sigmas[-1]) > 0

    def wrapped(self, wrapper: Wrapper) -> CustomSampling:
        from comfy.model_patcher import create_model_options_clone
        from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

        guider = copy.copy(self.guider)
        guider.model_options = create_model_options_clone(self.guider.model_options)
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "rali", wrapper, guider.model_options, is_model_options=True)
        return replace(self, guider=guider)

    def sample(self, latent: dict[str, Any], samples: Tensor, seeds: list[int], on_step: OnStep) -> Tensor:
        import comfy.utils
        from comfy.model_management import intermediate_device

        noises = [with_seed(self.noise, seed).generate_noise({**latent, "samples": samples}) for seed in seeds]
        sampled: Tensor = self.guider.sample(
            torch.cat(noises),
            _repeat(samples, len(seeds)),
            self.sampler,
            self.sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=lambda step, denoised, _noisy, _total: on_step(step, denoised),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seeds[0],
        )
        return sampled.to(intermediate_device())


def with_seed(noise: Any | None, seed: int) -> Any:
    """A copy of a NOISE with another seed; RandomNoise's if there is none.

    Raises:
        ValueError: It has no seed that can be set.
    """
    if noise is None:
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        return Noise_RandomNoise(seed)
    if getattr(noise, "seed", None) == seed:
        return noise
    other = copy.copy(noise)
    try:
        other.seed = seed
    except AttributeError:
        raise ValueError(
            f"noise: expected one with a seed that can be set, as RandomNoise gives it, got {type(noise).__name__}; "
            "wire RandomNoise, or nothing to use the widget seed"
        ) from None
    return other


def prepare_samples(patcher: Any, latent: dict[str, Any]) -> Tensor:
    """A latent's samples, adapted to the model as by the core samplers.

    Raises:
        ValueError: It does not hold exactly one still image.
    """
    import comfy.sample

    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError("latent_image: expected one image, got several tensors (a video with sound)")
    if len(samples) != 1:
        raise ValueError(
            f"latent_image: expected one latent, got {len(samples)}; the sampler makes its own "
            "tries: set the batch size to 1, and n to what you want"
        )
    fix = comfy.sample.fix_empty_latent_channels
    # Newer versions of ComfyUI adapt an empty latent's size to the model as well.
    ratios = [latent.get(f"downscale_ratio_{axis}") for axis in ("spacial", "temporal")]
    fixed: Tensor = fix(patcher, samples, *ratios[: len(inspect.signature(fix).parameters) - 2])
    if fixed.ndim == 5 and fixed.shape[2] != 1:
        raise ValueError(f"latent_image: expected one image, got a video of {fixed.shape[2]} latent frames")
    return fixed


def to_latent(latent: dict[str, Any], samples: Tensor) -> dict[str, Any]:
    """Sampled latents with the other entries of the latent that they were made from."""
    rest = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    return {**rest, "samples": samples}


def decode(vae: Any, samples: Tensor) -> list[Tensor]:
    """Latents to single images (1, H, W, C) in main memory, as the core VAE Decode makes them."""
    images: Tensor = vae.decode(samples)
    flat = (images.flatten(0, 1) if images.ndim == 5 else images).cpu()
    if len(flat) != len(samples):
        raise ValueError(f"vae: expected one image per latent, got {len(flat)} for {len(samples)}")
    return list(flat.split(1))


def _repeat(samples: Tensor, count: int) -> Tensor:
    return samples.repeat(count, *[1] * (samples.ndim - 1))


class StepReporter:
    """One progress bar over all tries, with the core samplers' preview.

    Args:
        patcher: Of the diffusion model.
        total: Steps of all tries.
        done: Steps that were done before.
    """

    def __init__(self, patcher: Any, total: int, done: int = 0) -> None:
        import latent_preview
        from comfy.utils import ProgressBar

        self._bar = ProgressBar(max(total, 1))
        self._previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
        self.done = done

    def __call__(self, steps: int, denoised: Tensor) -> None:
        """Report that so many more steps are done."""
        self.done += steps
        preview = self._previewer.decode_latent_to_preview_image("JPEG", denoised) if self._previewer else None
        self._bar.update_absolute(self.done, preview=preview)


def planned_steps(seeds: Sequence[int], rungs: Sequence[int], survivors: Callable[[int], int], steps: int) -> int:
    """Steps that a pruned search will take, over all tries."""
    total, standing, before = 0, len(seeds), 0
    for rung in rungs:
        total, standing, before = total + standing * (rung + 1 - before), survivors(standing), rung + 1
    return total + standing * (steps - before)
