"""Real diffusers pipelines with tiny configurations and seeded random weights: no download, no GPU, a second each.

They generate noise: they show that each family runs, and the tests use them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

TOKENS = 32
WIDTH = 32


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes."""
    vocabulary = {"<start>": 0, "<end>": 1}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
        model_max_length=TOKENS,
    )


def tiny_clip(*, projection: bool = False) -> Any:
    """A CLIP text model of 2 layers."""
    config = CLIPTextConfig(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def tiny_vae(*, latent_channels: int = 4, **settings: Any) -> AutoencoderKL:
    """An image VAE that halves the sides."""
    return AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=latent_channels,
        norm_num_groups=8,
        layers_per_block=1,
        sample_size=32,
        **settings,
    ).eval()


def tiny_unet(*, in_channels: int = 4, **settings: Any) -> UNet2DConditionModel:
    """A conditional U-Net for 16 x 16 latents."""
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=settings.pop("cross_attention_dim", WIDTH),
        attention_head_dim=8,
        norm_num_groups=4,
        **settings,
    ).eval()


def tiny_sd15(seed: int = 0, *, in_channels: int = 4) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's classes: 32 x 32 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_clip(),
            tokenizer=tiny_tokenizer(),
            unet=tiny_unet(in_channels=in_channels),
            scheduler=DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL's classes: two text encoders, pooled embeddings, added time ids."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_clip(),
            text_encoder_2=tiny_clip(projection=True),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            unet=tiny_unet(
                cross_attention_dim=2 * WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=WIDTH + 6 * 8,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
            ),
            add_watermarker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd3(seed: int = 0) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3's classes: a transformer with flow matching."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=16,
                patch_size=1,
                in_channels=4,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=2 * WIDTH,
                caption_projection_dim=32,
                pooled_projection_dim=2 * WIDTH,
                out_channels=4,
                pos_embed_max_size=32,
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=tiny_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305),
            text_encoder=tiny_clip(projection=True),
            text_encoder_2=tiny_clip(projection=True),
            text_encoder_3=None,
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            tokenizer_3=None,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux(seed: int = 0, *, guidance_embeds: bool = True) -> FluxPipeline:
    """Flux's classes: packed latents, pooled embeddings, a guidance embedding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = FluxPipeline(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=guidance_embeds,
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=tiny_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611),
            text_encoder=tiny_clip(),
            text_encoder_2=T5EncoderModel(
                T5Config(vocab_size=300, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
            ).eval(),
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


TINY_PIPELINES: dict[str, Callable[[], Any]] = {
    "sd15": tiny_sd15,
    "sdxl": tiny_sdxl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
}


def load_pipeline(name: str) -> Any:
    """A pipeline that needs no download by its short name, or any other from a model hub or folder.

    Args:
        name: `"sd15"`, `"sdxl"`, `"sd3"`, `"flux"`; `"graded"`, see graded_pipeline.py; or what
            `DiffusionPipeline.from_pretrained` takes.
    """
    if name in TINY_PIPELINES:
        return TINY_PIPELINES[name]()
    if name == "graded":
        from graded_pipeline import graded_pipeline

        return graded_pipeline()
    from diffusers import DiffusionPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return DiffusionPipeline.from_pretrained(name, torch_dtype=dtype).to(device)
