"""RALI Best-of-N Sampler."""

from __future__ import annotations

import logging
from functools import partial
from math import isnan, nan
from typing import Any

import torch
from comfy_api.latest import io

from ..rali_core.images import ImageError
from ._candidates import MAX_SEED, Candidate, Settings, StepReporter, decode, keep_best, sample
from ._convert import join_latents
from ._inputs import KEEPS_ITS_PANEL, coverage_input, model_input, threshold_input
from ._scoring import Scores, score_what_can_be, show

log = logging.getLogger("rali")


class RaliBestOfNSampler(io.ComfyNode):
    """Tries seeds and keeps the best."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from comfy.samplers import KSampler

        return io.Schema(
            node_id="RALI_BestOfNSampler",
            display_name="RALI Best-of-N Sampler",
            category="RALI",
            description=(
                "Samples n seeds (seed, seed + 1, ...), decodes and scores each, and keeps the best. Stops early once "
                "they are good enough. Memory grows with keep, not with n. Interrupting keeps the best so far; a try "
                "that fails (NaN, out of memory) costs no other. A winning seed makes the same image in KSampler."
            ),
            search_aliases=["best of n sampler", "ksampler", "seed search", "rejection sampling", "good seed"],
            **KEEPS_ITS_PANEL,
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model that denoises the latent."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Seed of the first try; the next ones count up from it.",
                ),
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
                    tooltip="Less than 1 keeps some of the latent's content.",
                ),
                io.Vae.Input("vae", tooltip="Decodes each try so that it can be scored."),
                io.Int.Input("n", default=4, min=1, max=4096, tooltip="How many seeds to try at most."),
                io.Int.Input(
                    "keep", default=1, min=1, max=256, tooltip="How many of the best images to output, best first."
                ),
                threshold_input(
                    "Stop as soon as keep images have at least this score. 1 tries all n seeds.", default=1.0
                ),
                io.Int.Input(
                    "batch_per_try",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip=(
                        "Seeds sampled at once: quicker on a GPU, more memory. With 1, KSampler repeats a winner "
                        "exactly; with more, rounding differs a little, and ancestral and SDE samplers differ."
                    ),
                ),
                model_input("rali_model"),
                coverage_input(),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The best images, best first."),
                io.Latent.Output("latents", tooltip="Their latents."),
                io.Int.Output("seeds", is_output_list=True, tooltip="Their seeds; each makes its image in KSampler."),
                io.Float.Output("scores", is_output_list=True, tooltip="Their scores."),
                io.String.Output("report", tooltip="Every try with its seed and score."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        denoise: float,
        vae: Any,
        n: int,
        keep: int,
        threshold: float,
        batch_per_try: int,
        coverage: str,
        rali_model: Any = None,
    ) -> io.NodeOutput:
        from comfy.model_management import InterruptProcessingException, soft_empty_cache

        from ..rali_core.devices import is_out_of_memory

        if len(latent_image["samples"]) != 1:
            raise ValueError(
                f"latent_image: expected one latent, got {len(latent_image['samples'])}; the sampler makes its own "
                "tries: set the batch size to 1, and n (or batch_per_try) to what you want"
            )
        settings = Settings(model, positive, negative, steps, cfg, sampler_name, scheduler, denoise)
        report_step = StepReporter(model, n * steps)
        seeds = [(seed + index) % (MAX_SEED + 1) for index in range(n)]
        kept: list[Candidate] = []
        tried = Scores([], [])
        ending = f"all {n} seeds tried"
        for start in range(0, n, batch_per_try):
            batch = seeds[start : start + batch_per_try]
            report_step.done = start * steps
            try:
                latents = sample(settings, latent_image, batch, partial(report_step, len(batch)))
                images = decode(vae, latents).cpu().split(1)
                scored: Scores | None = score_what_can_be(list(images), rali_model, coverage)
            except InterruptProcessingException:
                if not kept:
                    raise
                ending = f"interrupted after {len(tried.values)} of {n} seeds; the best so far"
                break
            except (MemoryError, RuntimeError) as error:
                if not kept or not is_out_of_memory(error):
                    raise
                scored = None
            if scored is None:  # the error is gone, and with it what it held on to
                log.warning("RALI Best-of-N Sampler: out of memory at seed %d, which is left out", batch[0])
                soft_empty_cache()
                tried = tried.and_then(Scores([nan] * len(batch), ["out of memory"] * len(batch)))
                continue
            new = [
                # A clone: a slice would keep its whole batch in memory.
                Candidate(
                    number,
                    score,
                    blank,
                    {**latents, "samples": latents["samples"][i : i + 1].cpu().clone()},
                    images[i].clone(),
                )
                for i, (number, score, blank) in enumerate(zip(batch, scored.values, scored.blank(), strict=True))
                if not isnan(score)
            ]
            tried = tried.and_then(scored)
            kept = keep_best(kept, new, keep)
            if threshold < 1.0 and sum(each.score >= threshold and not each.blank for each in kept) >= keep:
                ending = f"stopped early: {keep} reached {threshold:g} after {len(tried.values)} of {n} seeds"
                break
        if not kept:
            raise ImageError(f"none of the {n} seeds gave an image that can be scored; seed {seed}: {tried.reasons[0]}")
        log.info("RALI Best-of-N Sampler: %s; best %.4f, seed %d", ending, kept[0].score, kept[0].seed)
        lines = [
            f"seed {number}: {'no score' if isnan(score) else f'{score:.4f}'}" + (f", {reason}" if reason else "")
            for number, score, reason in zip(seeds, tried.values, tried.reasons, strict=False)
        ]
        winners = [candidate.seed for candidate in kept]
        return io.NodeOutput(
            torch.cat([candidate.image for candidate in kept]),
            join_latents([candidate.latent for candidate in kept])[0],
            winners,
            [candidate.score for candidate in kept],
            "\n".join([ending, *lines]),
            ui=show(
                tried,
                threshold=threshold if threshold < 1.0 else None,
                chosen=[index for index in range(len(tried.values)) if seeds[index] in winners],
                note=f"best: seed {kept[0].seed}; {ending}",
            ),
        )
