"""Repeating a part of a graph."""

from __future__ import annotations

from math import nan
from typing import Any

from rali_core.graph_loop import Attempt, Retry, copy_between, nodes_between

# start -> sampler -> decode -> end; model feeds the sampler from outside, preview hangs on decode, late uses the seed.
GRAPH: dict[str, dict[str, Any]] = {
    "model": {"class_type": "Load", "inputs": {"name": "x"}},
    "start": {"class_type": "Start", "inputs": {"seed": 5}},
    "sampler": {"class_type": "Sample", "inputs": {"model": ["model", 0], "seed": ["start", 1], "cfg": 2.0}},
    "hires": {"class_type": "Sample", "inputs": {"latent": ["sampler", 0], "seed": ["start", 1], "size": [8, 8]}},
    "decode": {"class_type": "Decode", "inputs": {"samples": ["hires", 0], "vae": ["model", 2]}},
    "preview": {"class_type": "Preview", "inputs": {"images": ["decode", 0]}},
    "late": {"class_type": "Save", "inputs": {"seed": ["start", 1], "images": ["end", 0]}},
    "end": {"class_type": "End", "inputs": {"retry": ["start", 0], "images": ["decode", 0], "n": 4}},
}


def test_between_is_what_depends_on_the_start_and_leads_to_the_end() -> None:
    assert nodes_between(GRAPH.__getitem__, "start", "end") == {"sampler", "hires", "decode"}
    assert nodes_between(GRAPH.__getitem__, "model", "sampler") == set()


def test_the_copy_has_the_new_seed_and_leaves_what_is_outside_where_it_is() -> None:
    copy = copy_between(
        GRAPH.__getitem__, "start", "end", outputs={1: 77}, inputs={"retry": "state"}, prefix="end.0.0."
    )
    assert copy == {
        "end.0.0.sampler": {"class_type": "Sample", "inputs": {"model": ["model", 0], "seed": 77, "cfg": 2.0}},
        "end.0.0.hires": {
            "class_type": "Sample", "inputs": {"latent": ["end.0.0.sampler", 0], "seed": 77, "size": [8, 8]},
        },
        "end.0.0.decode": {"class_type": "Decode", "inputs": {"samples": ["end.0.0.hires", 0], "vae": ["model", 2]}},
        "end.0.0.end": {"class_type": "End", "inputs": {"retry": "state", "images": ["end.0.0.decode", 0], "n": 4}},
    }  # fmt: skip
    assert GRAPH["sampler"]["inputs"]["seed"] == ["start", 1]


def test_a_long_chain_needs_no_recursion() -> None:
    chain: dict[str, dict[str, Any]] = {"0": {"class_type": "Start", "inputs": {}}}
    chain |= {str(i): {"class_type": "Step", "inputs": {"x": [str(i - 1), 0]}} for i in range(1, 5000)}
    assert len(nodes_between(chain.__getitem__, "0", "4999")) == 4998


def test_the_best_pass_is_kept_and_the_seeds_continue() -> None:
    loop = Retry("start", (5,))
    for score in (nan, 0.3, 0.7, 0.7, nan, 0.1):
        loop = loop.after(Attempt(loop.seeds[-1], score, f"made {len(loop.lines)}", f"{score:.1f}")).next("end")
    assert loop.best is not None
    assert (loop.best.result, loop.best.seed) == ("made 2", 2_000_005)
    assert loop.seeds == tuple(5 + 1_000_000 * index for index in range(7))
    assert loop.lines[:2] == ("seed 5: nan", "seed 1000005: 0.3")
