"""The search of both Best-of-N samplers: seeds are sampled, decoded and scored; an interrupted search resumes."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..rali_core.attachments import join_latents
from ..rali_core.halving import SuccessiveHalving
from ..rali_core.identity import Identity
from ..rali_core.images import ImageError
from ..rali_core.replay import Replay
from ..rali_core.seed_search import OUT_OF_MEMORY, SeedSearch, Try, search_seeds
from ._inputs import PRUNE_AT
from ._models import ModelHandle, get_model
from ._panel import Note, tell_tries
from ._sampling import Sampling, StepReporter, decode, planned_steps, prepare_samples, to_latent
from ._scoring import Scores, chosen_coverage, score_panel, score_what_can_be

log = logging.getLogger("rali")

KEPT_SEARCHES = 4
"""Interrupted searches that are remembered."""


@dataclass(frozen=True)
class Options:
    """The options of both samplers, besides the sampling itself.

    Attributes:
        seed: First seed.
        n: Seeds at most.
        keep: How many of the best to output.
        threshold: Stop early at this score; None tries all.
        batch_size: Seeds sampled at once.
        halving: Early pruning; None makes every seed to its end.
        model: The scorer's.
        coverage: The scorer's coverage.
    """

    seed: int
    n: int
    keep: int
    threshold: float | None
    batch_size: int
    halving: SuccessiveHalving | None
    model: ModelHandle
    coverage: str

    @classmethod
    def of(
        cls,
        *,
        seed: int,
        n: int,
        keep: int,
        threshold: float,
        batch_per_try: int,
        coverage: str,
        early_pruning: bool = False,
        prune_at: str = PRUNE_AT,
        rali_model: ModelHandle | None = None,
    ) -> Options:
        """From the nodes' widgets.

        Raises:
            ValueError: Options that cannot be combined, or invalid fractions.
        """
        if early_pruning and batch_per_try > 1:
            raise ValueError(
                f"early_pruning samples one seed at a time, got a batch size of {batch_per_try}: set it to 1, or turn "
                "early_pruning off"
            )
        halving = SuccessiveHalving(at=parse_fractions(prune_at)) if early_pruning else None
        limit = threshold if threshold < 1.0 else None
        return cls(seed, n, keep, limit, batch_per_try, halving, rali_model or get_model(), coverage)


def parse_fractions(text: str) -> tuple[float, ...]:
    """Numbers from "0.2, 0.4".

    Raises:
        ValueError: Something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f'prune_at: expected fractions of the steps such as "0.2, 0.4, 0.6", got {text!r}') from None


class _Stop(BaseException):
    """Ends a sampling midway; not an Exception, so that no sampler's handler catches it."""

    def __init__(self, denoised: Tensor) -> None:
        self.denoised = denoised


@dataclass
class _Unfinished:
    """A search and the state to resume it.

    Attributes:
        search: The search.
        about: Everything that its result depends on.
        replays: With pruning: the denoiser calls of the remaining candidates, by seed.
        steps: Steps that were reported, by (first) seed.
        calls: With pruning: calls of the denoiser.
        calls_per_try: Denoiser calls of one complete try; 0 before one is finished.
    """

    search: SeedSearch
    about: Identity
    replays: dict[int, Replay] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    calls: int = 0
    calls_per_try: int = 0


_unfinished: list[_Unfinished] = []
_interrupts: Counter[str] = Counter()


def count_interrupts(unique_id: str, constants: dict[str, Any]) -> int:
    """For `fingerprint_inputs`: how often a node with these constants has output an unfinished result.

    ComfyUI would cache such a result and reuse it; with another fingerprint the node runs again.
    """
    return _interrupts[_node_key(unique_id, constants)]


def _node_key(unique_id: str, inputs: dict[str, Any]) -> str:
    constants = {name: value for name, value in inputs.items() if value is not None and not isinstance(value, list)}
    return f"{unique_id} {sorted(constants.items())}"


class _Tries:
    """Samples, decodes and scores seeds of one search.

    Args:
        sampling: Makes a latent from a seed.
        latent: The latent that every try starts from.
        vae: Decodes the latents.
        options: The node's options.
        state: The search's state.
        report: Called after every step.
    """

    def __init__(
        self,
        sampling: Sampling,
        latent: dict[str, Any],
        vae: Any,
        options: Options,
        state: _Unfinished,
        report: StepReporter,
    ) -> None:
        self._sampling = sampling.wrapped(self._call) if options.halving else sampling
        self._latent, self._vae, self._options, self._report = latent, vae, options, report
        self._samples = prepare_samples(sampling.patcher, latent)
        self._state = state
        self._running: Replay | None = None

    def make(self, seeds: list[int]) -> list[Try]:
        """Finished tries; see `SeedSearch`."""
        sampled, denoised = self._sample(seeds)
        replay = self._state.replays.pop(seeds[0], None)
        self._state.calls_per_try = replay.computed if replay else 0
        images = decode(self._vae, sampled if denoised is None else denoised)
        scored = self._score(images)
        return [
            # A clone: a slice would keep its whole batch in memory.
            Try(
                seed, score, reason,
                made=(to_latent(self._latent, sampled[i : i + 1].cpu().clone()), images[i].clone()),
            )
            for i, (seed, score, reason) in enumerate(zip(seeds, scored.values, scored.reasons, strict=True))
        ]  # fmt: skip

    def preview(self, seeds: list[int], step: int) -> list[Try]:
        """Tries with the scores of their denoised previews after a step; see `SeedSearch`."""
        from comfy.model_management import soft_empty_cache

        from ..rali_core.devices import is_out_of_memory

        for seed in self._state.search.tried:  # dropped since
            self._state.replays.pop(seed, None)
        tries: list[Try] = []
        for seed in seeds:
            try:
                sampled, denoised = self._sample([seed], stop_after=step)
                scored = self._score(decode(self._vae, sampled if denoised is None else denoised))
                tries.append(Try(seed, scored.values[0], scored.reasons[0]))
            except (MemoryError, RuntimeError) as error:
                if not tries or not is_out_of_memory(error):
                    raise
                tries.append(Try(seed, nan, OUT_OF_MEMORY))
            if tries[-1].reason == OUT_OF_MEMORY:  # the error no longer holds on to memory
                soft_empty_cache()
        return tries

    def _score(self, images: list[Tensor]) -> Scores:
        return score_what_can_be(images, self._options.model, self._options.coverage)

    def _call(self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, *more: Any) -> list[Tensor]:
        def compute() -> list[Tensor]:
            made: list[Tensor] = executor(model, conds, x, timestep, *more)
            self._state.calls += 1  # one that an interrupt ended is not counted: it is repeated
            return made

        assert self._running is not None
        return self._running(compute, x, timestep)

    def _sample(self, seeds: list[int], stop_after: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The samples of some seeds, and the denoised ones if the samples still contain noise.

        Args:
            seeds: One, where it stops.
            stop_after: 0-based step.
        """
        last: Tensor | None = None
        reported = self._state.steps.get(seeds[0], 0)

        def on_step(step: int, denoised: Tensor) -> None:
            nonlocal last
            if step >= reported:
                self._state.steps[seeds[0]] = step + 1
                self._report(len(seeds), denoised)
            last = denoised
            if stop_after is not None and step >= stop_after:
                raise _Stop(denoised)

        if self._options.halving:
            self._running = self._state.replays.setdefault(seeds[0], Replay())
            self._running.begin()
        to_outside = self._sampling.patcher.model.process_latent_out
        try:
            sampled = self._sampling.sample(self._latent, self._samples, seeds, on_step)
        except _Stop as stop:
            denoised = to_outside(stop.denoised.cpu())
            return denoised, denoised
        return sampled, to_outside(last.cpu()) if self._sampling.ends_noisy and last is not None else None


def run_search(
    node: type[io.ComfyNode], sampling: Sampling, latent: dict[str, Any], vae: Any, options: Options
) -> io.NodeOutput:
    """Search, and return the best as a node's outputs: images, latents, seeds, scores, report.

    Args:
        node: The node that runs; it knows `hidden.unique_id` and `hidden.dynprompt`.
        sampling: Makes a latent from a seed.
        latent: The latent that every try starts from.
        vae: Decodes the latents.
        options: The node's options.

    Raises:
        ImageError: No seed gave an image that can be scored.
        InterruptProcessingException: Interrupted before the first image.
    """
    from comfy.model_management import InterruptProcessingException, soft_empty_cache

    scorer = options.model.scorer
    about = (
        sampling.things, latent, vae, scorer.cache_namespace(chosen_coverage(options.coverage)), options.seed,
        options.n, options.keep, options.batch_size, options.halving and options.halving.at,
    )  # fmt: skip
    seeds = search_seeds(options.seed, options.n)
    state = _take(about) or _Unfinished(
        SeedSearch(seeds, options.keep, release=soft_empty_cache, notify=_tell), Identity(*about)
    )
    search = state.search
    resumed = options.batch_size * sum(state.steps.values())
    try:
        _search(state, sampling, latent, vae, options)
    except InterruptProcessingException:
        if not search.kept:
            raise
        name = node.hidden.unique_id
        _interrupts[_node_key(name, node.hidden.dynprompt.get_node(name)["inputs"])] += 1
    finally:
        if not search.finished:
            _unfinished.insert(0, state)
            del _unfinished[KEPT_SEARCHES:]
    if not search.kept:
        first = next(iter(search.tried.values()))
        raise ImageError(f"none of the {options.n} seeds gave an image that can be scored; {first}")
    log.info("%s: %s; best %s", node.SCHEMA.display_name, search.ending, search.kept[0])
    return _output(state, options, resumed)


def _take(about: tuple[Any, ...]) -> _Unfinished | None:
    """Take the remembered search with these inputs out of the memory."""
    for index, state in enumerate(_unfinished):
        if state.about.matches(*about):
            return _unfinished.pop(index)
    return None


def _search(state: _Unfinished, sampling: Sampling, latent: dict[str, Any], vae: Any, options: Options) -> None:
    search, steps, halving = state.search, sampling.steps, options.halving
    total = options.n * steps
    if halving:
        total = planned_steps(search.seeds, halving.rungs(steps), lambda n: halving.survivors(n, options.keep), steps)
    report = StepReporter(sampling.patcher, total, options.batch_size * sum(state.steps.values()))
    tries = _Tries(sampling, latent, vae, options, state, report)
    if halving:
        search.run_pruned(tries.preview, tries.make, halving=halving, steps=steps, threshold=options.threshold)
    else:
        search.run(tries.make, batch_size=options.batch_size, threshold=options.threshold)


def _tell(search: SeedSearch) -> None:
    best = search.kept[0] if search.kept else None
    tell_tries(len(search.tried), len(search.seeds), (best.seed, best.score, best.made[1]) if best else None)


def _output(state: _Unfinished, options: Options, resumed: int) -> io.NodeOutput:
    search = state.search
    tried = list(search.tried.values())
    scores = Scores(
        [each.score for each in tried], [each.reason for each in tried], options.model.scorer.info.calibration
    )
    winners = [each.seed for each in search.kept]
    more = [_ending(search, options), *([Note.of("resumed", steps=resumed)] if resumed else [])]
    report = search.report()
    if options.halving:
        report += f"\ndenoiser calls: {state.calls} of {options.n * state.calls_per_try}"
    return io.NodeOutput(
        torch.cat([each.made[1] for each in search.kept]),
        join_latents([each.made[0] for each in search.kept])[0],
        winners,
        [each.score for each in search.kept],
        report,
        ui=score_panel(
            scores,
            threshold=options.threshold,
            chosen=[index for index, each in enumerate(tried) if each.seed in winners],
            note=Note.of("best seed", seed=str(winners[0])),
            more=more,
            headline=search.kept[0].score,
        ),
    )


def _ending(search: SeedSearch, options: Options) -> Note:
    """`search.ending`, which the page can translate."""
    counts = {"tried": len(search.tried), "of": len(search.seeds)}
    if not search.finished:
        return Note.of("interrupted", **counts)
    if search.stopped_early:
        return Note.of("stopped early", keep=search.keep, threshold=f"{options.threshold:g}", **counts)
    return Note.of("all tried", **counts)
