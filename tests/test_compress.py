from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rali_core.training.compress import compress_embeddings, find_line, join_sets, map_scores
from rali_core.training.config import CompressConfig


def quality_embeddings(count: int, dim: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Embeddings in which one direction encodes the score, under noise, with an offset and unequal scales."""
    random = np.random.default_rng(seed)
    scores = random.beta(4, 2, count)
    direction = np.random.default_rng(99).normal(size=dim)
    values = np.outer(scores - 0.5, direction) * 3 + random.normal(size=(count, dim)) + 5.0
    return (values * np.linspace(0.1, 3, dim)).astype(np.float32), scores


def compress(
    embeddings: NDArray[np.float32],
    scores: NDArray[np.float64],
    *,
    unscored: Sequence[NDArray[np.float32]] = (),
    sets: NDArray[np.intp] | None = None,
    **settings: Any,
) -> SimpleNamespace:
    """Compress with settings of the configuration; the head's tensors as arrays."""
    config = CompressConfig(**settings)
    head = compress_embeddings(embeddings, scores, config=config, seed=0, unscored=unscored, sets=sets)
    return SimpleNamespace(**{name: tensor.numpy() for name, tensor in head.state_dict().items()})


def test_compression_makes_the_prototypes_of_the_method() -> None:
    embeddings, scores = quality_embeddings(600, 24, 0)
    head = compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60)
    assert head.prototypes.shape == (60, 16)
    assert np.allclose(np.linalg.norm(head.prototypes, axis=1), 1, atol=1e-5)
    assert np.allclose(head.components @ head.components.T, np.eye(16), atol=1e-5)
    assert np.allclose(head.mean, embeddings.mean(axis=0), atol=1e-4)
    occupied = np.unique(np.minimum((scores * 40).astype(int), 39))
    assert set(np.minimum((head.scores * 40).astype(int), 39)) == set(occupied), "every bin with images has a prototype"
    assert (np.diff(head.scores) > -1 / 40).all(), "prototypes come bin after bin"
    again = compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60)
    assert np.array_equal(again.prototypes, head.prototypes)


def test_one_bin_with_one_prototype_is_the_mean_score() -> None:
    embeddings, scores = quality_embeddings(50, 8, 1)
    head = compress(embeddings, scores, pca_dim=4, bins=1, prototypes=1)
    assert head.scores == pytest.approx([scores.mean()])


def test_there_are_never_more_prototypes_than_distinct_images() -> None:
    embeddings, scores = quality_embeddings(10, 8, 2)
    doubled = compress(np.repeat(embeddings, 2, axis=0), np.repeat(scores, 2), pca_dim=4, bins=5, prototypes=250)
    assert len(doubled.prototypes) == 10


def test_unusable_embeddings_are_refused() -> None:
    embeddings, scores = quality_embeddings(30, 8, 3)
    options = {"pca_dim": 4, "bins": 5, "prototypes": 20}
    with pytest.raises(ValueError, match="score bins hold images, more than the 2 prototypes"):
        compress(embeddings, scores, **{**options, "prototypes": 2})
    with pytest.raises(ValueError, match=r"expected scores in \[0, 1\]"):
        compress(embeddings, scores * 5, **options)
    with pytest.raises(ValueError, match=r"\(N, D\) embeddings and \(N,\) scores"):
        compress(embeddings, scores[:-1], **options)
    embeddings[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        compress(embeddings, scores, **options)


def test_without_pca_prototypes_are_in_the_embeddings_own_space() -> None:
    embeddings, scores = quality_embeddings(60, 8, 6)
    head = compress(embeddings, scores, pca_dim=0, bins=1, prototypes=12)
    assert np.array_equal(head.components, np.eye(8))
    assert not head.mean.any()
    assert len(head.prototypes) == 12
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = (unit @ head.prototypes.T).argmax(axis=1)
    means = [scores[labels == k].mean() for k in range(12)]
    assert np.corrcoef(means, head.scores)[0, 1] > 0.95, "each score is that of the members near its prototype"


def test_unscored_embeddings_shape_the_pca_and_give_no_prototypes() -> None:
    embeddings, scores = quality_embeddings(100, 8, 7)
    unscored = embeddings[:50] * 3 + 1
    options = {"pca_dim": 4, "bins": 5, "prototypes": 20}
    head = compress(embeddings, scores, unscored=[unscored], **options)
    assert np.allclose(head.mean, np.concatenate([embeddings, unscored]).mean(axis=0), atol=1e-4)
    assert len(head.prototypes) == 20
    assert not np.allclose(head.components, compress(embeddings, scores, **options).components)


def test_scores_of_another_scale_are_mapped_onto_the_models() -> None:
    random = np.random.default_rng(0)
    direction = random.normal(size=8)
    embeddings = random.normal(size=(300, 8)).astype(np.float32)
    quality = 0.5 + 0.05 * embeddings.astype(np.float64) @ direction
    scores = (quality + random.normal(0, 0.01, 300)).clip(0, 1)
    human = 0.4 * quality[200:] + 0.1
    mapped = map_scores(human, find_line(embeddings[:200], scores[:200], embeddings[200:], human, name="other"))
    assert np.abs(mapped - quality[200:].clip(0, 1)).max() < 0.02
    assert (np.argsort(mapped) == np.argsort(human)).all() or mapped.max() == 1.0


def test_sets_on_the_scale_and_mapped_ones_are_put_together() -> None:
    embeddings, scores = quality_embeddings(90, 8, 9)
    absolute = [(embeddings[:30], scores[:30]), (embeddings[30:60], scores[30:60])]
    alone = join_sets(absolute, {})
    assert np.array_equal(alone[0], embeddings[:60])
    assert np.array_equal(alone[1], scores[:60])
    assert not alone[2].any()
    joined, human, sets = join_sets(absolute, {"other": (embeddings[60:], scores[60:] / 3)})
    assert np.array_equal(joined, embeddings)
    assert np.array_equal(human[:60], scores[:60])
    assert human[60:].mean() == pytest.approx(scores[60:].mean(), abs=0.05), "mapped"
    assert sets.tolist() == [0] * 60 + [1] * 30


def test_the_set_component_tells_sets_apart_and_gives_each_prototypes_of_its_own() -> None:
    embeddings, scores = quality_embeddings(400, 12, 8)
    sets = np.arange(400) % 2
    apart = np.random.default_rng(5).normal(size=12)
    embeddings = (embeddings + np.outer(sets - 0.5, apart) * 2).astype(np.float32)
    options = {"pca_dim": 8, "bins": 1, "prototypes": 20, "sets": sets}
    head = compress(embeddings, scores, set_scale=8.0, **options)
    assert head.components.shape == (9, 12)
    along = (embeddings - head.mean) / head.scale @ head.components[-1]
    assert along.std() == pytest.approx(8, abs=0.01)
    assert along[sets == 1].min() > along[sets == 0].max()
    shares = [(np.sign(head.prototypes[:, -1]) == sign).mean() for sign in (-1, 1)]
    assert min(shares) > 0.3
    assert np.abs(head.prototypes[:, -1]).min() > 0.5, "no prototype lies between the sets"
    plain = compress(embeddings, scores, **options)
    assert np.array_equal(head.components[:-1], plain.components)
    occupied = sum(len(np.unique((scores[sets == kind] * 10).astype(int))) for kind in (0, 1))
    by_kind = compress(embeddings, scores, **{**options, "bins": 20, "prototypes": occupied}, set_scale=8.0)
    assert len(by_kind.prototypes) == occupied, "ten bins of each kind"
    with pytest.raises(ValueError, match=f"{occupied} score bins hold images"):
        compress(embeddings, scores, **{**options, "bins": 20, "prototypes": occupied - 1})
    assert (np.diff(by_kind.scores) < -0.3).sum() == 1, "the bins of one kind, then those of the other"
    alone = compress(embeddings, scores, set_scale=8.0, **{**options, "sets": np.zeros(400, dtype=int)})
    assert np.array_equal(alone.components, plain.components), "one set needs no such component"
