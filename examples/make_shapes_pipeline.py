"""Train a tiny diffusion model on synthetic pictures of very different quality, as a testbed for choosing seeds.

A picture is a shape on a gradient, from sharp to heavily blurred. A real `StableDiffusionPipeline` (tiny autoencoder,
tiny U-Net, 0.7 million weights) learns them in a few minutes on a CPU; what its seeds give then truly differs in
quality. The result is `shapes_pipeline/`, which `load_shapes_pipeline` reads.

    python examples/make_shapes_pipeline.py --steps 3000
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_pipelines import tiny_clip, tiny_tokenizer, tiny_unet
from torch import Tensor
from torch.nn import functional

SIDE = 64
FOLDER = Path(__file__).resolve().parent / "shapes_pipeline"


def draw(count: int, generator: torch.Generator) -> Tensor:
    """(count, 3, 64, 64) pictures in [0, 1]: a disc or square with stripes on a gradient, each blurred differently."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    rows, columns = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    angle = uniform(count, 1, 1) * 2 * math.pi
    slope = (rows * angle.sin() + columns * angle.cos()) / 2.83 + 0.5
    top, bottom, inside = (uniform(count, 3, 1, 1) for _ in range(3))
    background = 0.3 + 0.4 * (top * slope[:, None] + bottom * (1 - slope[:, None]))
    x, y = (0.6 * (uniform(count, 1, 1) - 0.5) for _ in range(2))
    radius = 0.4 + 0.3 * uniform(count, 1, 1)
    disc = ((rows - y) ** 2 + (columns - x) ** 2).sqrt() < radius
    square = torch.maximum((rows - y).abs(), (columns - x).abs()) < 0.85 * radius
    mask = torch.where(uniform(count, 1, 1) < 0.5, disc, square)[:, None].float()
    stripes = (torch.sin((rows * angle.cos() - columns * angle.sin()) * 14) > 0)[:, None].float()
    shape = (inside.round() * 0.8 + 0.1) * (0.4 + 0.6 * stripes)
    sharp = background * (1 - mask) + shape * mask
    offsets = torch.arange(-9, 10, dtype=torch.float32)
    sigma = 0.2 + 4.5 * uniform(count, 1)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=-1).repeat_interleave(3, dim=0)
    flat = functional.pad(sharp.reshape(1, count * 3, SIDE, SIDE), (9, 9, 9, 9), mode="replicate")
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=count * 3)
    return functional.conv2d(flat, kernel[:, None, :, None], groups=count * 3).view(count, 3, SIDE, SIDE).clamp(0, 1)


def build() -> StableDiffusionPipeline:
    """The pipeline with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(24, 24, 24),
            decoder_block_out_channels=(24, 24, 24),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            latent_channels=4,
        )
        pipe = StableDiffusionPipeline(
            vae=vae.eval(),
            text_encoder=tiny_clip(),
            tokenizer=tiny_tokenizer(),
            unet=tiny_unet(wide=True),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.02,
                beta_schedule="scaled_linear",
                clip_sample=False,
                timestep_spacing="trailing",
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_shapes_pipeline(folder: Path = FOLDER) -> StableDiffusionPipeline:
    """The trained pipeline."""
    pipe = build()
    for name in ("vae", "unet"):
        tensors = {key: value.float() for key, value in load_file(folder / f"{name}.safetensors").items()}
        getattr(pipe, name).load_state_dict(tensors)
    return pipe


def train(pipe: Any, steps: int, batch: int) -> None:
    """Fit the autoencoder, then the U-Net in its latent space."""
    generator = torch.Generator().manual_seed(0)
    vae, unet, scheduler = pipe.vae, pipe.unet, pipe.scheduler
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps // 3 + 1)
    for step in range(steps // 3):
        pixels = draw(batch // 2, generator)
        latents = vae.encode(pixels * 2 - 1, return_dict=False)[0]
        decoded = vae.decode(latents, return_dict=False)[0]
        edges = (decoded.diff(dim=-1) - 2 * pixels.diff(dim=-1)).abs().mean() + (
            decoded.diff(dim=-2) - 2 * pixels.diff(dim=-2)
        ).abs().mean()
        # The latents are pulled to unit variance, which is what the noise schedule expects.
        spread = (latents.std() - 1) ** 2 + latents.mean() ** 2 + 1e-3 * latents.pow(4).mean()
        loss = (decoded - (2 * pixels - 1)).abs().mean() + edges + 0.1 * spread
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"autoencoder {step}: {float(loss.detach()):.4f}, spread {float(latents.detach().std()):.3f}",
                flush=True,
            )
    with torch.no_grad():
        words = pipe.encode_prompt("a shape", "cpu", 1, False)[0]
    averaged = [parameter.detach().clone() for parameter in unet.parameters()]
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps + 1)
    for step in range(steps):
        with torch.no_grad():
            latents = vae.encode(draw(batch, generator) * 2 - 1, return_dict=False)[0]
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(0, 1000, (len(latents),), generator=generator)
        noisy = scheduler.add_noise(latents, noise, times)
        predicted = unet(noisy, times, words.expand(len(latents), -1, -1), return_dict=False)[0]
        loss = (predicted - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        for mean, parameter in zip(averaged, unet.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 / min(step + 1, 300))
        if step % 100 == 0:
            print(f"denoiser {step}: {float(loss.detach()):.4f}", flush=True)
    with torch.no_grad():
        for mean, parameter in zip(averaged, unet.parameters(), strict=True):
            parameter.copy_(mean)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="training steps of the U-Net (default: 3000)")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step (default: 32)")
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    pipe = build()
    train(pipe, options.steps, options.batch)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in ("vae", "unet"):
        tensors = {key: value.half().contiguous() for key, value in getattr(pipe, name).state_dict().items()}
        save_file(tensors, options.output / f"{name}.safetensors")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
