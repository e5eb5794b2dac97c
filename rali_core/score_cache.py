"""Scores by content: what was scored once, by the same model in the same way, is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from threading import Lock

import torch
from torch import Tensor

DEFAULT_CAPACITY = 65536
"""Remembered scores; an entry takes some 200 bytes."""

Compute = Callable[[list[Tensor]], Sequence[float]]


def content_key(image: Tensor) -> bytes:
    """A digest of an image's shape, dtype and values; two images share it only where they are equal.

    Args:
        image: A tensor of any shape; -0.0 and 0.0 count as different.
    """
    values = image.detach().cpu().contiguous()
    digest = blake2b(repr((tuple(values.shape), str(values.dtype))).encode(), digest_size=20)
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


class ScoreCache:
    """Remembers scores, the least recently used are forgotten first.

    Args:
        capacity: How many scores to remember, at least 1.

    Raises:
        ValueError: `capacity` is less than 1.

    Example:
        >>> import torch
        >>> cache = ScoreCache()
        >>> cache.score([torch.zeros(3, 2, 2)], lambda images: [0.25] * len(images), namespace="model")
        [0.25]
        >>> cache.score([torch.zeros(3, 2, 2)], lambda images: 1 / 0, namespace="model")
        [0.25]
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._scores: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._scores)

    def score(self, images: Sequence[Tensor], compute: Compute, *, namespace: str) -> list[float]:
        """The images' scores, computed only where they are not known.

        Args:
            images: N images.
            compute: Given the unknown images, each once, in order, returns their scores. It is not called where
                there is none. What it raises passes through, and nothing is remembered then.
            namespace: Everything besides the pixels that the score depends on: model, dtype, coverage.

        Returns:
            N scores in input order.
        """
        keys = [(namespace, content_key(image)) for image in images]
        with self._lock:
            known = {key: self._scores[key] for key in keys if key in self._scores}
        unknown: dict[tuple[str, bytes], Tensor] = {}
        for key, image in zip(keys, images, strict=True):
            if key not in known:
                unknown.setdefault(key, image)
        if unknown:
            scores = compute(list(unknown.values()))
            known |= {key: float(score) for key, score in zip(unknown, scores, strict=True)}
        with self._lock:
            for key in keys:
                self._scores[key] = known[key]
                self._scores.move_to_end(key)
            while len(self._scores) > self.capacity:
                self._scores.popitem(last=False)
        return [known[key] for key in keys]
