"""`best_of_n`: generate n images from n seeds, keep the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from ..scorer import ProgressCallback
from ..selection import rank
from ..video import AGGREGATES, Aggregate
from .arguments import (
    UserCallback,
    check_pipe_arguments,
    check_video_arguments,
    choose_seeds,
    describe,
    makes_videos,
    split_by_prompt,
    takes_callback,
)
from .latents import check_preview
from .pruning import DenoiserCounter, SuccessiveHalving
from .result import BestOfN, BestOfNReport, Candidate, Outcome, Stop
from .rounds import GeneratedImage, GenerationJob, make_all, make_pruned
from .scoring import Scorer, make_score_function


def best_of_n(
    pipe: Any,
    *,
    n: int,
    keep: int = 1,
    seeds: Sequence[int] | None = None,
    batch_size: int = 1,
    threshold: float | None = None,
    scorer: Scorer | None = None,
    prune: SuccessiveHalving | None = None,
    keep_latents: bool = False,
    exact: bool = True,
    progress: ProgressCallback | None = None,
    generator_device: str | torch.device = "cpu",
    aggregate: Aggregate = "mean",
    video_frames: int = 16,
    **pipe_kwargs: Any,
) -> BestOfN:
    """Generate `n` images per prompt with a diffusers pipeline and keep the best.

    Memory grows with `keep` and `batch_size`; with `prune` also with the suspended calls, each of which holds its
    latents and text embeddings. Ctrl-C returns the best so far, if there is one.

    Args:
        pipe: Any text-to-image, image-to-image, inpainting or video pipeline; it is not changed.
        n: Candidates per prompt.
        keep: Images to keep per prompt.
        seeds: n different whole numbers; by default 0, 1, ... n - 1.
        batch_size: Images per call of the pipeline; `num_images_per_prompt` means the same here.
        threshold: Stop a prompt's candidates once `keep` finished images reach this score.
        scorer: A `RaliScorer`, or a callable from a list of PIL images to as many numbers, higher is better; by
            default the bundled model.
        prune: Compare candidates by their denoised previews and drop the weaker ones. With a batch size over 1 only for
            pipelines whose batch can shrink while they run.
        keep_latents: Keep the final latents of the kept images too.
        exact: With a batch size over 1, regenerate the kept images alone: matrix products round differently at another
            batch size, so that a seed alone could give an image that differs in the last bits (or, over many steps,
            visibly). Costs `keep` more images.
        progress: Called as progress(candidates done, all candidates); returning False stops. By default a progress
            bar on a terminal.
        generator_device: Where the seeds' noise is drawn, such as `"cuda"`; by default the CPU, where a seed means the
            same on every machine.
        aggregate: For a video pipeline: which figure over its frames is a video's score, see `rali_core.video`.
        video_frames: How many of a video's frames are scored, spread evenly.
        pipe_kwargs: The pipeline's own arguments. A list of prompts gives the best per prompt. A
            `callback_on_step_end` of your own is called too, with the shallow copy that runs.

    Blank images (NaN latents, constant pixels) and images that the safety checker replaced are never kept. An error
    in one call affects its candidates only, unless nothing was generated before it.

    Returns:
        The kept images, by prompt and best first; fewer than `keep` if flaws or a stop left fewer.

    Raises:
        TypeError: Not a pipeline, or a scorer that cannot be called.
        ValueError: An argument is out of range, or cannot be combined with best-of-N; the message says which.
        RuntimeError: No prompt has an image with a score; the message says why.
        KeyboardInterrupt: Ctrl-C before the first image was finished.

    Examples:
        >>> result = best_of_n(pipe, n=8, prompt="a lighthouse at dusk")  # doctest: +SKIP
        >>> result.images[0].save("best.png")  # doctest: +SKIP
    """
    check_pipe_arguments(pipe, pipe_kwargs)
    chosen_seeds = choose_seeds(n, seeds)
    if not 1 <= keep <= n:
        raise ValueError(f"keep must lie between 1 and n = {n}, got {keep}")
    batch_size = _batch_size(batch_size, pipe_kwargs.pop("num_images_per_prompt", None))
    callback = UserCallback(pipe_kwargs)
    _check_pipeline_can(pipe, prune=prune is not None, keep_latents=keep_latents)
    _check_frames(aggregate, video_frames)
    if makes_videos(type(pipe)):
        check_video_arguments(pipe_kwargs, batch_size)
    _check_generator(generator_device)
    score = make_score_function(scorer)
    prompts = split_by_prompt(pipe, pipe_kwargs)
    total = n * len(prompts)
    kept: list[tuple[int, GeneratedImage]] = []
    candidates: list[Candidate] = []
    stopped: Stop | None = None
    cost, previews = 0.0, 0
    with (
        DenoiserCounter(pipe) as counter,
        tqdm(total=total, unit="image", desc="best of n", disable=None if progress is None else True) as bar,
    ):
        for prompt, arguments in enumerate(prompts):
            job = GenerationJob(
                pipe, arguments, score, counter, batch_size, callback, generator_device,
                progressed=bool(kept), aggregate=aggregate, video_frames=video_frames,
            )  # fmt: skip
            search = _Search(job, chosen_seeds, keep, threshold)
            if stopped is None or stopped == "threshold":

                def report(done: int, before: int = prompt * n) -> bool:
                    bar.update(before + done - bar.n)
                    return progress is None or progress(before + done, total) is not False

                stopped = search.run(prune, report) or stopped
                if exact and batch_size > 1:
                    stopped = search.regenerate() or stopped
            kept += [(prompt, image) for image in search.best]
            candidates += search.candidates(prompt)
            cost, previews = max(cost, job.cost), previews + job.previews
        calls = counter.calls
    if not kept and stopped == "interrupt":
        raise KeyboardInterrupt
    if not kept and stopped is None:
        raise RuntimeError(f"none of the {total} candidates can be kept: {_tally(candidates)}")
    return BestOfN(
        images=tuple(image.image for _, image in kept),
        scores=tuple(image.score for _, image in kept if image.score is not None),
        seeds=tuple(image.seed for _, image in kept),
        prompts=tuple(prompt for prompt, _ in kept),
        pil_images=tuple(image.pil_image for _, image in kept),
        latents=tuple(image.latents for _, image in kept if image.latents is not None) if keep_latents else None,
        report=BestOfNReport(
            candidates=tuple(candidates),
            denoiser_calls=calls,
            full_denoiser_calls=None if calls is None or not cost else round(cost * total),
            previews=previews,
            stopped=stopped,
        ),
        settings={"pipeline": type(pipe).__name__, "arguments": describe(pipe_kwargs)},
    )


def _check_pipeline_can(pipe: Any, *, prune: bool, keep_latents: bool) -> None:
    if (prune or keep_latents) and not takes_callback(pipe):
        raise ValueError(f"{type(pipe).__name__} has no callback_on_step_end, which prune and keep_latents need")
    if prune:
        check_preview(pipe)


def _check_frames(aggregate: str, count: int) -> None:
    if aggregate not in AGGREGATES or count < 1:
        raise ValueError(
            f"expected an aggregate of {', '.join(AGGREGATES)} and video_frames of at least 1, got {aggregate!r} and "
            f"{count}"
        )


def _tally(candidates: Sequence[Candidate]) -> str:
    """The flaws of candidates, most frequent first: `3 x no content: the image is blank`."""
    reasons = Counter(candidate.reason or candidate.outcome.replace("_", " ") for candidate in candidates)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())


def _check_generator(device: str | torch.device) -> None:
    try:
        torch.Generator(device)
    except RuntimeError as error:
        raise ValueError(
            f"generator_device must be a device of this machine, such as cpu or cuda, got {device!r}"
        ) from error


def _batch_size(batch_size: int, per_prompt: int | None) -> int:
    if batch_size < 1 or (per_prompt is not None and per_prompt < 1):
        raise ValueError(f"batch_size must be at least 1, got {batch_size if per_prompt is None else per_prompt}")
    if per_prompt is not None and batch_size not in (1, per_prompt):
        raise ValueError(
            f"batch_size={batch_size} and num_images_per_prompt={per_prompt} both say how many images one call makes; "
            "give one of them"
        )
    return per_prompt or batch_size


class _Search:
    """The search of one prompt; `best` holds the images worth keeping, best first."""

    def __init__(self, job: GenerationJob, seeds: tuple[int, ...], keep: int, threshold: float | None) -> None:
        self._job, self._seeds, self._keep, self._threshold = job, seeds, keep, threshold
        self._finished: dict[int, tuple[float | None, Outcome | None, str | None, tuple[str, ...]]] = {}
        self.best: list[GeneratedImage] = []

    def run(self, prune: SuccessiveHalving | None, report: Callable[[int], bool]) -> Stop | None:
        """Generate the candidates; returns why it ended early, or None."""
        rounds: Generator[list[GeneratedImage], None, None] = (
            make_all(self._job, self._seeds)
            if prune is None
            else make_pruned(self._job, self._seeds, prune, self._keep)
        )
        try:
            with closing(rounds):
                for images in rounds:
                    self._take(images)
                    if self._reached():
                        return "threshold"
                    if not report(len(self._finished) + len(self._job.pruned) + len(self._job.failed)):
                        return "progress"
        except KeyboardInterrupt:
            return "interrupt"
        report(len(self._seeds))
        return None

    def regenerate(self) -> Stop | None:
        """Replace the kept images by those that their seeds give alone; returns why it did not, or None."""
        made = self.best
        alone = replace(self._job, batch_size=1, failed={}, progressed=True)
        again: list[GeneratedImage] = []
        try:
            for images in make_all(alone, [image.seed for image in made]):
                again += [image for image in images if image.score is not None]
        except KeyboardInterrupt:
            return "interrupt"
        self.best = [image for image in made if image.seed not in {new.seed for new in again}]
        self._take(again)
        return None

    def candidates(self, prompt: int) -> list[Candidate]:
        """The outcome of each seed, in order."""
        kept = {image.seed for image in self.best}
        result = []
        for seed in self._seeds:
            steps = tuple(self._job.step_scores.get(seed, ()))
            score, flaw, reason, words = self._finished.get(seed, (None, None, None, ()))
            outcome: Outcome
            if seed in self._finished:
                outcome = "kept" if seed in kept else flaw or "outscored"
            elif seed in self._job.failed:
                outcome, reason = "failed", self._job.failed[seed]
            else:
                outcome = "pruned" if seed in self._job.pruned else "skipped"
            result.append(Candidate(seed, prompt, score, outcome, steps, reason, words))
        return result

    def _take(self, images: list[GeneratedImage]) -> None:
        self._finished |= {image.seed: (image.score, image.flaw, image.reason, image.words) for image in images}
        self.best += [image for image in images if image.score is not None]
        order = rank([image.score if image.score is not None else float("nan") for image in self.best])
        self.best = [self.best[index] for index in order[: self._keep]]

    def _reached(self) -> bool:
        if self._threshold is None or len(self.best) < self._keep:
            return False
        worst = self.best[-1].score
        return worst is not None and worst >= self._threshold
