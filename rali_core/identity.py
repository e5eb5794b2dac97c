"""Compares objects with those of an earlier call by identity, without keeping them alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_PLAIN = (str, bytes, int, float, bool, type(None))


class Identity:
    """Remembers objects, by weak references where possible.

    Plain values are compared by value and type, lists, tuples and mappings entry by entry, everything else by identity:
    a tensor or a model differs from another one even if their contents are equal.

    Args:
        things: What to remember.

    Example:
        >>> import torch
        >>> weights = torch.ones(1)
        >>> seen = Identity("euler", 20, [weights, {"strength": 1.0}])
        >>> seen.matches("euler", 20, [weights, {"strength": 1.0}])
        True
        >>> seen.matches("euler", 20, [weights.clone(), {"strength": 1.0}])
        False
    """

    def __init__(self, *things: Any) -> None:
        self._leaves = [_reference(leaf) for leaf in _leaves(things)]

    def matches(self, *things: Any) -> bool:
        """Whether these are the same objects."""
        leaves = list(_leaves(things))
        return len(leaves) == len(self._leaves) and all(
            known == (type(leaf), leaf) if isinstance(leaf, _PLAIN) else callable(known) and known() is leaf
            for known, leaf in zip(self._leaves, leaves, strict=True)
        )


def _leaves(thing: Any) -> Iterator[Any]:
    if isinstance(thing, Mapping):
        yield f"mapping of {len(thing)}"
        for key, value in thing.items():
            yield from _leaves(key)
            yield from _leaves(value)
    elif isinstance(thing, list | tuple):
        yield f"sequence of {len(thing)}"
        for value in thing:
            yield from _leaves(value)
    else:
        yield thing


def _reference(leaf: Any) -> tuple[type, Any] | Callable[[], Any]:
    if isinstance(leaf, _PLAIN):
        return type(leaf), leaf
    try:
        return weakref.ref(leaf)
    except TypeError:
        return lambda: leaf
