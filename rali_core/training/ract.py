"""RALI across domains (RACT): several data sets, aligned by text, with one head.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369), appendix: reasoning models write descriptions for the images of all
data sets, and the image tower is tuned on all this text together; text alone generalises as well as text with scores.
So the scales of different sets never have to be compared. The paper leaves open what the head is made from. Our
reading:

- The tower goes on from stage 1 on the first ("reference") set, with the texts of all sets in every batch: pictures of
  different sets are each other's negatives, which puts them into one space.
- The PCA is made of the embeddings of all sets; it needs no scores.
- Prototypes and their scores come from the reference set alone, whose scale is the model's.
- The other sets' human scores are left alone, or, if wanted, enter the fitting as a correlation within each set.

A training on one data set is the case without other sets: `compress_domains` and `fit_domains` are stages 2 and 3 for
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..head import PrototypeHead
from .align import DescribedViews, Validate, measure_recall
from .compress import CompressedHead, compress
from .config import CompressConfig, FitConfig
from .contrast import TextProjection
from .evaluate import Report, measure_agreement
from .fit import OrderedEmbeddings, build_head, fit_head
from .tokens import UpperBlocks, cache_embeddings, iterate_embeddings


@dataclass(frozen=True)
class Domain:
    """One data set.

    Attributes:
        name: Short name.
        training: Cached views of the N training images, the whole pictures first, and their descriptions.
        scores: (N,) human scores, [0, 1] on the set's own scale.
        validation: Cached whole pictures of the M validation images, and their descriptions.
        validation_scores: (M,) their human scores.
        fit_views: Positions in `training` of the views that the head is fitted on.
        key: Identifies the cached views.
    """

    name: str
    training: DescribedViews
    scores: NDArray[np.float64]
    validation: DescribedViews
    validation_scores: NDArray[np.float64]
    fit_views: NDArray[np.int64]
    key: str

    def embed(self, upper: UpperBlocks, folder: Path, *, report: Report) -> Tensor:
        """(V, D) embeddings of the views that the head is fitted on; they begin with the N whole pictures."""
        path = folder / f"{self.name}-embeddings.safetensors"
        return cache_embeddings(upper, self.training.tokens, self.fit_views, path, key=self.key, report=report)

    def embed_validation(self, upper: UpperBlocks) -> Tensor:
        """(M, D) embeddings of the validation images."""
        return embed_views(upper, self.validation.tokens, len(self.validation_scores))


def embed_views(upper: UpperBlocks, tokens: NDArray[np.float16], count: int) -> Tensor:
    """(count, D) embeddings of the first views."""
    return torch.cat([part.clone() for part in iterate_embeddings(upper, tokens, np.arange(count))])


def compress_domains(
    upper: UpperBlocks,
    domains: Sequence[Domain],
    *,
    config: CompressConfig,
    folder: Path,
    seed: int,
    report: Report = print,
) -> CompressedHead:
    """Stage 2: PCA of all sets, prototypes of the first.

    Args:
        upper: The aligned blocks.
        domains: The reference set, then the others.
        config: Settings.
        folder: For the embeddings.
        seed: Seed of K-means.
        report: Called with lines of text.
    """
    reference, *others = domains
    embeddings = reference.embed(upper, folder, report=report)[: len(reference.scores)]
    unscored = [domain.embed(upper, folder, report=report)[: len(domain.scores)].numpy() for domain in others]
    head = compress(
        embeddings.numpy(), reference.scores,
        pca_dim=config.pca_dim, bins=config.bins, prototypes=config.prototypes, temperature=config.temperature,
        seed=seed, unscored=np.concatenate(unscored) if unscored else None,
    )  # fmt: skip
    report(f"compress: {len(head.prototypes)} prototypes of dimension {head.prototypes.shape[1]}")
    return head


def fit_domains(
    upper: UpperBlocks,
    compressed: CompressedHead,
    domains: Sequence[Domain],
    *,
    config: FitConfig,
    others_weight: float = 0.0,
    ordered: OrderedEmbeddings | None = None,
    folder: Path,
    seed: int,
    report: Report = print,
) -> PrototypeHead:
    """Stage 3 on the first set; the others enter by the correlation within each, if at all.

    Args:
        upper: The aligned blocks.
        compressed: From `compress_domains`.
        domains: The reference set, then the others.
        config: Settings.
        others_weight: Weight of 1 - PLCC within each other set.
        ordered: Pictures at known levels of a distortion, for terms of the settings on them.
        folder: For the embeddings.
        seed: Seed of the order.
        report: Called with lines of text.
    """
    (embeddings, scores), *others = (
        (domain.embed(upper, folder, report=report), domain.scores[domain.training.view_images[domain.fit_views]])
        for domain in (domains if others_weight else domains[:1])
    )
    return fit_head(
        build_head(compressed), embeddings, torch.from_numpy(scores).float(),
        validation=(domains[0].embed_validation(upper), domains[0].validation_scores),
        **asdict(config), ordered=ordered,
        others=[(features, torch.from_numpy(values).float()) for features, values in others],
        others_weight=others_weight, seed=seed, report=report,
    )  # fmt: skip


def make_validation(
    domains: Sequence[Domain], *, config: CompressConfig, probe_images: int, images: int, seed: int
) -> Validate:
    """What alignment reports on the way: retrieval recall, and SRCC of a head that was compressed but not fitted.

    Args:
        domains: The reference set, whose training images the head is made from, then the others.
        config: Settings of that head.
        probe_images: How many training images it is made from.
        images: How many validation images of each set are looked at.
        seed: Seed of K-means.

    Returns:
        From blocks and projection to `recall@1`, ..., `srcc`; those of other sets have their name in front.
    """

    def validate(upper: UpperBlocks, projection: TextProjection) -> dict[str, float]:
        reference = domains[0]
        count = min(probe_images, len(reference.scores))
        embeddings = embed_views(upper, reference.training.tokens, count).numpy()
        head = build_head(
            compress(
                embeddings, reference.scores[:count],
                pca_dim=config.pca_dim, bins=config.bins, prototypes=config.prototypes,
                temperature=config.temperature, seed=seed,
            )
        )  # fmt: skip
        figures: dict[str, float] = {}
        for domain in domains:
            prefix = "" if domain is reference else f"{domain.name} "
            seen = first_images(domain.validation, images)
            recall = measure_recall(upper, projection, seen)
            figures |= {prefix + name: value for name, value in recall.items()}
            with torch.inference_mode():
                predicted = head(embed_views(upper, seen.tokens, len(seen.tokens))).numpy()
            figures[prefix + "srcc"] = measure_agreement(predicted, domain.validation_scores[:images]).srcc
        return figures

    return validate


def first_images(described: DescribedViews, count: int) -> DescribedViews:
    """The first images of a set with one view each."""
    kept = np.flatnonzero(described.text_images < count)
    return DescribedViews(
        described.tokens[:count], described.view_images[:count], described.texts[kept], described.text_images[kept]
    )


def measure_domains(
    upper: UpperBlocks, head: PrototypeHead, domains: Sequence[Domain]
) -> dict[str, dict[str, float | int | list[float]]]:
    """Agreement with the human scores of each set's validation images, by the set's name.

    The mean absolute error is left out for all but the first: their scales are not the model's.
    """
    figures = {}
    for domain in domains:
        with torch.inference_mode():
            predicted = head(domain.embed_validation(upper)).numpy()
        figures[domain.name] = measure_agreement(predicted, domain.validation_scores).to_dict()
        if domain is not domains[0]:
            del figures[domain.name]["mae"]
    return figures
