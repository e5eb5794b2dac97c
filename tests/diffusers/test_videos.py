"""Videos: the best of several seeds, by their frames, with tiny random weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rali_core.diffusers_hook import SuccessiveHalving, best_of_n
from rali_core.diffusers_hook.scoring import frames_of, shows_content

diffusers = pytest.importorskip("diffusers", minversion="0.42")
WIDTH = 32


def wan() -> Any:
    return diffusers.WanPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder=None, tokenizer=None,
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
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None,
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
            cross_attention_dim=16, num_layers=1, caption_channels=WIDTH,
        ).eval(),
    )  # fmt: skip


@cache
def build(name: str) -> tuple[Any, dict[str, Any]]:
    embeds = torch.randn(1, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {
        "height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 2, "guidance_scale": 1.0,
        "prompt_embeds": embeds,
    }  # fmt: skip
    if name == "ltx":
        call["prompt_attention_mask"] = torch.ones(1, 7, dtype=torch.bool)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"wan": wan, "ltx": ltx}[name](), call


def contrast(images: list[Any]) -> list[float]:
    return [float(np.asarray(image, dtype=np.float64).std()) for image in images]


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_the_best_video_is_kept_and_its_seed_makes_it_again(name: str, output_type: str, tmp_path: Path) -> None:
    pipe, call = build(name)
    result = best_of_n(
        pipe, n=3, keep=2, scorer=contrast, aggregate="worst tenth", video_frames=4, output_type=output_type, **call
    )
    assert len(result) == 2
    finished = [candidate.score for candidate in result.report.candidates]
    assert list(result.scores) == sorted((x for x in finished if x is not None), reverse=True)[:2]
    generator = torch.Generator("cpu").manual_seed(result.seeds[0])
    alone = pipe(generator=generator, output_type=output_type, **call).frames[0]
    assert len(alone) == len(result.images[0]) == 9
    assert all(
        np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(alone, result.images[0], strict=True)
    )
    if output_type == "pil":
        scores = contrast([alone[place] for place in (0, 2, 4, 6) if shows_content(alone[place])])
        assert result.scores[0] == pytest.approx(min(scores), rel=1e-6)  # a tenth of four frames is one
        assert contrast([result.pil_images[0]]) == [max(scores)]
    assert len(result.save(tmp_path)) == 2


def test_unsupported_options_for_videos_are_an_error_before_generation() -> None:
    pipe, call = build("wan")
    for options, message in (
        ({"prune": SuccessiveHalving()}, "makes videos: no denoised preview; best_of_n without prune= works"),
        ({"batch_size": 2}, "videos are made one a call"),
        ({"num_videos_per_prompt": 2}, "videos are made one a call"),
        ({"output_type": "latent"}, "output_type='latent' gives none"),
        ({"aggregate": "best"}, "expected an aggregate of mean, worst tenth, minimum"),
        ({"video_frames": 0}, "video_frames of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            best_of_n(pipe, n=2, scorer=contrast, **call, **options)  # type: ignore[arg-type]


def test_a_video_that_is_mostly_black_is_never_kept() -> None:
    pipe, call = build("wan")

    class Black(type(pipe)):  # type: ignore[misc]
        def __call__(self, *args: Any, **options: Any) -> Any:
            output = super().__call__(*args, **options)
            if options["generator"].initial_seed() == 1:
                output.frames[0][:5] = [frame.point(lambda _: 0) for frame in output.frames[0][:5]]
            return output

    black = Black(**pipe.components)
    result = best_of_n(black, n=2, scorer=contrast, video_frames=9, output_type="pil", **call)
    assert result.seeds == (0,)
    assert "5 of 9 frames" in (result.report.candidates[1].reason or "")
    assert frames_of([1, 2, 3, 4, 5], 2) == [1, 3]
