"""Best of N over seeds: which seeds, in which order, and when to stop; generating an image is up to the caller.

A search keeps its state: after a call of `run` was interrupted (or failed), calling it again resumes and ends with the
result of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any

from .constants import MAX_SEED, SEED_STEP
from .content import NO_CONTENT
from .halving import SuccessiveHalving

OUT_OF_MEMORY = "out of memory"


def search_seeds(seed: int, n: int) -> list[int]:
    """The `n` seeds of a search: the first is `seed`, each next one is `SEED_STEP` higher (modulo 2^64).

    Searches that begin at seed, seed + 1, seed + 2, ... share no seed within the first million.

    Example:
        >>> search_seeds(5, 3)
        [5, 1000005, 2000005]
    """
    return [(seed + number * SEED_STEP) % (MAX_SEED + 1) for number in range(n)]


@dataclass(frozen=True)
class Try:
    """One seed that was tried.

    Attributes:
        seed: Its seed.
        score: Score of its final image, or of its preview if it was pruned; NaN without one.
        reason: None, `NO_CONTENT`, or why there is no score.
        pruned_at: The 1-based step after which it was dropped; None for one that was finished.
        made: The caller's result; only the kept ones hold it.
    """

    seed: int
    score: float
    reason: str | None = None
    pruned_at: int | None = None
    made: Any = None

    @property
    def blank(self) -> bool:
        """Whether its image has no content."""
        return self.reason == NO_CONTENT

    def __str__(self) -> str:
        text = f"seed {self.seed}: {'no score' if isnan(self.score) else f'{self.score:.4f}'}"
        pruned = f", dropped after step {self.pruned_at}" if self.pruned_at else ""
        return text + pruned + (f", {self.reason}" if self.reason else "")


Make = Callable[[list[int]], list[Try]]
"""Function from seeds to their finished tries, with their results."""

Preview = Callable[[list[int], int], list[Try]]
"""Function from seeds and a 0-based step to tries with the scores of their previews after that step."""


class SeedSearch:
    """A search for the best of some seeds.

    Args:
        seeds: N different seeds, in the order in which they are tried.
        keep: How many of the best to keep, at least 1.
        release: Called after memory ran out, once the error is released.
        notify: Called with the search after every unit of work.

    Attributes:
        tried: The tries so far, by seed, in the order in which they ended, without results.
        kept: The best so far, best first: blank ones after all others, among equals the earlier one.
        finished: Whether it is complete.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        keep: int = 1,
        *,
        release: Callable[[], None] = lambda: None,
        notify: Callable[[SeedSearch], None] = lambda _: None,
    ) -> None:
        self.seeds = list(seeds)
        self.keep = keep
        self.tried: dict[int, Try] = {}
        self.kept: list[Try] = []
        self.finished = False
        self._release = release
        self._notify = notify
        self._standing = list(seeds)
        self._rungs_done = 0
        self._early = ""

    def run(self, make: Make, *, batch_size: int = 1, threshold: float | None = None) -> None:
        """Generate all seeds, `batch_size` at once, or until `keep` of them reach the threshold.

        A batch that runs out of memory affects its own seeds only, unless nothing was generated before it.
        """
        for start in range(0, len(self.seeds), batch_size):
            batch = self.seeds[start : start + batch_size]
            if not all(seed in self.tried for seed in batch):
                self._add(self._guard(lambda batch=batch: make(batch), batch))  # type: ignore[misc]
            if self._reached(threshold):
                break
        self.finished = True

    def run_pruned(
        self,
        preview: Preview,
        make: Make,
        *,
        halving: SuccessiveHalving,
        steps: int,
        threshold: float | None = None,
    ) -> None:
        """Compare all seeds by their previews at some steps, drop the weaker ones, and generate the remaining ones.

        Args:
            preview: Scores seeds after a step; called with all remaining ones, also after an interruption.
            make: Generates one seed; called with the most promising one first.
            halving: When to compare and how many to keep.
            steps: Denoising steps of one try.
            threshold: Stop when `keep` finished ones reach it.
        """
        for number, step in enumerate(halving.rungs(steps)):
            if number < self._rungs_done:
                continue
            scored = preview(self._standing, step)
            chosen = halving.choose([each.score for each in scored], self.keep)
            for index, each in enumerate(scored):
                if index not in chosen:
                    self.tried[each.seed] = replace(each, pruned_at=step + 1, made=None)
            self._standing = [scored[index].seed for index in chosen]
            self._rungs_done = number + 1
            self._notify(self)
        for seed in self._standing:
            if seed not in self.tried:
                self._add(self._guard(lambda seed=seed: make([seed]), [seed]))  # type: ignore[misc]
            if self._reached(threshold):
                break
        self.finished = True

    @property
    def stopped_early(self) -> bool:
        """Whether the threshold ended it."""
        return bool(self._early)

    @property
    def ending(self) -> str:
        """Its ending, or its current state, in words."""
        count, n = len(self.tried), len(self.seeds)
        if not self.finished:
            return f"interrupted after {count} of {n} seeds; the best so far"
        return self._early or f"all {n} seeds tried"

    def report(self) -> str:
        """The ending, and a line for each try."""
        return "\n".join([self.ending, *map(str, self.tried.values())])

    def _add(self, tries: list[Try]) -> None:
        self.tried |= {each.seed: replace(each, made=None) for each in tries}
        scored = [each for each in tries if not isnan(each.score)]
        self.kept = sorted([*self.kept, *scored], key=lambda each: (each.blank, -each.score))[: self.keep]
        self._notify(self)

    def _reached(self, threshold: float | None) -> bool:
        if threshold is None or sum(each.score >= threshold and not each.blank for each in self.kept) < self.keep:
            return False
        tried, n = len(self.tried), len(self.seeds)
        self._early = f"stopped early: {self.keep} reached {threshold:g} after {tried} of {n} seeds"
        return True

    def _guard(self, make: Callable[[], list[Try]], seeds: list[int]) -> list[Try]:
        from .devices import is_out_of_memory

        try:
            return make()
        except (MemoryError, RuntimeError) as error:
            if not self.kept or not is_out_of_memory(error):
                raise
        self._release()  # the error no longer holds on to memory
        return [Try(seed, nan, OUT_OF_MEMORY) for seed in seeds]
