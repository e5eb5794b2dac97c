"""Tiny random pipelines of the families that are in use, with embeddings in the place of the text encoders."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import diffusers
import tiny_pipelines as tiny  # docs/examples
import torch

WIDTH = 32
FLOW: Any = diffusers.FlowMatchEulerDiscreteScheduler
NO_TEXT: dict[str, Any] = {"text_encoder": None, "tokenizer": None}


def embeds(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (1, 7, WIDTH)), generator=torch.Generator().manual_seed(seed))


def flow_vae() -> Any:
    return tiny.tiny_vae(shift_factor=0.1, scaling_factor=0.4)


def qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.9, 1.1, 1.2, 0.8],
    ).eval()  # fmt: skip


def qwen() -> Any:
    return diffusers.QwenImagePipeline(
        scheduler=FLOW(), vae=qwen_vae(), **NO_TEXT,
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
        ).eval(),
    )  # fmt: skip


def krea2() -> Any:
    return diffusers.Krea2Pipeline(
        scheduler=FLOW(), vae=qwen_vae(), **NO_TEXT, text_encoder_select_layers=(0, 1), is_distilled=True,
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
        scheduler=FLOW(), vae=vae, **NO_TEXT,
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        ).eval(),
    )  # fmt: skip


def z_image() -> Any:
    return diffusers.ZImagePipeline(
        scheduler=FLOW(), vae=flow_vae(), **NO_TEXT,
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
        scheduler=FLOW(), vae=vae, **NO_TEXT,
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
            num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=WIDTH,
            sample_size=16,
        ).eval(),
    )  # fmt: skip


def chroma() -> Any:
    return diffusers.ChromaPipeline(
        scheduler=FLOW(), vae=flow_vae(), **NO_TEXT,
        transformer=diffusers.ChromaTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8), approximator_num_channels=8,
            approximator_hidden_dim=16, approximator_layers=1,
        ).eval(),
    )  # fmt: skip


def lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        scheduler=FLOW(), vae=flow_vae(), **NO_TEXT,
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(64, 64, 64),
            cap_feat_dim=WIDTH,
        ).eval(),
    )  # fmt: skip


def hidream() -> Any:
    more = dict.fromkeys(f"{kind}_{number}" for kind in NO_TEXT for number in (2, 3, 4))
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=FLOW(), vae=flow_vae(), **NO_TEXT, **more,
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, caption_channels=[WIDTH, WIDTH], text_emb_dim=WIDTH, num_routed_experts=2,
            num_activated_experts=1, axes_dims_rope=(8, 4, 4), max_resolution=(16, 16), llama_layers=[0, 1],
        ).eval(),
    )  # fmt: skip
    pipe.default_sample_size = 16  # it scales every size to this many pixels
    return pipe


def kolors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its text encoder uses torch.jit.script
        from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline  # not exported without sentencepiece
    return KolorsPipeline(
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        vae=tiny.tiny_vae(),
        **NO_TEXT,
        unet=tiny.tiny_unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        ),
    )


def pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        scheduler=diffusers.DPMSolverMultistepScheduler(), vae=tiny.tiny_vae(), **NO_TEXT,
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=16, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
            caption_channels=WIDTH, in_channels=4, out_channels=8, cross_attention_dim=16, num_embeds_ada_norm=1000,
            use_additional_conditions=False,
        ).eval(),
    )  # fmt: skip


def kandinsky22() -> Any:
    return diffusers.KandinskyV22Pipeline(
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=True,
        ),
        unet=diffusers.UNet2DConditionModel(
            in_channels=4, out_channels=8, addition_embed_type="image", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), block_out_channels=(16, 32),
            layers_per_block=1, encoder_hid_dim=WIDTH, encoder_hid_dim_type="image_proj", cross_attention_dim=WIDTH,
            attention_head_dim=4, resnet_time_scale_shift="scale_shift", norm_num_groups=4,
        ).eval(),
        movq=diffusers.VQModel(
            block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], latent_channels=4, layers_per_block=1,
            norm_num_groups=32, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
        ).eval(),
    )  # fmt: skip


def kandinsky5() -> Any:
    pipe = diffusers.Kandinsky5T2IPipeline(
        scheduler=FLOW(), vae=tiny.tiny_vae(scaling_factor=0.4), **NO_TEXT, text_encoder_2=None, tokenizer_2=None,
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4, in_text_dim=WIDTH, in_text_dim2=WIDTH, time_dim=16, out_visual_dim=4, model_dim=32,
            ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
        ).eval(),
    )  # fmt: skip
    pipe.resolutions = [(128, 128)]
    return pipe


def wan() -> Any:
    return diffusers.WanPipeline(
        scheduler=FLOW(shift=7.0), **NO_TEXT,
        vae=diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        ).eval(),
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
        ).eval(),
    )  # fmt: skip


def ltx() -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size=1, patch_size_t=1,
    ).eval()  # fmt: skip
    return diffusers.LTXPipeline(
        scheduler=FLOW(), vae=vae, **NO_TEXT,
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
            cross_attention_dim=16, num_layers=1, caption_channels=WIDTH,
        ).eval(),
    )  # fmt: skip


def animatediff() -> Any:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    pipe = diffusers.AnimateDiffPipeline(
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False), vae=tiny.tiny_vae(), **NO_TEXT,
        unet=tiny.tiny_unet(), motion_adapter=adapter,
    )  # fmt: skip
    pipe.unet.eval()
    return pipe


def cogvideox() -> Any:
    return diffusers.CogVideoXPipeline(
        scheduler=diffusers.CogVideoXDDIMScheduler(), **NO_TEXT,
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
            temporal_compression_ratio=4,
        ).eval(),
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
            text_embed_dim=WIDTH, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=7,
        ).eval(),
    )  # fmt: skip


def arguments_of(name: str) -> dict[str, Any]:
    """A call's arguments; images of 32 x 32, in four steps."""
    if name in tiny.TINY_PIPELINES:
        short = {"max_sequence_length": 16} if name == "flux" else {}
        return {"prompt": "a cat", "num_inference_steps": 4, "height": 32, "width": 32, **short}
    mask = torch.ones(1, 7, dtype=torch.bool)
    size = {"height": 32, "width": 32, "num_inference_steps": 4}
    prompt = {"prompt_embeds": embeds()}
    guided = {**prompt, "negative_prompt_embeds": embeds(1), "guidance_scale": 3.0}
    masked = {**guided, "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    pooled = {"pooled_prompt_embeds": embeds(4, 1, WIDTH), "negative_pooled_prompt_embeds": embeds(5, 1, WIDTH)}
    video = {"num_frames": 9, "num_inference_steps": 2, "guidance_scale": 1.0, **prompt}
    large = {"height": 128, "width": 128}  # where a pipeline expects a VAE of a factor of 8, and this one has 2
    whole = {"negative_prompt": None, "use_resolution_binning": False}
    lengths = torch.tensor([0, 7], dtype=torch.int32)
    own: dict[str, dict[str, Any]] = {
        "qwen": {**prompt, "prompt_embeds_mask": mask.long()},
        "krea2": {"prompt_embeds": embeds(0, 1, 7, 2, WIDTH), "prompt_embeds_mask": mask, "guidance_scale": 0.0},
        "flux2": prompt,
        "z_image": {"prompt_embeds": [embeds()[0]], "negative_prompt_embeds": [embeds(1)[0]], "guidance_scale": 3.0},
        "sana": {**masked, **whole, "prompt_attention_mask": mask.long(), "negative_prompt_attention_mask": mask.long()},
        "pixart": {**masked, **whole},
        "chroma": masked,
        "lumina2": {**masked, **large},
        "kolors": {**guided, **pooled},
        "hidream": {
            **pooled, "prompt_embeds_t5": embeds(), "negative_prompt_embeds_t5": embeds(1), "guidance_scale": 3.0,
            "prompt_embeds_llama3": embeds(2, 2, 1, 7, WIDTH), "negative_prompt_embeds_llama3": embeds(3, 2, 1, 7, WIDTH),
        },
        "kandinsky22": {
            "image_embeds": embeds(0, 1, WIDTH), "negative_image_embeds": embeds(1, 1, WIDTH),
            "guidance_scale": 3.0,
        },
        "kandinsky5": {
            **large, "prompt_embeds_qwen": embeds(), "negative_prompt_embeds_qwen": embeds(1), "guidance_scale": 3.0,
            "prompt_embeds_clip": embeds(2, 1, WIDTH), "negative_prompt_embeds_clip": embeds(3, 1, WIDTH),
            "prompt_cu_seqlens": lengths, "negative_prompt_cu_seqlens": lengths,
        },
        "wan": video,
        "ltx": {**video, "prompt_attention_mask": mask},
        "animatediff": video,
        "cogvideox": {**video, "height": 16, "width": 16},
    }  # fmt: skip
    return {**size, **own[name]}


FAMILIES: dict[str, Any] = {
    **tiny.TINY_PIPELINES,
    **{
        build.__name__: build
        for build in (
            *(qwen, krea2, flux2, z_image, sana, chroma, lumina2, hidream, kolors, pixart, kandinsky22, kandinsky5),
            *(wan, ltx, animatediff, cogvideox),
        )
    },
}


def make(name: str) -> tuple[Any, dict[str, Any]]:
    """A new pipeline and the arguments of a call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, arguments_of(name)


@cache
def build(name: str) -> tuple[Any, dict[str, Any]]:
    """One shared pipeline per family; best_of_n must leave it as it is."""
    return make(name)
