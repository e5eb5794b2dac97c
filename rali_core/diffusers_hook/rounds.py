"""Making candidates: all to the end, or in rounds that drop the weaker ones."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..selection import top_k
from .calls import complete_call, isolate, takes_callback
from .counting import DenoiserCounter
from .halving import SuccessiveHalving
from .latents import latents_to_pixels
from .run import SuspendedRun, check_finite
from .scoring import ScoreImages, to_pil


@dataclass(frozen=True)
class Finished:
    """One finished image; `score` is None where the safety checker blanked it."""

    seed: int
    score: float | None
    image: Any
    picture: Image.Image
    latents: Tensor | None


@dataclass
class Job:
    """One prompt's candidates: what to make and how, and notes on what was done.

    Attributes:
        pipe: The caller's pipeline.
        arguments: Its arguments for this prompt.
        score: Scores a list of images.
        counter: Counts the denoiser's calls.
        batch_size: Images per call.
        cost: Denoiser calls of one candidate from start to end; 0 while not known.
        previews: Predicted pictures that were decoded and scored.
        step_scores: Per seed, its score at each comparison.
        pruned: Seeds that were dropped.
    """

    pipe: Any
    arguments: dict[str, Any]
    score: ScoreImages
    counter: DenoiserCounter
    batch_size: int
    cost: float = 0.0
    previews: int = 0
    step_scores: dict[int, list[float]] = field(default_factory=dict)
    pruned: set[int] = field(default_factory=set)

    def chunks(self, seeds: Sequence[int]) -> list[tuple[int, ...]]:
        """Seeds in groups of `batch_size`."""
        return [tuple(seeds[start : start + self.batch_size]) for start in range(0, len(seeds), self.batch_size)]


def make_all(job: Job, seeds: Sequence[int]) -> Generator[list[Finished], None, None]:
    """Make every candidate to the end, a call at a time; each call's images leave memory with the caller's."""
    for chunk in job.chunks(seeds):
        pipe = isolate(job.pipe)
        latents: list[Tensor] = []
        before = job.counter.calls or 0
        output = pipe(**complete_call(job.arguments, chunk), **_final_latents(pipe, latents))
        job.cost = ((job.counter.calls or 0) - before) / len(chunk)
        yield _finish(job, chunk, output, latents[-1] if latents else None)


def make_pruned(
    job: Job, seeds: Sequence[int], halving: SuccessiveHalving, keep: int
) -> Generator[list[Finished], None, None]:
    """Advance all candidates from comparison to comparison, and finish those that are left, best first.

    Yields:
        Finished images; an empty list after every part of the work, so that the caller can stop in between.
    """

    def preview(pipe: Any, latents: Tensor) -> Tensor:
        return _decode(job, pipe, latents, vae=halving.vae)

    runs = [
        SuspendedRun(job.pipe, job.arguments, chunk, rungs=halving.rungs, preview=preview, counter=job.counter)
        for chunk in job.chunks(seeds)
    ]
    kept: dict[SuspendedRun, list[int] | None] = dict.fromkeys(runs)
    try:
        while True:
            standing: list[tuple[SuspendedRun, int, float]] = []
            for run in list(kept):
                run.advance(kept[run])
                if run.done:
                    job.cost = run.cost
                    yield _finish(job, run.seeds, run.output, run.latents)
                    run.drop()
                    del kept[run]
                    continue
                scores = job.score(list(run.previews or ()))
                job.previews += len(scores)
                standing += [(run, position, score) for position, score in enumerate(scores)]
                for seed, score in zip(run.seeds, scores, strict=True):
                    job.step_scores.setdefault(seed, []).append(score)
                yield []
            if not standing:
                return
            kept = _choose(standing, halving.survivors(len(standing), keep))
            job.pruned |= {run.seeds[i] for run, i, _ in standing if i not in (kept.get(run) or ())}
            for run in runs:
                if run not in kept:
                    run.drop()
    finally:
        for run in runs:
            run.drop()


def _choose(standing: list[tuple[SuspendedRun, int, float]], count: int) -> dict[SuspendedRun, list[int] | None]:
    """The best `count` candidates by run, the run with the best one first; positions ascend inside a run."""
    chosen: dict[SuspendedRun, list[int] | None] = {}
    for index in top_k([score for _, _, score in standing], count):
        run, position, _ = standing[index]
        positions = chosen.setdefault(run, [])
        if positions is not None:
            positions.append(position)
            positions.sort()
    return chosen


def _final_latents(pipe: Any, into: list[Tensor]) -> dict[str, Any]:
    """Arguments that put the last step's latents into `into`; none where the pipeline has no such protocol."""
    if not takes_callback(pipe):
        return {}

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        del timestep
        if step == pipe.num_timesteps - 1:
            into.append(check_finite(tensors["latents"]).detach().cpu())
        return {}

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents"]}


def _finish(job: Job, seeds: Sequence[int], output: Any, latents: Tensor | None) -> list[Finished]:
    images = list(output.images)
    if len(images) != len(seeds):
        raise ValueError(
            f"expected {len(seeds)} image(s) from a call of {type(job.pipe).__name__}, got {len(images)}; "
            "say how many are made at once with batch_size="
        )
    # A safety checker replaces what it finds by a black picture: that is no image, and its score says nothing.
    blanked = [bool(flag) for flag in (getattr(output, "nsfw_content_detected", None) or [False] * len(seeds))]
    scored: list[Any] = images
    if job.arguments.get("output_type") == "latent":
        device_latents = output.images
        scored = list(_decode(job, job.pipe, device_latents))
    scores = iter(job.score([image for image, blank in zip(scored, blanked, strict=True) if not blank]))
    return [
        Finished(
            seed=seed,
            score=None if blanked[i] else next(scores),
            image=images[i],
            picture=to_pil(scored[i]),
            latents=None if latents is None else latents[i],
        )
        for i, seed in enumerate(seeds)
    ]


def _decode(job: Job, pipe: Any, latents: Tensor, *, vae: Any = None) -> Tensor:
    with torch.no_grad():
        return latents_to_pixels(
            pipe, latents, vae=vae, height=job.arguments.get("height"), width=job.arguments.get("width")
        )
