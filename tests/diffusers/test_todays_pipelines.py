"""Qwen-Image, Krea 2, Flux 2, Z-Image, Sana, PixArt and Wan with tiny random weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from rali_core.diffusers_hook import RaliStepCallback, SuccessiveHalving, best_of_n, latents_to_pixels
from rali_core.diffusers_hook.step_callback import StepHook

diffusers = pytest.importorskip("diffusers", minversion="0.42")
WIDTH = 32


def qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.9, 1.1, 1.2, 0.8],
    ).eval()  # fmt: skip


def qwen() -> Any:
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=qwen_vae(), text_encoder=None, tokenizer=None,
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
        ).eval(),
    )  # fmt: skip


def krea2() -> Any:
    return diffusers.Krea2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=qwen_vae(), text_encoder=None, tokenizer=None,
        text_encoder_select_layers=(0, 1), is_distilled=True,
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=WIDTH, num_text_layers=2,
            text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6),
        ).eval(),
    )  # fmt: skip


def flux2() -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=32,
    ).eval()  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None,
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        ).eval(),
    )  # fmt: skip


def z_image(tiny: Any) -> Any:
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), text_encoder=None, tokenizer=None,
        vae=tiny.tiny_vae(shift_factor=0.1, scaling_factor=0.4),
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6], axes_lens=[64, 32, 32],
        ).eval(),
    )  # fmt: skip


def sana() -> Any:
    vae = diffusers.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    ).eval()  # fmt: skip
    return diffusers.SanaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None,
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
            num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=WIDTH,
            sample_size=16,
        ).eval(),
    )  # fmt: skip


def embeds(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (1, 7, WIDTH)), generator=torch.Generator().manual_seed(seed))


@cache
def build(name: str, tiny: Any) -> tuple[Any, dict[str, Any]]:
    """A pipeline and a call of it, with embeddings in the place of a text encoder."""
    call: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 4, "prompt_embeds": embeds()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = (
            z_image(tiny) if name == "z_image" else {"qwen": qwen, "krea2": krea2, "flux2": flux2, "sana": sana}[name]()
        )
    if name in ("qwen", "krea2"):  # Krea 2 wants a bool mask
        call["prompt_embeds_mask"] = torch.ones(1, 7, dtype=torch.bool if name == "krea2" else torch.long)
    if name == "krea2":
        call |= {"prompt_embeds": embeds(0, 1, 7, 2, WIDTH), "guidance_scale": 0.0}
    if name == "z_image":
        call |= {"prompt_embeds": [embeds()[0]], "negative_prompt_embeds": [embeds(1)[0]], "guidance_scale": 3.0}
    if name == "sana":
        mask = torch.ones(1, 7, dtype=torch.long)
        call |= {"prompt_attention_mask": mask, "negative_prompt_embeds": embeds(1), "negative_prompt_attention_mask": mask,
                 "use_resolution_binning": False, "guidance_scale": 3.0, "negative_prompt": None}  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


NAMES = ["qwen", "krea2", "flux2", "z_image", "sana"]


@pytest.mark.parametrize("name", NAMES)
def test_latents_decode_to_what_the_pipeline_itself_gives(name: str, tiny: Any) -> None:
    pipe, call = build(name, tiny)

    def run(kind: str) -> Any:
        return pipe(**call, output_type=kind, generator=torch.Generator().manual_seed(0)).images

    with torch.no_grad():
        pixels = latents_to_pixels(pipe, run("latent"), height=32, width=32)
    assert torch.allclose(pixels, run("pt").float(), atol=1e-5)


class Previews(StepHook):
    """Keeps the denoised preview of every step, as the scorer would see it."""

    def on_step(self, pipe: Any, step: int, timestep: Any, latents: Any, predicted: Any) -> dict[str, Any]:  # noqa: ARG002
        with torch.no_grad():
            self.last = self.decode(pipe, predicted)
        return {}


@pytest.mark.parametrize("name", NAMES)
def test_the_preview_of_the_last_step_is_the_image(name: str, tiny: Any) -> None:
    pipe, call = build(name, tiny)
    with Previews(pipe) as previews:
        image = pipe(
            **call, output_type="pt", callback_on_step_end=previews, generator=torch.Generator().manual_seed(0)
        ).images
    assert torch.allclose(previews.last, image.float(), atol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_so_it_is_with_noise_and_v_prediction(prediction: str, tiny: Any, arguments: Any) -> None:
    pipe = tiny.tiny_sd15()
    pipe.scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, set_alpha_to_one=True, clip_sample=False, rescale_betas_zero_snr=False
    )
    with Previews(pipe) as previews:
        image = pipe(
            **arguments("sd15", output_type="pt"),
            callback_on_step_end=previews,
            generator=torch.Generator().manual_seed(0),
        ).images
    assert torch.allclose(previews.last, image, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_pruning_leaves_the_winner_bit_for_bit_and_counts(name: str, tiny: Any, contrast: Any) -> None:
    pipe, call = build(name, tiny)
    result = best_of_n(pipe, n=4, scorer=contrast, prune=SuccessiveHalving(at=(0.5,)), **call)
    alone = pipe(**call, generator=torch.Generator().manual_seed(result.seeds[0])).images[0]
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(alone))
    assert result.report.fraction_saved == pytest.approx(1 - (4 * 2 + 2 * 2) / 16)
    plain = best_of_n(pipe, n=2, scorer=contrast, output_type="latent", **call)
    assert plain.pil_images[0].size == (32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_scored_without_a_given_size(name: str, tiny: Any, contrast: Any) -> None:
    pipe, call = build(name, tiny)
    call = {**call, "height": 64, "width": 32}
    with RaliStepCallback(pipe, scorer=contrast) as callback:
        image = pipe(**call, callback_on_step_end=callback, generator=torch.Generator().manual_seed(1)).images[0]
    assert image.size == (32, 64)
    assert callback.history[-1].scores[0] == pytest.approx(contrast([image])[0], abs=0.3)


def test_undecodable_latents_are_an_error_before_the_first_step(tiny: Any, contrast: Any) -> None:
    pipe, call = build("qwen", tiny)
    steps = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: steps.append(1))
    with pytest.raises(ValueError, match=r"expected latents of shape \(B, 16, h, w\)"):
        best_of_n(pipe, n=2, scorer=contrast, prune=SuccessiveHalving(vae=tiny.tiny_vae(latent_channels=16)), **call)
    cheap = RaliStepCallback(pipe, scorer=contrast, vae=tiny.tiny_vae(latent_channels=16))
    with cheap, pytest.raises(ValueError, match="expected latents of shape"):
        pipe(**call, callback_on_step_end=cheap)
    hook.remove()
    assert steps == []


def test_what_cannot_be_counted_is_none(tiny: Any, contrast: Any) -> None:
    pipe, call = build("sana", tiny)
    transformer = pipe.transformer

    class Other(torch.nn.Module):
        config, dtype = transformer.config, transformer.dtype

        def forward(self, packed: dict[str, Any], **kwargs: Any) -> Any:
            return transformer(packed["latents"], **kwargs)

    class Pipeline(diffusers.SanaPipeline):
        def __call__(self, **kwargs: Any) -> Any:
            self.transformer({"latents": torch.zeros(1, 4, 16, 16)}, **inputs)
            self.transformer = transformer
            return super().__call__(**kwargs)

    inputs = {"encoder_hidden_states": embeds(), "timestep": torch.ones(1), "return_dict": False}
    other = Pipeline(**{**pipe.components, "transformer": transformer})
    other.transformer = Other()
    other.set_progress_bar_config(disable=True)
    result = best_of_n(other, n=2, scorer=contrast, **call)
    assert len(result) == 1
    assert result.report.denoiser_calls is None
    assert result.report.full_denoiser_calls is None
    assert result.report.fraction_saved is None
