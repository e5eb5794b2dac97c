"""Searching seeds: order, early stop, pruning, resuming after an interrupt, and failures of single tries."""

from __future__ import annotations

from math import isnan, nan

import pytest
import torch

from rali_core.constants import MAX_SEED
from rali_core.content import NO_CONTENT
from rali_core.halving import SuccessiveHalving
from rali_core.identity import Identity
from rali_core.replay import Replay
from rali_core.seed_search import OUT_OF_MEMORY, SeedSearch, Try, search_seeds

SCORES = dict(enumerate([0.3, 0.9, 0.1, 0.7, 0.5, 0.8, 0.2, 0.6]))


class Maker:
    """Makes tries with the scores of `SCORES`, and breaks at some of them."""

    def __init__(self, breaks: dict[int, BaseException] | None = None) -> None:
        self.calls: list[list[int]] = []
        self.previews: list[tuple[int, int]] = []
        self.breaks = breaks or {}

    def __call__(self, seeds: list[int]) -> list[Try]:
        for seed in seeds:
            if seed in self.breaks:
                raise self.breaks.pop(seed)
        self.calls.append(seeds)
        return [Try(seed, SCORES[seed], made=f"image {seed}") for seed in seeds]

    def preview(self, seeds: list[int], step: int) -> list[Try]:
        for seed in seeds:
            if (error := self.breaks.pop(seed, None)) is not None:
                raise error
        self.previews += [(seed, step) for seed in seeds]
        return [Try(seed, SCORES[seed] / 2) for seed in seeds]


def test_searches_that_begin_one_apart_share_no_seed() -> None:
    assert search_seeds(5, 3) == [5, 1_000_005, 2_000_005]
    seeds = [seed for start in range(50) for seed in search_seeds(start, 100)]
    assert len(set(seeds)) == 5000
    assert search_seeds(MAX_SEED, 2) == [MAX_SEED, 999_999]


@pytest.mark.parametrize("batch", [1, 3])
def test_an_interrupted_search_resumes_to_the_same_end(batch: int) -> None:
    whole, made = SeedSearch(SCORES, keep=3), Maker()
    whole.run(made, batch_size=batch)
    broken, maker = SeedSearch(SCORES, keep=3), Maker({5: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        broken.run(maker, batch_size=batch)
    assert not broken.finished
    assert broken.ending == f"interrupted after {5 // batch * batch} of 8 seeds; the best so far"
    assert broken.kept[0].made == "image 1"
    broken.run(maker, batch_size=batch)
    assert (broken.kept, broken.tried, broken.report()) == (whole.kept, whole.tried, whole.report())
    assert maker.calls == made.calls  # none twice
    assert [each.seed for each in whole.kept] == [1, 5, 3]
    assert all(each.made is None for each in whole.tried.values())


def test_it_stops_when_enough_of_them_are_good() -> None:
    search, maker = SeedSearch(SCORES, keep=2), Maker()
    search.run(maker, threshold=0.7)
    assert maker.calls == [[0], [1], [2], [3]]
    assert search.ending == "stopped early: 2 reached 0.7 after 4 of 8 seeds"


def test_running_out_of_memory_costs_its_own_seeds_only() -> None:
    released: list[int] = []
    search = SeedSearch(SCORES, release=lambda: released.append(1))
    search.run(Maker({2: torch.OutOfMemoryError("CUDA out of memory")}), batch_size=2)
    assert [seed for seed, each in search.tried.items() if each.reason == OUT_OF_MEMORY] == [2, 3]
    assert released == [1]
    assert search.kept[0].seed == 1
    with pytest.raises(torch.OutOfMemoryError):  # nothing was made before it
        SeedSearch(SCORES).run(Maker({0: torch.OutOfMemoryError("CUDA out of memory")}))
    with pytest.raises(RuntimeError, match="shapes"):
        SeedSearch(SCORES).run(Maker({3: RuntimeError("shapes differ")}))


def test_blank_images_come_last_and_those_without_a_score_not_at_all() -> None:
    odd = [Try(1, 0.02, NO_CONTENT), Try(2, nan, "holds NaN"), Try(3, 0.01), Try(4, 0.5)]
    search = SeedSearch([1, 2, 3, 4], keep=4)
    search.run(lambda _: odd, batch_size=4, threshold=0.0)
    assert [each.seed for each in search.kept] == [4, 3, 1]
    assert search.ending == "all 4 seeds tried"
    assert search.report().splitlines()[1:3] == ["seed 1: 0.0200, no content", "seed 2: no score, holds NaN"]


@pytest.mark.parametrize("broken_at", [None, 0, 3])
def test_pruning_keeps_the_promising_ones_and_resumes_after_an_interrupt(broken_at: int | None) -> None:
    search, maker = SeedSearch(SCORES), Maker({} if broken_at is None else {broken_at: KeyboardInterrupt()})

    def run() -> None:
        search.run_pruned(maker.preview, maker, halving=SuccessiveHalving(), steps=20)

    if broken_at is not None:
        with pytest.raises(KeyboardInterrupt):
            run()
        assert not search.finished
    run()
    assert search.kept == [Try(1, 0.9, made="image 1")]
    assert [each.pruned_at for each in search.tried.values()] == [4] * 4 + [8] * 2 + [12] + [None]
    assert maker.calls == [[1]]
    assert [step for _, step in maker.previews] == [3] * 8 + [7] * 4 + [11] * 2
    assert "seed 5: 0.4000, dropped after step 12" in search.report()


def test_a_preview_without_a_score_is_the_first_to_go() -> None:
    search = SeedSearch([0, 1])
    search.run_pruned(
        lambda seeds, _: [Try(seed, nan if seed == 0 else 0.0) for seed in seeds],
        Maker(), halving=SuccessiveHalving(at=(0.5,)), steps=4,
    )  # fmt: skip
    assert search.kept[0].seed == 1
    assert isnan(search.tried[0].score)


def test_a_loop_that_runs_again_computes_only_what_is_new_to_it() -> None:
    replay = Replay()

    def loop(steps: int, start: float = 1.0) -> torch.Tensor:
        replay.begin()
        x, before = torch.full((2,), start), torch.zeros(2)
        for _ in range(steps):
            (denoised,) = replay(lambda x=x: [x * 0.5], x, torch.tensor(0.0))
            x, before = denoised + 0.1 * before, denoised  # a multistep loop: its state is in local variables
            denoised.add_(1.0)  # the caller may change what it got
        return x

    whole = loop(5)
    assert replay.computed == 5
    replay = Replay()
    loop(3)
    assert torch.equal(loop(5), whole)
    assert replay.computed == 5
    replay(lambda: [torch.ones(1)], torch.ones(1), torch.ones(1).as_strided((1,), (0,)))  # any strides
    assert replay.computed == 6
    loop(5, start=2.0)  # other inputs: nothing is known of these
    assert replay.computed == 11


def test_objects_are_compared_by_identity_and_values_by_value() -> None:
    model, cond = torch.nn.Linear(1, 1), [[torch.ones(1), {"strength": 0.5}]]
    seen = Identity(model, cond, "euler", 20, None)
    assert seen.matches(model, [[cond[0][0], {"strength": 0.5}]], "euler", 20, None)
    for other in (
        (torch.nn.Linear(1, 1), cond, "euler", 20, None),
        (model, [[torch.ones(1), {"strength": 0.5}]], "euler", 20, None),
        (model, [[cond[0][0], {"strength": 0.25}]], "euler", 20, None),
        (model, cond, "euler", 20.0, None),
        (model, cond, "euler", 20),
    ):
        assert not seen.matches(*other)
    del model
    assert not seen.matches(torch.nn.Linear(1, 1), cond, "euler", 20, None)
