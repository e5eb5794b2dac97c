from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rali_core.checkpoint import ModelInfo
from rali_core.model import RaliModel
from rali_core.score_cache import FILE_NAME, ScoreCache, content_key, content_keys
from rali_core.scorer import RaliScorer


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


def test_keys_differ_by_shape_type_and_single_bits() -> None:
    other = image(0.5)
    other[2, 3, 4] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    tensors = [image(0.5), other, image(0.5).half(), image(0.5).flatten(), image(0.5).reshape(3, 5, 4)]
    assert len({content_key(tensor) for tensor in tensors}) == len(tensors)
    gaps = torch.zeros(3, 4, 10)
    gaps[:, :, ::2] = other
    assert content_key(gaps[:, :, ::2]) == content_key(other)
    assert content_key(gaps.permute(1, 2, 0).contiguous().permute(2, 0, 1)) != content_key(torch.zeros(3, 4, 10))


def test_many_large_images_have_the_keys_that_each_has_alone() -> None:
    images = [torch.full((600, 600, 3), value).permute(2, 0, 1) for value in (0.25, 0.5, 0.75)]
    assert content_keys(images) == [content_key(image) for image in images]


def test_a_file_keeps_scores_for_the_next_time(tmp_path: Path) -> None:
    compute = Counter()
    for _ in range(2):
        cache = ScoreCache(folder=tmp_path / "new" / "folder")
        assert cache.score([image(0.5), image(0.25)], compute, namespace="m") == [0.5, 0.25]
        cache.close()
    assert compute.asked == [0.5, 0.25]


def test_a_full_file_forgets_the_least_recently_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ScoreCache(capacity=1, folder=tmp_path, file_capacity=3)
    for moment, value in ((0, 0.25), (10_000, 0.5), (20_000, 0.75), (30_000, 0.25), (40_000, 1.0)):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        cache.score([image(value)], Counter(), namespace="m")
    known = cache.find([("m", content_key(image(value))) for value in (0.25, 0.5, 0.75, 1.0)])
    assert sorted(known.values()) == [0.25, 0.75, 1.0]


WRITER = """
import sys
from PACKAGE.score_cache import ScoreCache
import torch
cache = ScoreCache(capacity=1, folder=sys.argv[1])
sys.stdin.readline()
for number in range(150):
    cache.put({("m", f"{sys.argv[2]}-{number}".encode()): float(number), ("m", b"shared"): float(number)})
    assert cache.find([("m", f"{sys.argv[2]}-{number // 2}".encode())])
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    code = WRITER.replace("PACKAGE", ScoreCache.__module__.rpartition(".")[0])
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for name in ("a", "b", "c")
    ]
    for writer in writers:  # all begin together, each with a connection of its own
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors.decode()
    keys = [("m", f"{name}-{number}".encode()) for name in "abc" for number in range(150)]
    assert len(ScoreCache(folder=tmp_path).find(keys)) == 450


def test_a_damaged_or_foreign_file_is_refused_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(ValueError, match=r"is damaged or no score cache .*: delete it, or name another folder"):
        ScoreCache(folder=tmp_path)
    (tmp_path / FILE_NAME).unlink()
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE letters (text TEXT)")
    connection.close()
    with pytest.raises(ValueError, match="SQLite file of another program"):
        ScoreCache(folder=tmp_path)


def test_a_scorer_asks_its_cache_first(
    tiny_model: RaliModel, tiny_info: ModelInfo, tmp_path: Path, photographs: dict[str, Image.Image]
) -> None:
    files = []
    for name in ("cat", "coffee"):
        files.append(tmp_path / f"{name}.png")
        photographs[name].save(files[-1])
    (tmp_path / "bad.png").write_text("no image")
    images = [*files, tmp_path / "bad.png", photographs["rocket"], torch.rand(3, 40, 50)]
    cold = RaliScorer(tiny_model, tiny_info, device="cpu", cache=ScoreCache(folder=tmp_path / "cache"))
    expected = cold.score(images, on_error="record")
    plain = RaliScorer(tiny_model, tiny_info, device="cpu").score(images, on_error="record")
    np.testing.assert_array_equal(expected.scores, plain.scores)
    warm = RaliScorer(tiny_model, tiny_info, device="cpu", cache=ScoreCache(folder=tmp_path / "cache"))
    warm._embed = None  # type: ignore[assignment,method-assign]  # whoever calls it fails
    found = warm.score(images, on_error="record")
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (found.bands, found.errors) == (expected.bands, expected.errors)
    shutil.copy(files[1], files[0])
    assert warm.score(files[:1]).scores[0] == expected.scores[1]  # by content, not by name
    warm.coverage = "tiles"
    with pytest.raises(TypeError, match="not callable"):
        warm.score(files[1])


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        ScoreCache(0)
