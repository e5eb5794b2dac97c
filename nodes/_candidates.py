"""Seeds tried one after the other with ComfyUI's own sampling; only the best are kept in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_SEED = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Settings:
    """What KSampler takes, besides the seed and the latent."""

    model: Any
    positive: Any
    negative: Any
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float


@dataclass(frozen=True)
class Candidate:
    """One finished try.

    Attributes:
        seed: The seed that makes it again, with the core KSampler too.
        score: Its score.
        blank: Whether its image has no content.
        latent: Its latent, in main memory.
        image: (1, H, W, 3), in main memory.
    """

    seed: int
    score: float
    blank: bool
    latent: dict[str, Any]
    image: Tensor


def keep_best(kept: list[Candidate], new: list[Candidate], keep: int) -> list[Candidate]:
    """The best `keep` of both, best first; blank ones after all others, of equal ones the earlier."""
    return sorted([*kept, *new], key=lambda candidate: (candidate.blank, -candidate.score))[:keep]


def sample(settings: Settings, latent: dict[str, Any], seeds: list[int], on_step: Callable[[int, Tensor], None]) -> Any:
    """Sample one latent once per seed, in one batch.

    The noise of each is what the core KSampler draws for its seed and this latent. With one seed everything is the
    same as there; with several, samplers that draw noise on the way (ancestral, SDE) draw it for the whole batch.

    Returns:
        LATENT with `len(seeds)` samples.
    """
    import comfy.sample
    import comfy.utils

    fix = comfy.sample.fix_empty_latent_channels
    # Newer versions of ComfyUI adapt an empty latent's size to the model as well.
    ratios = [latent.get(f"downscale_ratio_{axis}") for axis in ("spacial", "temporal")]
    samples = fix(settings.model, latent["samples"], *ratios[: len(inspect.signature(fix).parameters) - 2])
    noise = torch.cat([comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")) for seed in seeds])
    sampled = comfy.sample.sample(
        settings.model,
        noise,
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        settings.positive,
        settings.negative,
        samples.repeat(len(seeds), *[1] * (samples.ndim - 1)),
        denoise=settings.denoise,
        noise_mask=latent.get("noise_mask"),
        callback=lambda step, denoised, _noisy, _total: on_step(step + 1, denoised),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seeds[0],
    )
    rest = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    return {**rest, "samples": sampled}


def decode(vae: Any, latent: dict[str, Any]) -> Tensor:
    """LATENT to IMAGE, as the core VAE Decode does it."""
    images: Tensor = vae.decode(latent["samples"])
    return images.flatten(0, 1) if images.ndim == 5 else images


class StepReporter:
    """One progress bar over all tries, with the core samplers' preview.

    Args:
        model: The diffusion model.
        total: Steps of all tries.
    """

    def __init__(self, model: Any, total: int) -> None:
        import latent_preview
        from comfy.utils import ProgressBar

        self._bar = ProgressBar(total)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.done = 0

    def __call__(self, seeds: int, step: int, denoised: Tensor) -> None:
        """Report step `step`, counted from 1, of the running try with so many seeds."""
        preview = self._previewer.decode_latent_to_preview_image("JPEG", denoised) if self._previewer else None
        self._bar.update_absolute(self.done + seeds * step, preview=preview)
