from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rali_core.evaluation import measure_agreement
from rali_core.head import PrototypeHead
from rali_core.training.compress import compress_embeddings
from rali_core.training.config import CompressConfig, FitConfig
from rali_core.training.distortion_triplets import DistortionTriplet
from rali_core.training.fit import TripletEmbeddings, fit_head

TRIPLET = DistortionTriplet("x.png", True, "noise", 1, 3, seed=0)


def quality_embeddings(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """24-dimensional embeddings in which one direction encodes the score, under noise."""
    random = np.random.default_rng(seed)
    scores = random.beta(4, 2, count)
    direction = np.random.default_rng(99).normal(size=24)
    values = np.outer(scores - 0.5, direction) * 3 + random.normal(size=(count, 24)) + 5.0
    return values.astype(np.float32), scores


def fitted(embeddings: NDArray[np.float32], scores: NDArray[np.float64], **settings: object) -> PrototypeHead:
    compressed = CompressConfig(pca_dim=16, bins=40, prototypes=60, temperature=0.07)
    head = compress_embeddings(embeddings, scores, config=compressed, seed=0)
    correlation = settings.pop("correlation", [])
    triplets, copies = settings.pop("triplet_embeddings", None), settings.pop("copies", None)
    off = {"correlation_weight": 0.0, "ranking_weight": 0.0}
    config = FitConfig(**{"epochs": 15, "batch_size": 64, "learning_rate": 3e-3, **off, **settings})  # type: ignore[arg-type]
    return fit_head(head, (embeddings, scores), correlation, triplets, copies, config=config, seed=0)  # type: ignore[arg-type]


def predict(head: PrototypeHead, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        result: NDArray[np.float32] = head(torch.from_numpy(embeddings)).numpy()
    return result


def test_fitting_improves_on_the_compressed_head() -> None:
    embeddings, scores = quality_embeddings(800, 4)
    unseen, unseen_scores = quality_embeddings(300, 5)
    before = measure_agreement(predict(fitted(embeddings, scores, epochs=0), unseen), unseen_scores)
    head = fitted(embeddings, scores)
    after = measure_agreement(predict(head, unseen), unseen_scores)
    assert before.srcc > 0.8
    assert after.mae < before.mae
    assert after.srcc > before.srcc
    low, high = head.scores.detach().aminmax()
    assert 0 <= float(low) <= float(high) <= 1


def test_two_fits_with_one_seed_are_equal() -> None:
    embeddings, scores = quality_embeddings(200, 4)
    first, second = fitted(embeddings, scores).state_dict(), fitted(embeddings, scores).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_correlation_set_contributes_its_order_and_not_its_scale() -> None:
    embeddings, scores = quality_embeddings(400, 4)
    strange, strange_scores = quality_embeddings(200, 6)
    strange[:, :12] += np.outer(strange_scores, np.full(12, -4.0)).astype(np.float32)  # here the model is misled
    srcc = {}
    for weight in (0.0, 0.05):
        head = fitted(embeddings, scores, correlation_weight=weight, correlation=[(strange, strange_scores)])
        srcc[weight] = measure_agreement(predict(head, strange), strange_scores).srcc
        again = fitted(embeddings, scores, correlation_weight=weight, correlation=[(strange, strange_scores / 5 + 0.1)])
        assert np.allclose(predict(head, strange), predict(again, strange), atol=2e-3)
    assert srcc[0.05] > srcc[0.0] + 0.05


def test_copies_get_the_scores_of_their_images() -> None:
    embeddings, scores = quality_embeddings(400, 4)
    images, image_scores = quality_embeddings(100, 6)
    copies = images.copy()
    copies[:, :12] += 0.5  # changed alike, in a direction that no score speaks of
    pairs = torch.from_numpy(np.stack([images, copies], axis=1))
    moved, srcc = {}, {}
    for weight in (0.0, 5.0):
        head = fitted(embeddings, scores, copies=pairs[:60], consistency_weight=weight)
        unseen = [predict(head, part[60:]) for part in (images, copies)]
        moved[weight] = float(np.abs(unseen[0] - unseen[1]).mean())
        srcc[weight] = measure_agreement(unseen[0], image_scores[60:]).srcc
    assert moved[5.0] < 0.7 * moved[0.0]
    assert srcc[5.0] > srcc[0.0] - 0.03


def test_the_order_of_known_distortions_can_be_fitted_beside_the_scores() -> None:
    embeddings, scores = quality_embeddings(400, 4)
    # triples of which the scores say that they get better, and the triplets that they get worse
    rising = np.argsort(scores)[:399].reshape(3, 133)[:, :40].T
    triples = torch.from_numpy(embeddings[rising])
    triplets = TripletEmbeddings([TRIPLET] * 40, triples)
    share = {}
    for weight in (0.0, 1.0):
        head = fitted(embeddings, scores, ranking_weight=weight, triplet_embeddings=triplets)
        ordered = np.diff(predict(head, embeddings[rising].reshape(-1, 24)).reshape(-1, 3), axis=1) < 0
        share[weight] = float(ordered.mean())
    assert share[0.0] < 0.1
    assert share[1.0] > 0.2
