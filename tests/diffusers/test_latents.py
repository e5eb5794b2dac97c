from __future__ import annotations

from typing import Any

import pytest
import torch

from rali_core.diffusers_hook import decode_latents, latents_to_pixels


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux"])
def test_decoding_gives_what_the_pipeline_itself_gives(name: str, get_pipe: Any, arguments: Any) -> None:
    pipe = get_pipe(name)

    def run(kind: str) -> Any:
        return pipe(**arguments(name, output_type=kind), generator=torch.Generator().manual_seed(0)).images

    with torch.no_grad():
        pixels = latents_to_pixels(pipe, run("latent"), height=32, width=32)
    assert torch.allclose(pixels, run("pt"), atol=1e-5)


def test_latent_means_are_undone_as_sdxl_does(tiny: Any, arguments: Any) -> None:
    pipe = tiny.tiny_sdxl()
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.9, 1.1, 1.2, 0.8])
    latents = pipe(**arguments("sdxl", output_type="latent"), generator=torch.Generator().manual_seed(0)).images
    expected = pipe(**arguments("sdxl", output_type="pt"), generator=torch.Generator().manual_seed(0)).images
    with torch.no_grad():
        assert torch.allclose(latents_to_pixels(pipe, latents), expected, atol=1e-5)


def test_a_half_precision_vae_that_asks_for_it_decodes_in_float32_and_goes_back(tiny: Any) -> None:
    vae = tiny.tiny_vae(force_upcast=True).half()
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = decode_latents(vae, latents)
        assert vae.dtype == torch.float16
        assert torch.equal(pixels, decode_latents(vae.float(), latents))


def test_a_bfloat16_vae_decodes_in_its_own_precision(tiny: Any) -> None:
    vae = tiny.tiny_vae().bfloat16()
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (decode_latents(vae, latents) - decode_latents(vae.float(), latents)).abs().mean() < 0.02


def test_pixels_that_are_not_finite_are_an_error(tiny: Any) -> None:
    vae = tiny.tiny_vae()
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(float("nan"))
        with pytest.raises(ValueError, match=r"AutoencoderKL in torch\.float32 decoded to NaN"):
            decode_latents(vae, torch.zeros(1, 4, 16, 16))


def test_latents_of_another_kind_are_refused(get_pipe: Any, sd15: Any) -> None:
    with pytest.raises(
        ValueError, match=r"expected latents of shape \(B, 4, h, w\) or \(B, 4, 1, h, w\) for AutoencoderKL"
    ):
        decode_latents(sd15.vae, torch.zeros(1, 16, 4, 4))
    with pytest.raises(ValueError, match="which no rule unpacks"):
        latents_to_pixels(sd15, torch.zeros(1, 64, 16))
    with pytest.raises(ValueError, match="not those of a 32 x 48 image; say height= and width="):
        latents_to_pixels(get_pipe("flux"), torch.zeros(1, 64, 16), height=32, width=48)
    with pytest.raises(ValueError, match="has no VAE to decode with"):
        latents_to_pixels(object(), torch.zeros(1, 4, 4, 4))
