"""Repeats a part of a node graph: which nodes are between two others, and copies of them with other inputs.

Graphs are those of ComfyUI's prompts: `{id: {"class_type": ..., "inputs": {name: value or [id, output number]}}}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any

from .seed_search import search_seeds

GetNode = Callable[[str], Mapping[str, Any]]


def is_link(value: Any) -> bool:
    """Whether an input's value is an output of another node."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )


def nodes_between(get_node: GetNode, start: str, end: str) -> set[str]:
    """Ids of the nodes on all paths from `start` to `end`, without these two."""
    feeds: dict[str, set[str]] = {}
    waiting, seen = [end], {start, end}
    while waiting:
        target = waiting.pop()
        for source in _sources(get_node(target)):
            feeds.setdefault(source, set()).add(target)
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    between: set[str] = set()
    waiting = [start]
    while waiting:
        for target in feeds.get(waiting.pop(), ()):
            if target != end and target not in between:
                between.add(target)
                waiting.append(target)
    return between


def copy_between(
    get_node: GetNode, start: str, end: str, *, outputs: Mapping[int, Any], inputs: Mapping[str, Any], prefix: str
) -> dict[str, dict[str, Any]]:
    """A copy of the nodes between two nodes and of the second one.

    Args:
        get_node: The graph.
        start: Start node; links to its outputs are replaced.
        end: End node; it is copied too.
        outputs: Replacements of the first node's outputs, by output number.
        inputs: Inputs of the copy of `end` that differ.
        prefix: Prefix of each id.

    Returns:
        Id to node; links to nodes outside are kept.
    """
    copied = {*nodes_between(get_node, start, end), end}

    def moved(value: Any) -> Any:
        if not is_link(value):
            return value
        if value[0] == start:
            return outputs.get(int(value[1]), value)
        return [prefix + value[0], value[1]] if value[0] in copied else value

    graph = {
        prefix + name: {
            "class_type": get_node(name)["class_type"],
            "inputs": {key: moved(value) for key, value in get_node(name)["inputs"].items()},
        }
        for name in sorted(copied)
    }
    graph[prefix + end]["inputs"].update(inputs)
    return graph


def _sources(node: Mapping[str, Any]) -> Iterator[str]:
    for value in node["inputs"].values():
        if is_link(value):
            yield value[0]


@dataclass(frozen=True)
class Attempt:
    """One pass through a loop's body.

    Attributes:
        seed: Its seed.
        score: Higher is better; NaN without one.
        result: Its outputs.
        text: The score as text.
    """

    seed: int
    score: float
    result: Any
    text: str


@dataclass(frozen=True)
class Retry:
    """The state of a loop; it is passed through the graph from pass to pass.

    Attributes:
        start: Id of the start node.
        end: Id of the end node; empty in the first pass.
        seeds: Seeds of the passes so far and of the running one.
        lines: A line for each finished pass.
        best: The best of them; among equals the earlier one.
    """

    start: str
    seeds: tuple[int, ...]
    end: str = ""
    lines: tuple[str, ...] = ()
    best: Attempt | None = field(default=None, repr=False)

    def after(self, attempt: Attempt) -> Retry:
        """The loop after the running pass."""
        better = self.best is None or (not attempt.score <= self.best.score and not isnan(attempt.score))
        line = f"seed {attempt.seed}: {attempt.text}"
        return replace(self, lines=(*self.lines, line), best=attempt if better else self.best)

    def next(self, end: str) -> Retry:
        """The loop in its next pass, with a new seed."""
        seeds = search_seeds(self.seeds[0], len(self.seeds) + 1)
        return replace(self, end=end, seeds=tuple(seeds))
