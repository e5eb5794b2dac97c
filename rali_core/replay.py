"""Resumes a loop that cannot be suspended: runs it again, and answers its earlier calls from memory.

A sampler's loop holds its state (earlier outputs, random generators) in local variables. Started again with the same
noise and seed it makes the same calls of the denoiser, which are nearly all of its cost: those whose inputs are known
are answered at once, and the loop reaches its former state bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .score_cache import content_key


class Replay:
    """Remembers a loop's calls, in main memory.

    Attributes:
        computed: How many calls were computed.

    Example:
        >>> import torch
        >>> replay, x = Replay(), torch.ones(1)
        >>> for _ in range(2):
        ...     replay.begin()
        ...     replay(lambda: [x + 1], x)
        [tensor([2.])]
        [tensor([2.])]
        >>> replay.computed
        1
    """

    def __init__(self) -> None:
        self._known: list[tuple[list[bytes], list[Tensor]]] = []
        self._next = 0
        self.computed = 0

    def begin(self) -> None:
        """Call before each run of the loop."""
        self._next = 0

    def __call__(self, compute: Callable[[], Sequence[Tensor]], *inputs: Tensor) -> list[Tensor]:
        """A call's outputs, from memory if the same call was made at this position before.

        Args:
            compute: Computes the call. If the inputs differ from those known at this position, it is computed, and the
                calls known from here on are forgotten.
            inputs: Everything that the outputs depend on and that can differ between runs of the loop.

        Returns:
            The outputs, on the first input's device; the caller may change them.
        """
        key = [content_key(values) for values in inputs]
        if self._next >= len(self._known) or self._known[self._next][0] != key:
            del self._known[self._next :]
            outputs = list(compute())
            self._known.append((key, [values.detach().to("cpu", copy=True) for values in outputs]))
            self.computed += 1
        else:
            outputs = [values.to(inputs[0].device, copy=True) for values in self._known[self._next][1]]
        self._next += 1
        return outputs
