"""Generates candidates: all to the end, or in rounds that drop the weaker ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..content import NO_CONTENT
from ..selection import top_k
from ..video import Aggregate, VideoScore
from .arguments import UserCallback, complete_call, gives_raw_tensors, isolate, takes_callback
from .latents import latents_to_pixels, watch_latents
from .pruning import DenoiserCounter, SuccessiveHalving
from .scoring import ScoreFunction, frames_of, shows_content, to_pil
from .suspended_call import SuspendedCall, are_finite, finite_latents

_log = logging.getLogger("rali")


@dataclass(frozen=True)
class GeneratedImage:
    """One finished image; without a score there is a flaw, and for most flaws a reason in words."""

    seed: int
    score: float | None
    image: Any
    pil_image: Image.Image
    latents: Tensor | None
    flaw: Literal["nsfw_filtered", "no_content", "failed"] | None = None
    reason: str | None = None
    words: tuple[str, ...] = ()


@dataclass
class GenerationJob:
    """One prompt's candidates: what to generate and how, and notes on what was done.

    Attributes:
        pipe: The caller's pipeline.
        arguments: Its arguments for this prompt.
        score: Scores a list of images.
        counter: Counts the denoiser's calls.
        batch_size: Images per call.
        callback: The caller's own `callback_on_step_end`.
        generator_device: Where the seeds' noise is drawn.
        cost: Denoiser calls of one candidate from start to end; 0 while not known.
        previews: Denoised previews that were scored.
        step_scores: Per seed, its score at each comparison.
        pruned: Seeds that were dropped.
        failed: The error text for each seed whose call failed.
        size: Height and width in pixels, as the pipeline prepared its noise for.
        aggregate: Which figure over a video's frames is its score.
        video_frames: How many of a video's frames are scored.
    """

    pipe: Any
    arguments: dict[str, Any]
    score: ScoreFunction
    counter: DenoiserCounter
    batch_size: int
    callback: UserCallback
    generator_device: str | torch.device = "cpu"
    cost: float = 0.0
    previews: int = 0
    step_scores: dict[int, list[float]] = field(default_factory=dict)
    pruned: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    size: tuple[int | None, int | None] | None = None
    progressed: bool = False
    aggregate: Aggregate = "mean"
    video_frames: int = 16

    def chunks(self, seeds: Sequence[int]) -> list[tuple[int, ...]]:
        """Seeds in groups of `batch_size`."""
        return [tuple(seeds[start : start + self.batch_size]) for start in range(0, len(seeds), self.batch_size)]

    def call(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Arguments of a call that makes these seeds."""
        return complete_call(self.arguments, seeds, self.generator_device)

    def decode(self, pipe: Any, latents: Tensor, *, vae: Any = None, check: bool = True) -> Tensor:
        """Latents to pixels, without gradient; with `check=False` pixels may be NaN."""
        height, width = self.size or (None, None)
        with torch.no_grad():
            return latents_to_pixels(
                pipe, latents, vae=vae, check_finite=check,
                height=height or self.arguments.get("height"), width=width or self.arguments.get("width"),
            )  # fmt: skip

    def try_decoder(
        self, pipe: Any, latents: Tensor, height: int | None, width: int | None, *, vae: Any = None
    ) -> None:
        """Decode the first noise, so that a decoding error comes before the first denoising step."""
        if self.size is None:
            self.size = (height, width)
            self.decode(pipe, latents[:1].detach(), vae=vae)

    def note_failure(self, seeds: Sequence[int], error: Exception) -> None:
        """Record an error for its candidates only; raise it if nothing has been done yet.

        Raises:
            Exception: The error.
        """
        if not self.progressed:
            raise error
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        _log.warning("best_of_n: no image of seed %s: %s", ", ".join(map(str, seeds)), reason)
        self.failed |= dict.fromkeys(seeds, reason)
        if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
            torch.cuda.empty_cache()


def make_all(job: GenerationJob, seeds: Sequence[int]) -> Generator[list[GeneratedImage], None, None]:
    """Generate every candidate to the end, one call at a time; images are released with the caller's reference."""
    for chunk in job.chunks(seeds):
        before = job.counter.calls or 0
        try:
            images = _make(job, chunk)
        except Exception as error:
            job.note_failure(chunk, error)
            yield []
            continue
        job.cost = ((job.counter.calls or 0) - before) / len(chunk)
        job.progressed = True
        yield images


def _make(job: GenerationJob, chunk: tuple[int, ...]) -> list[GeneratedImage]:
    pipe = isolate(job.pipe)
    if job.arguments.get("output_type") == "latent":
        watch_latents(pipe, lambda latents, height, width: job.try_decoder(pipe, latents, height, width))
    latents: list[Tensor] = []
    output = pipe(**job.call(chunk), **_note_latents(job, pipe, latents))
    return _finish(job, chunk, output, latents[0].detach().cpu() if latents else None)


def make_pruned(
    job: GenerationJob, seeds: Sequence[int], halving: SuccessiveHalving, keep: int
) -> Generator[list[GeneratedImage], None, None]:
    """Advance all candidates from comparison to comparison, and finish the remaining ones, best first.

    Yields:
        Finished images; an empty list after every unit of work, so that the caller can stop in between.
    """

    def prepared(pipe: Any, latents: Tensor, height: int | None, width: int | None) -> None:
        job.try_decoder(pipe, latents, height, width, vae=halving.vae)

    def preview(pipe: Any, latents: Tensor) -> Tensor:
        return job.decode(pipe, latents, vae=halving.vae, check=False)

    calls = [
        SuspendedCall(
            job.pipe, job.call(chunk), chunk,
            rungs=halving.rungs, prepared=prepared, preview=preview, counter=job.counter, callback=job.callback,
        )
        for chunk in job.chunks(seeds)
    ]  # fmt: skip
    kept: dict[SuspendedCall, list[int] | None] = dict.fromkeys(calls)
    try:
        while True:
            standing: list[tuple[SuspendedCall, int, float]] = []
            for call in list(kept):
                images: list[GeneratedImage] = []
                try:
                    call.advance(kept[call])
                    if call.done:
                        images = _finish(job, call.seeds, call.output, call.latents)
                    else:
                        scores = _score_previews(job, call.previews or [])
                except Exception as error:
                    seeds_of_call = call.seeds
                    call.drop()
                    del kept[call]
                    job.note_failure(seeds_of_call, error)
                    yield []
                    continue
                job.progressed = True
                if call.done:
                    job.cost = call.cost
                    call.drop()
                    del kept[call]
                    yield images
                    continue
                standing += [(call, position, score) for position, score in enumerate(scores)]
                for seed, score in zip(call.seeds, scores, strict=True):
                    job.step_scores.setdefault(seed, []).append(score)
                yield []
            if not standing:
                return
            kept = _by_call(standing, halving.choose([score for _, _, score in standing], keep))
            job.pruned |= {call.seeds[i] for call, i, _ in standing if i not in (kept.get(call) or ())}
            for call in calls:
                if call not in kept:
                    call.drop()
    finally:
        for call in calls:
            call.drop()


def _score_previews(job: GenerationJob, previews: list[Tensor]) -> list[float]:
    """A score for each preview; NaN, which ranks last, if it is not finite."""
    finite = [bool(torch.isfinite(preview).all()) for preview in previews]
    scores = iter(job.score([preview for preview, fine in zip(previews, finite, strict=True) if fine]))
    job.previews += len(previews)
    return [next(scores) if fine else math.nan for fine in finite]


def _by_call(
    standing: list[tuple[SuspendedCall, int, float]], indexes: list[int]
) -> dict[SuspendedCall, list[int] | None]:
    """The chosen candidates by call, the call with the best one first; positions ascend inside a call."""
    chosen: dict[SuspendedCall, list[int] | None] = {}
    for index in indexes:
        call, position, _ = standing[index]
        positions = chosen.setdefault(call, [])
        if positions is not None:
            positions.append(position)
            positions.sort()
    return chosen


def _note_latents(job: GenerationJob, pipe: Any, into: list[Tensor]) -> dict[str, Any]:
    """Arguments that keep the last step's latents in `into`; none if the pipeline has no such protocol."""
    if not takes_callback(pipe):
        return {}

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        result = job.callback(pipe, step, timestep, tensors)
        into[:] = [result.get("latents", tensors["latents"])]
        if step == getattr(pipe, "num_timesteps", 0) - 1:
            result = {**result, **finite_latents(into[0])}
        return result

    return {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": job.callback.wanted_with(["latents"]),
    }


def _score_of(scores: list[float], frames: int, aggregate: Aggregate) -> float:
    """One number for an image or a video; blank frames count as the worst of the others, NaN where a score is NaN."""
    if frames == 1 or not all(map(math.isfinite, scores)):
        return scores[0] if frames == 1 else math.nan
    values = np.array([*scores, *[min(scores)] * (frames - len(scores))], dtype=np.float32)
    return VideoScore(np.arange(frames, dtype=np.float64), values, (None,) * frames, float(frames)).aggregate(aggregate)


def images_of(output: Any) -> list[Any] | Tensor:
    """The images, or videos, of a pipeline's output object.

    Raises:
        TypeError: It holds none.
    """
    for name in ("images", "image", "frames"):
        images = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
        if images is not None:
            return images if isinstance(images, Tensor) else list(images)
    raise TypeError(
        f"expected an output with images, got {type(output).__name__}; best_of_n is for pipelines of images or videos"
    )


def _finish(job: GenerationJob, seeds: Sequence[int], output: Any, latents: Tensor | None) -> list[GeneratedImage]:
    images = images_of(output)
    if len(images) != len(seeds):
        raise ValueError(
            f"expected {len(seeds)} image(s) from a call of {type(job.pipe).__name__}, got {len(images)}; "
            "say how many one call makes with batch_size="
        )
    scored: Any = images
    if job.arguments.get("output_type") == "latent":
        clean = torch.as_tensor(images) if isinstance(images, Tensor) else torch.stack(list(images))
        scored = job.decode(job.pipe, finite_latents(clean).get("latents", clean), check=False)
    elif isinstance(images, Tensor) and gives_raw_tensors(type(job.pipe)):
        scored = (images / 2.0 + 0.5).clamp(0.0, 1.0)
    finite = [True] * len(seeds) if latents is None or len(latents) != len(seeds) else are_finite(latents)
    # A safety checker replaces what it finds by a black image, whose score means nothing.
    filtered = [bool(flag) for flag in (getattr(output, "nsfw_content_detected", None) or [False] * len(seeds))]
    flaws: list[tuple[Any, str | None]] = []
    frames = [frames_of(scored[i], job.video_frames) for i in range(len(seeds))]
    shown = [[shows_content(frame) for frame in video] for video in frames]
    for i in range(len(seeds)):
        if filtered[i]:
            flaws.append(("nsfw_filtered", None))
        elif not finite[i]:
            dtype = "" if latents is None else f" ({latents.dtype}): use bfloat16 or float32"
            flaws.append(("no_content", f"{NO_CONTENT}: its latents hold NaN or infinite values{dtype}"))
        elif 2 * sum(shown[i]) <= len(shown[i]):
            what = "the image is blank" if len(shown[i]) == 1 else f"{shown[i].count(False)} of {len(shown[i])} frames"
            flaws.append(("no_content", f"{NO_CONTENT}: {what}"))
        else:
            flaws.append((None, None))
    wanted = [list(compress(frames[i], shown[i])) if flaws[i][0] is None else [] for i in range(len(seeds))]
    judged = zip(*job.score.with_words([frame for video in wanted for frame in video]), strict=True)
    result = []
    for i, seed in enumerate(seeds):
        flaw, reason = flaws[i]
        pairs = [next(judged) for _ in wanted[i]]
        own = [score for score, _ in pairs]
        score = None if flaw is not None else _score_of(own, len(shown[i]), job.aggregate)
        best = frames[i][0]
        words: tuple[str, ...] = ()
        if score is not None and not math.isnan(score):
            place = top_k(own, 1)[0]
            best, words = wanted[i][place], pairs[place][1]
        if score is not None and math.isnan(score):
            flaw, reason, score = "failed", "the scorer gave no finite score", None
        result.append(
            GeneratedImage(
                seed=seed,
                score=score,
                image=images[i],
                pil_image=to_pil(best),
                latents=None if latents is None else latents[i],
                flaw=flaw,
                reason=reason,
                words=words,
            )
        )
    return result
