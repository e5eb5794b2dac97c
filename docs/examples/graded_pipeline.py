"""A pipeline whose images' quality is known: one photograph, more or less blurred, as the seed has it.

Pipeline, scheduler and autoencoder are diffusers' own classes. The denoiser is not trained but computed: for a data set
of finitely many images the best possible one is known, the mean of the images, weighted by how well each explains
the noisy input (Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", appendix B.3).
The data set is one photograph at 48 levels of blur. The noise, and thus the seed, decides which one is generated,
as with a real model; but here everybody can see which images are better. The prompt is ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, ModelMixin, StableDiffusionPipeline
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import Image, ImageFilter, ImageOps
from tiny_pipelines import tiny_clip, tiny_tokenizer
from torch import Tensor, nn

SIZE = 192
BLUR = tuple(float(radius) for radius in np.linspace(0.0, 4.0, 48))
"""Radius of each level's Gaussian blur in pixels; level 0 is the photograph itself."""


class FiniteSetDenoiser(ModelMixin, ConfigMixin):
    """The best denoiser for a finite data set, called as a U-Net is; it predicts v.

    Attributes:
        alphas_cumprod: (T,) of the scheduler.
        clean: (K, C * H * W) latents of the data set.
        energies: (K,) half the squared length of each.
    """

    alphas_cumprod: Tensor
    clean: Tensor
    energies: Tensor

    @register_to_config
    def __init__(  # the decorator keeps the arguments, and the pipeline reads them
        self,
        in_channels: int = 3,  # noqa: ARG002
        sample_size: int = SIZE,  # noqa: ARG002
        time_cond_proj_dim: int | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        for name in ("alphas_cumprod", "clean", "energies"):
            self.register_buffer(name, torch.empty(0))

    def learn(self, latents: Tensor, scheduler: Any) -> None:
        """Take (K, C, H, W) latents as the data set."""
        self.alphas_cumprod = scheduler.alphas_cumprod.clone()
        self.clean = latents.flatten(1)
        self.energies = 0.5 * self.clean.square().sum(dim=1)

    def forward(self, sample: Tensor, timestep: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        """(B, C, H, W) noisy latents to v, of the same shape."""
        alpha_bar = self.alphas_cumprod[timestep.long()]
        a, s = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
        # log N(sample; a * clean, s^2), less what is the same for all
        fit = (a * sample.flatten(1) @ self.clean.T - a**2 * self.energies) / s**2
        original = (fit.softmax(dim=1) @ self.clean).view_as(sample)
        noise = (sample - a * original) / s
        return (a * noise - s * original,)


def plain_vae(scaling_factor: float) -> AutoencoderTiny:
    """An autoencoder whose decoder only undoes its own clamp: pixel = 0.5 + 3 tanh(latent / 3)."""
    vae = AutoencoderTiny(
        latent_channels=3,
        encoder_block_out_channels=(6,),
        decoder_block_out_channels=(6,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
        scaling_factor=scaling_factor,
    )
    for parameter in vae.parameters():
        nn.init.zeros_(parameter)
    first, last = vae.decoder.layers[0], vae.decoder.layers[-1]
    with torch.no_grad():
        for channel in range(3):  # its activation is ReLU: one path for what is above zero, one for what is below
            for path, sign in ((channel, 1.0), (channel + 3, -1.0)):
                first.weight[path, channel, 1, 1] = sign
                last.weight[channel, path, 1, 1] = sign
        last.bias.fill_(0.5)
    return vae.eval()


def graded_pixels(photograph: Image.Image, size: int = SIZE) -> Tensor:
    """(K, 3, size, size) in [0, 1]: the photograph at each level of `BLUR`."""
    photograph = ImageOps.fit(photograph.convert("RGB"), (size, size))
    levels = [np.asarray(photograph.filter(ImageFilter.GaussianBlur(radius))) for radius in BLUR]
    return torch.from_numpy(np.stack(levels)).permute(0, 3, 1, 2).float() / 255.0


def graded_pipeline(photograph: Image.Image | None = None, size: int = SIZE) -> StableDiffusionPipeline:
    """Build it.

    Args:
        photograph: By default scikit-image's cat.
        size: Height and width of the images in pixels, a multiple of 8.
    """
    if photograph is None:
        from skimage import data

        photograph = Image.fromarray(data.chelsea())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = StableDiffusionPipeline(
            vae=plain_vae(scaling_factor=0.3 * SIZE / size),  # levels as far apart at any size
            text_encoder=tiny_clip(),
            tokenizer=tiny_tokenizer(),
            unet=FiniteSetDenoiser(sample_size=size).eval(),
            # The first step must start from pure noise, or the photograph's brightness would have an influence.
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear",
                clip_sample=False,
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                timestep_spacing="trailing",
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    latents = 3.0 * torch.atanh((graded_pixels(photograph, size) - 0.5) / 3.0)
    pipe.unet.learn(latents * pipe.vae.config.scaling_factor, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe
