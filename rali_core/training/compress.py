"""Stage 4, compress: PCA and score-aware K-means turn the training embeddings into prototypes with scores.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369), section 4.2: PCA of the image embeddings; the training scores are
cut into N equal-width bins; K-means runs inside every bin; the centroids of all bins are the K basis vectors, each
with the mean score of its members. What the paper leaves open, and what is done here: every bin that is not empty
gets one centroid, and the rest go, one at a time, to the bin with the largest sum of squared distances to its
centroids; a bin never gets more centroids than it has distinct members. K-means runs on unit vectors, because the
head compares by cosine. Empty bins get none. A single bin is plain K-means. scikit-learn does the work. Beyond the
paper: two kinds of sets have bins, and so prototypes, of their own, and one more component may tell them apart.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..head import PrototypeHead, compress
from .config import CompressConfig

logger = logging.getLogger("rali")

Embedded = tuple[NDArray[np.float32], NDArray[np.float64]]
"""(N, D) embeddings and (N,) scores of a set."""


def find_line(
    embeddings: NDArray[np.float32],
    scores: NDArray[np.float64],
    others: NDArray[np.float32],
    human: NDArray[np.float64],
    *,
    name: str,
) -> tuple[float, float]:
    """Find the straight line that maps another set's scores onto the model's scale.

    It gives them the mean and the standard deviation of what a ridge regression of the model's scale says of the other
    set's images; so the order of the human scores stays, and neither set pulls the other's scale.

    Args:
        embeddings: (N, D) of images on the model's scale.
        scores: (N,) in [0, 1].
        others: (M, D) of the other set's images.
        human: (M,) human scores of these, on their own scale.
        name: The set's name, for the log.

    Returns:
        Slope and offset, see `map_scores`.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 4, 9))).fit(embeddings, scores)
    predicted = regression.predict(others)
    slope = float(predicted.std() / max(float(human.std()), 1e-12))
    offset = float(predicted.mean() - slope * human.mean())
    logger.info("%s: scores mapped by %.3f x + %.3f", name, slope, offset)
    return slope, offset


def map_scores(human: NDArray[np.float64], line: tuple[float, float]) -> NDArray[np.float64]:
    """(M,) human scores on their own scale to (M,) in [0, 1] on the model's; the line is that of `find_line`."""
    mapped: NDArray[np.float64] = np.clip(line[0] * human + line[1], 0.0, 1.0)
    return mapped


def join_sets(
    absolute: Sequence[Embedded], mapped: Mapping[str, Embedded]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.intp]]:
    """Put sets that are on the model's scale, and sets that are mapped onto it, together.

    Args:
        absolute: (N, D) embeddings and (N,) scores in [0, 1] of each set on the model's scale; at least one.
        mapped: The same of each other set, by its name, on its own scale.

    Returns:
        (M, D) embeddings, (M,) scores in [0, 1], and (M,) 0 for images of the first kind, 1 for those of the second.
    """
    embeddings = np.concatenate([part for part, _ in absolute])
    scores = np.concatenate([human for _, human in absolute])
    others = [map_scores(part[1], find_line(embeddings, scores, *part, name=name)) for name, part in mapped.items()]
    return (
        np.concatenate([embeddings, *(part for part, _ in mapped.values())]),
        np.concatenate([scores, *others]),
        np.repeat([0, 1], [len(scores), sum(map(len, others))]),
    )


def compress_embeddings(
    embeddings: NDArray[np.float32],
    scores: NDArray[np.float64],
    *,
    config: CompressConfig,
    seed: int,
    unscored: Sequence[NDArray[np.float32]] = (),
    sets: NDArray[np.intp] | None = None,
) -> PrototypeHead:
    """Run PCA and binned K-means.

    Args:
        embeddings: (N, D) un-normalised embeddings of the training images.
        scores: (N,) human scores in [0, 1].
        config: Dimensions, bins, prototypes (fewer if there are fewer images) and initial temperature.
        seed: Seed of K-means.
        unscored: (U, D) further embeddings of each set for the PCA; they give no prototypes.
        sets: (N,) which kind of set each image is of, 0 or 1; each kind has bins, and so prototypes, of its own.

    Returns:
        The head before it is fitted: prototypes of length 1 with the mean human score of their members. The last
        component may be the direction that tells sets apart.

    Raises:
        ValueError: Shapes or ranges do not fit, or there are more occupied bins than prototypes.
    """
    if embeddings.ndim != 2 or scores.shape != (len(embeddings),):
        raise ValueError(f"expected (N, D) embeddings and (N,) scores, got {embeddings.shape} and {scores.shape}")
    if not (np.isfinite(embeddings).all() and np.isfinite(scores).all()):
        raise ValueError("the embeddings or scores hold NaN or infinite values")
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"expected scores in [0, 1], got {scores.min():.4g} to {scores.max():.4g}")
    values = embeddings.astype(np.float64)
    mean, scale, components = _principal_components(
        np.concatenate([values, *(part.astype(np.float64) for part in unscored)]), config.pca_dim
    )
    kinds = np.zeros(len(scores), dtype=np.intp) if sets is None else sets
    count = len(np.unique(kinds))
    if config.set_scale and count > 1:
        components = np.vstack([components, config.set_scale * _set_direction((values - mean) / scale, kinds)])
    projected = (values - mean) / scale @ components.T
    projected /= np.linalg.norm(projected, axis=1, keepdims=True).clip(1e-12)
    each = max(1, config.bins // count)
    bins = np.minimum((scores * each).astype(int), each - 1) + each * kinds
    members = [np.flatnonzero(bins == index) for index in np.unique(bins)]
    centroids, centroid_scores = _cluster_bins(projected, scores, members, config.prototypes, seed)
    head = {"mean": mean, "scale": scale, "components": components, "prototypes": centroids, "scores": centroid_scores}
    state = {name: torch.from_numpy(values).float() for name, values in head.items()}
    return PrototypeHead.from_state({**state, "logit_scale": torch.tensor(1.0 / config.temperature)})


def domains_metadata(head: PrototypeHead, embeddings: Mapping[str, NDArray[np.float32]]) -> dict[str, str]:
    """`head.domain_coordinate` of each domain: the mean of the last coordinate of its images.

    Args:
        head: With the component that tells sets apart.
        embeddings: (N, D) of images of each domain, by its name; may be empty.

    Returns:
        The metadata `domains` of a model file, JSON; nothing without any domain.
    """
    with torch.no_grad():
        means = {
            name: compress(torch.from_numpy(each), head.mean, head.scale, head.components[-1:]).mean().item()
            for name, each in embeddings.items()
        }
    return {"domains": json.dumps({name: round(mean, 4) for name, mean in means.items()})} if means else {}


def _principal_components(
    values: NDArray[np.float64], pca_dim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(D,) mean, (D,) scale and (P, D) components of (N, D) values."""
    from sklearn.decomposition import PCA

    width = values.shape[1]
    if pca_dim == 0:
        return np.zeros(width), np.ones(width), np.eye(width)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale < 1e-10] = 1.0
    pca = PCA(n_components=min(pca_dim, *values.shape), svd_solver="full").fit((values - mean) / scale)
    return mean, scale, pca.components_


def _set_direction(standardised: NDArray[np.float64], sets: NDArray[np.intp]) -> NDArray[np.float64]:
    """(D,) direction that tells the sets apart, by logistic regression; the values along it have unit variance."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000).fit(standardised, sets)
    direction: NDArray[np.float64] = regression.coef_[0]
    return direction / float((standardised @ direction).std())


def _cluster_bins(
    points: NDArray[np.float64],
    scores: NDArray[np.float64],
    members: list[NDArray[np.intp]],
    prototypes: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if len(members) > prototypes:
        raise ValueError(
            f"{len(members)} score bins hold images, more than the {prototypes} prototypes: use fewer bins or more "
            "prototypes"
        )
    labels = [np.zeros(len(group), dtype=int) for group in members]
    distinct = [len(np.unique(points[group], axis=0)) for group in members]
    if len(members) == 1:
        labels[0] = _kmeans(points[members[0]], min(prototypes, distinct[0]), seed)
    inertia = [_inertia(points[group], label) for group, label in zip(members, labels, strict=True)]
    for _ in range(prototypes - sum(int(label.max()) + 1 for label in labels)):
        open_bins = [i for i in range(len(members)) if labels[i].max() + 1 < distinct[i]]
        if not open_bins:
            break
        worst = max(open_bins, key=lambda i: inertia[i])
        labels[worst] = _kmeans(points[members[worst]], int(labels[worst].max()) + 2, seed)
        inertia[worst] = _inertia(points[members[worst]], labels[worst])
    centroids, centroid_scores = [], []
    for group, label in zip(members, labels, strict=True):
        for cluster in range(label.max() + 1):
            inside = group[label == cluster]
            centre = points[inside].mean(axis=0)
            length = np.linalg.norm(centre)
            # Members that cancel out have no common direction: one of them represents them.
            centroids.append(centre / length if length > 1e-9 else points[inside[0]])
            centroid_scores.append(scores[inside].mean())
    return np.stack(centroids), np.asarray(centroid_scores)


def _kmeans(points: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.intp]:
    from sklearn.cluster import KMeans

    labels = KMeans(clusters, n_init=4, random_state=seed).fit(points).labels_
    return np.unique(labels, return_inverse=True)[1]  # numbered 0.. without gaps


def _inertia(points: NDArray[np.float64], labels: NDArray[np.intp]) -> float:
    return sum(
        float(((points[labels == k] - points[labels == k].mean(axis=0)) ** 2).sum()) for k in range(labels.max() + 1)
    )
