"""RALI Guidance: sampling nudged by the score's gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from torch import Tensor

from ..rali_core.inference_tensors import input_gradient
from ._inputs import coverage_input, model_input
from ._models import ModelHandle, get_model, load_on_device
from ._scoring import chosen_coverage

if TYPE_CHECKING:
    from ..rali_core.guidance import Guide


class RaliGuidance(io.ComfyNode):
    """A model that is nudged towards a better score."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_Guidance",
            display_name="RALI Guidance",
            category="RALI",
            description=(
                "Nudges sampling by the score's gradient, with any sampler. A score is not quality: pushed too hard, "
                "the images get patterns that please the scorer and nobody else (reward hacking). Look at them, and "
                "compare with the same seed without guidance. Each guided step decodes and scores with gradients, "
                "which takes memory: a TAESD VAE is enough here."
            ),
            search_aliases=["score guidance", "classifier guidance", "universal guidance", "reward", "gradient"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model."),
                io.Vae.Input("vae", tooltip="Decodes what the model expects; TAESD takes far less memory."),
                io.Float.Input(
                    "scale",
                    default=100.0,
                    min=0.0,
                    max=1e7,
                    step=1.0,
                    tooltip="How strong: try 10, 100, 1000. 0 turns guidance off.",
                ),
                io.Float.Input(
                    "clip",
                    default=0.05,
                    min=0.001,
                    max=1.0,
                    step=0.005,
                    tooltip="Largest nudge per step, as a part of the latent's size. The main guard against artifacts.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where guidance begins; before, the image is too vague to judge.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where it ends; the last steps then repair what it broke.",
                ),
                io.Float.Input(
                    "regularisation",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="How much of the nudges so far is taken back at each step.",
                ),
                model_input("rali_model"),
                coverage_input(),
            ],
            outputs=[io.Model.Output("model", tooltip="The guided model, for any sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        scale: float,
        clip: float,
        start_percent: float,
        end_percent: float,
        regularisation: float,
        coverage: str,
        rali_model: ModelHandle | None = None,
    ) -> io.NodeOutput:
        from comfy.patcher_extension import CallbacksMP

        from ..rali_core.guidance import GuidanceSettings, Guide

        settings = GuidanceSettings(scale, clip, start_percent, end_percent, regularisation)
        if not scale:
            return io.NodeOutput(model)
        handle = rali_model or get_model()
        guided, guide = model.clone(), Guide(settings)
        guided.set_additional_models("rali", [vae.patcher, handle.patcher])  # memory is freed for all of them at once
        guided.add_callback_with_key(CallbacksMP.ON_PRE_RUN, "rali", lambda _: guide.reset())
        guided.set_model_sampler_post_cfg_function(_Nudge(guided, vae, handle, guide, chosen_coverage(coverage)))
        return io.NodeOutput(guided)


class _Nudge:
    """ComfyUI's sampler_post_cfg_function.

    Args:
        patcher: Of the diffusion model.
        vae: Decodes the latents.
        handle: The scorer.
        guide: The guidance of this run.
        coverage: The scorer's coverage.
    """

    def __init__(self, patcher: Any, vae: Any, handle: ModelHandle, guide: Guide, coverage: Any) -> None:
        sampling = patcher.get_model_object("model_sampling")
        settings = guide.settings
        self._window = [sampling.percent_to_sigma(percent) for percent in (settings.start, settings.stop)]
        self._vae, self._handle, self._guide, self._coverage = vae, handle, guide, coverage

    def __call__(self, args: dict[str, Any]) -> Tensor:
        denoised: Tensor = args["denoised"]
        first, last = self._window
        if not last < float(args["sigma"].flatten()[0]) <= first:
            return denoised
        load_on_device(self._handle)
        model, scorer = args["model"], self._handle.scorer.model
        latents = model.process_latent_out(denoised.float())
        gradient = input_gradient([self._vae.first_stage_model, scorer], self._loss, latents).to(latents.device)
        nudged = latents + self._guide.nudge(gradient, latents)
        change = model.process_latent_in(nudged) - model.process_latent_in(latents)
        return (denoised.float() + change).to(denoised.dtype)

    def _loss(self, latents: Tensor) -> Tensor:
        """(B,) 1 - score of latents, in the VAE's scale."""
        vae, scorer = self._vae, self._handle.scorer
        weight = next(vae.first_stage_model.parameters())
        if vae.latent_dim == 2 and latents.ndim == 5:
            latents = latents[:, :, 0]
        decoded = vae.first_stage_model.decode(latents.to(weight.device, vae.vae_dtype))
        # A copy: it works in place. (B, 3, H, W), or (B, 3, 1, H, W) from a VAE of videos.
        pixels = vae.process_output(decoded.float().clone())
        pixels = pixels[:, :, 0] if pixels.ndim == 5 else pixels
        scores: Tensor = scorer.model(pixels[:, :3].to(scorer.device), coverage=self._coverage)
        return 1.0 - scores
