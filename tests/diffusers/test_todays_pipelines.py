"""The families of today with tiny random weights: decoding, previews, pruning, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rali_core.diffusers_hook import RaliStepCallback, SuccessiveHalving, best_of_n, latents_to_pixels
from rali_core.diffusers_hook.step_callback import StepHook

diffusers = pytest.importorskip("diffusers", minversion="0.42")

NAMES = [
    *("qwen", "krea2", "flux2", "z_image", "sana"),
    *("chroma", "lumina2", "hidream", "kolors", "kandinsky22", "kandinsky5"),
]
DECODED = [*NAMES, "sd15", "sdxl", "sd3", "flux"]
"""With previews; every way in which latents are packed, scaled or normalised is among them."""

KINDS = ("pil", "np", "pt", "latent")
SIZED = ("lumina2", "hidream", "kandinsky5")
"""Make images of other sizes than asked for, with these tiny VAEs."""


def images_of(output: Any) -> Any:
    return output["image" if "image" in output else "images"]


def pixels_of(output: Any) -> torch.Tensor:
    """(B, 3, H, W) of an output of the type "np", which every pipeline clips to 0..1."""
    return torch.from_numpy(images_of(output)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", DECODED)
def test_latents_decode_to_what_the_pipeline_itself_gives(name: str, families: Any) -> None:
    pipe, call = families.build(name)

    def run(kind: str) -> Any:
        return pipe(**call, output_type=kind, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        pixels = latents_to_pixels(pipe, images_of(run("latent")), height=call["height"], width=call["width"])
    assert torch.allclose(pixels, pixels_of(run("np")), atol=1e-5)


class Previews(StepHook):
    """Keeps the denoised preview of every step, as the scorer would see it."""

    def on_step(self, pipe: Any, step: int, timestep: Any, latents: Any, predicted: Any) -> dict[str, Any]:  # noqa: ARG002
        with torch.no_grad():
            self.last = self.decode(pipe, predicted)
        return {}


@pytest.mark.parametrize("name", DECODED)
def test_the_preview_of_the_last_step_is_the_image(name: str, families: Any) -> None:
    pipe, call = families.build(name)
    with Previews(pipe) as previews:
        output = pipe(
            **call, output_type="np", callback_on_step_end=previews, generator=torch.Generator().manual_seed(0)
        )
    assert torch.allclose(previews.last, pixels_of(output), atol=1e-3)


def test_a_pipeline_that_leaves_the_vaes_factor_out_is_followed(tiny: Any) -> None:
    class GlmImagePipeline:
        vae = tiny.tiny_vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.9, 1.1, 1.2, 0.8])

    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in ([0.1, -0.2, 0.3, 0.0], [0.9, 1.1, 1.2, 0.8]))
    with torch.no_grad():
        expected = GlmImagePipeline.vae.decode(latents * std + mean, return_dict=False)[0] / 2 + 0.5
        assert torch.allclose(latents_to_pixels(GlmImagePipeline(), latents), expected.clamp(0, 1), atol=1e-6)


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
def test_pruning_leaves_the_winner_bit_for_bit_and_counts(name: str, families: Any, contrast: Any) -> None:
    pipe, call = families.build(name)
    result = best_of_n(pipe, n=4, scorer=contrast, prune=SuccessiveHalving(at=(0.5,)), **call)
    alone = images_of(pipe(**call, generator=torch.Generator().manual_seed(result.seeds[0])))[0]
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(alone))
    assert result.report.fraction_saved == pytest.approx(1 - (4 * 2 + 2 * 2) / 16)
    plain = best_of_n(pipe, n=2, scorer=contrast, output_type="latent", **call)
    assert plain.pil_images[0].size == result.pil_images[0].size


@pytest.mark.parametrize("name", ["kandinsky22", "kandinsky5", "pixart"])
def test_every_output_type_scores_alike(name: str, families: Any, contrast: Any) -> None:
    pipe, call = families.build(name)
    results = [best_of_n(pipe, n=2, keep=2, scorer=contrast, output_type=kind, **call) for kind in KINDS]
    assert len({result.seeds for result in results}) == 1
    for result in results[1:]:
        assert result.scores == pytest.approx(results[0].scores, abs=0.05)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SIZED])
def test_steps_are_scored_without_a_given_size(name: str, families: Any, contrast: Any) -> None:
    pipe, call = families.build(name)
    call = {**call, "height": 64, "width": 32}
    with RaliStepCallback(pipe, scorer=contrast) as callback:
        image = pipe(**call, callback_on_step_end=callback, generator=torch.Generator().manual_seed(1)).images[0]
    assert image.size == (32, 64)
    assert callback.history[-1].scores[0] == pytest.approx(contrast([image])[0], abs=0.3)


def test_undecodable_latents_are_an_error_before_the_first_step(tiny: Any, families: Any, contrast: Any) -> None:
    pipe, call = families.build("qwen")
    steps = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: steps.append(1))
    with pytest.raises(ValueError, match=r"expected latents of shape \(B, 16, h, w\)"):
        best_of_n(pipe, n=2, scorer=contrast, prune=SuccessiveHalving(vae=tiny.tiny_vae(latent_channels=16)), **call)
    cheap = RaliStepCallback(pipe, scorer=contrast, vae=tiny.tiny_vae(latent_channels=16))
    with cheap, pytest.raises(ValueError, match="expected latents of shape"):
        pipe(**call, callback_on_step_end=cheap)
    hook.remove()
    assert steps == []


def test_what_cannot_be_counted_is_none(families: Any, contrast: Any) -> None:
    pipe, call = families.build("sana")
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

    inputs = {"encoder_hidden_states": families.embeds(), "timestep": torch.ones(1), "return_dict": False}
    other = Pipeline(**{**pipe.components, "transformer": transformer})
    other.transformer = Other()
    other.set_progress_bar_config(disable=True)
    result = best_of_n(other, n=2, scorer=contrast, **call)
    assert len(result) == 1
    assert result.report.denoiser_calls is None
    assert result.report.full_denoiser_calls is None
    assert result.report.fraction_saved is None
