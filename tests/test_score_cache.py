from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rali_core.score_cache import ScoreCache, content_key


def image(value: float) -> Tensor:
    return torch.full((3, 4, 5), value)


class Counter:
    """Scores an image by its mean, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, images: list[Tensor]) -> list[float]:
        self.asked += [float(one.mean()) for one in images]
        return [float(one.mean()) for one in images]


def test_only_the_unknown_are_computed_each_once_in_order() -> None:
    cache, compute = ScoreCache(), Counter()
    assert cache.score([image(0.5), image(0.25), image(0.5)], compute, namespace="m") == [0.5, 0.25, 0.5]
    assert compute.asked == [0.5, 0.25]
    assert cache.score([image(0.25), image(0.75), image(0.5)], compute, namespace="m") == [0.25, 0.75, 0.5]
    assert compute.asked == [0.5, 0.25, 0.75]


def test_another_model_is_another_score() -> None:
    cache, compute = ScoreCache(), Counter()
    for namespace in ("m", "n"):
        cache.score([image(0.5)], compute, namespace=namespace)
    assert compute.asked == [0.5, 0.5]


def test_the_least_recently_used_are_forgotten() -> None:
    cache, compute = ScoreCache(capacity=2), Counter()
    for value in (0.25, 0.5, 0.25, 0.75):
        cache.score([image(value)], compute, namespace="m")
    assert len(cache) == 2
    cache.score([image(0.25)], compute, namespace="m")
    assert compute.asked == [0.25, 0.5, 0.75]
    cache.score([image(0.5)], compute, namespace="m")
    assert compute.asked == [0.25, 0.5, 0.75, 0.5]


def test_a_batch_larger_than_the_cache_is_scored_all_the_same() -> None:
    cache = ScoreCache(capacity=1)
    assert cache.score([image(0.25), image(0.5)], Counter(), namespace="m") == [0.25, 0.5]


def test_a_failure_leaves_nothing_behind() -> None:
    cache = ScoreCache()

    def fail(_images: list[Tensor]) -> list[float]:
        raise ValueError("spoiled")

    with pytest.raises(ValueError, match="spoiled"):
        cache.score([image(0.5)], fail, namespace="m")
    assert len(cache) == 0


def test_keys_tell_shapes_types_and_single_bits_apart() -> None:
    other = image(0.5)
    other[2, 3, 4] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    tensors = [image(0.5), other, image(0.5).half(), image(0.5).flatten(), image(0.5).reshape(3, 5, 4)]
    assert len({content_key(tensor) for tensor in tensors}) == len(tensors)
    strided = image(0.5).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert content_key(strided) == content_key(image(0.5))


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        ScoreCache(0)
