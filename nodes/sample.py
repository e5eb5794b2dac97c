"""RALI Best-of-N Sampler, as KSampler, and RALI Best-of-N (custom sampling), as SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..rali_core.constants import MAX_SEED, SEED_STEP
from ._inputs import KEEPS_ITS_PANEL, PRUNE_AT, coverage_input, model_input, threshold_input

# What searches is imported where it is used, because ComfyUI imports this module at its start.

HOW = (
    "Samples n seeds, decodes and scores each, and keeps the best. Stops early once they are good enough. Memory grows "
    "with keep, not with n. Interrupting keeps the best so far, and running again resumes from there; a try that fails "
    "(NaN, out of memory) costs no other. "
)


def _seed_input(note: str) -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip=(
            f"Seed of the first try; each next one is {SEED_STEP:,} higher, so that with control after generate on "
            f"increment no seed is tried twice.{note}"
        ),
    )


def _search_inputs(same_node: str) -> list[Any]:
    return [
        io.Int.Input("n", default=4, min=1, max=4096, tooltip="How many seeds to try at most."),
        io.Int.Input("keep", default=1, min=1, max=256, tooltip="How many of the best images to output, best first."),
        threshold_input("Stop as soon as keep images have at least this score. 1 tries all n seeds.", default=1.0),
        io.Int.Input(
            "batch_per_try",
            default=1,
            min=1,
            max=64,
            advanced=True,
            tooltip=(
                f"Seeds sampled at once: quicker on a GPU, more memory. With 1, {same_node} repeats a winner "
                "exactly; with more, rounding differs a little, and ancestral and SDE samplers differ."
            ),
        ),
        model_input("rali_model"),
        coverage_input(),
    ]


def _pruning_inputs() -> list[Any]:
    """These come last: saved workflows hold the widgets' values in order."""
    return [
        io.Boolean.Input(
            "early_pruning",
            default=False,
            optional=True,
            tooltip=(
                "Compare all tries early, by what the model expects them to become, and stop the weaker half, again "
                "and again: from n = 4 on at most half of the work. The winner is the same image as without."
            ),
        ),
        io.String.Input(
            "prune_at",
            default=PRUNE_AT,
            optional=True,
            advanced=True,
            tooltip="Where early_pruning compares, as fractions of the steps. Earlier saves more and errs more often.",
        ),
    ]


def _outputs(same_node: str) -> list[Any]:
    return [
        io.Image.Output("images", tooltip="The best images, best first."),
        io.Latent.Output("latents", tooltip="Their latents."),
        io.Int.Output("seeds", is_output_list=True, tooltip=f"Their seeds; each makes its image in {same_node}."),
        io.Float.Output("scores", is_output_list=True, tooltip="Their scores."),
        io.String.Output("report", tooltip="Every try with its seed and score."),
    ]


class RaliBestOfNSampler(io.ComfyNode):
    """Tries seeds as KSampler samples them and keeps the best."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from comfy.samplers import KSampler

        return io.Schema(
            node_id="RALI_BestOfNSampler",
            display_name="RALI Best-of-N Sampler",
            category="RALI",
            description=HOW + "A winning seed makes the same image in KSampler.",
            search_aliases=["best of n sampler", "ksampler", "seed search", "rejection sampling", "good seed"],
            **KEEPS_ITS_PANEL,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model that denoises the latent."),
                _seed_input(""),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps of each try."),
                io.Float.Input(
                    "cfg",
                    default=8.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance: how strictly to follow the prompt.",
                ),
                io.Combo.Input(
                    "sampler_name", options=list(KSampler.SAMPLERS), tooltip="The sampling algorithm, as in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=list(KSampler.SCHEDULERS), tooltip="How noise is removed over the steps."
                ),
                io.Conditioning.Input("positive", tooltip="What the image should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise; one, every try starts from it."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Less than 1 keeps some of the latent's image.",
                ),
                io.Vae.Input("vae", tooltip="Decodes each try so that it can be scored."),
                *_search_inputs("KSampler"),
                *_pruning_inputs(),
            ],
            outputs=_outputs("KSampler"),
        )

    @classmethod
    def fingerprint_inputs(cls, **constants: Any) -> int:
        from ._seed_search import count_interrupts

        return count_interrupts(cls.hidden.unique_id, constants)

    @classmethod
    def execute(
        cls,
        model: Any,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        denoise: float,
        vae: Any,
        **options: Any,
    ) -> io.NodeOutput:
        from ._sampling import KSampling
        from ._seed_search import Options, run_search

        sampling = KSampling(model, positive, negative, steps, cfg, sampler_name, scheduler, denoise)
        return run_search(cls, sampling, latent_image, vae, Options.of(**options))


class RaliBestOfNCustom(io.ComfyNode):
    """Tries seeds as SamplerCustomAdvanced samples them and keeps the best."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_BestOfNCustom",
            display_name="RALI Best-of-N (custom sampling)",
            category="RALI",
            description=HOW
            + (
                "Takes what SamplerCustomAdvanced takes (Flux, Qwen-Image, SD3, Wan stills, SplitSigmas, other packs' "
                "guiders and samplers); a winning seed in RandomNoise makes the same image there."
            ),
            search_aliases=[
                "best of n custom sampler", "samplercustomadvanced", "flux best of n", "seed search", "guider",
            ],
            **KEEPS_ITS_PANEL,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                _seed_input(" Not used where noise is connected."),
                io.Guider.Input("guider", tooltip="Model and conditioning, from BasicGuider, CFGGuider or another."),
                io.Sampler.Input("sampler", tooltip="The sampling algorithm, from KSamplerSelect or another."),
                io.Sigmas.Input("sigmas", tooltip="The noise levels, from BasicScheduler or another."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise; one, every try starts from it."),
                io.Vae.Input("vae", tooltip="Decodes each try so that it can be scored."),
                *_search_inputs("SamplerCustomAdvanced"),
                *_pruning_inputs(),
                io.Noise.Input(
                    "noise",
                    optional=True,
                    tooltip="The first try's noise, such as RandomNoise's; the others have its kind with other seeds.",
                ),
            ],
            outputs=_outputs("SamplerCustomAdvanced (RandomNoise)"),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **constants: Any) -> int:
        from ._seed_search import count_interrupts

        return count_interrupts(cls.hidden.unique_id, constants)

    @classmethod
    def execute(
        cls,
        seed: int,
        guider: Any,
        sampler: Any,
        sigmas: Tensor,
        latent_image: dict[str, Any],
        vae: Any,
        noise: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        from ._sampling import CustomSampling
        from ._seed_search import Options, run_search

        first = seed if noise is None else getattr(noise, "seed", seed)
        sampling = CustomSampling(noise, guider, sampler, sigmas)
        return run_search(cls, sampling, latent_image, vae, Options.of(seed=first, **options))
