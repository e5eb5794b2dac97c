"""A new head for a tower that was tuned: stages 2 and 3 of RALI once more.

The prototypes of a head that is only tuned along with the tower stay near where the untuned tower had its embeddings.
On the bundled model a new head was worth more than any other step of its size; docs/training.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import device_of
from ..model import RaliModel
from .compress import compress
from .config import CompressConfig, FitConfig
from .evaluate import Report, measure_agreement
from .fit import OrderedEmbeddings, build_head, fit_head
from .joint import OrderedPictures, UnlabelledPictures, embed_pictures, predict_pictures, steady_copy


@dataclass(frozen=True)
class DomainPictures:
    """A further data set, on a scale of its own.

    Attributes:
        name: Short name.
        pixels: (N, H, H, 3) uint8 pictures that the head learns.
        scores: (N,) their human scores; only their correlation with the predicted ones is used.
        validation: (M, H, H, 3) uint8 pictures that are only reported on.
        validation_scores: (M,) their human scores.
    """

    name: str
    pixels: NDArray[np.uint8]
    scores: NDArray[np.float64]
    validation: NDArray[np.uint8]
    validation_scores: NDArray[np.float64]


def refit_head(
    model: RaliModel,
    pictures: NDArray[np.uint8],
    scores: NDArray[np.float64],
    *,
    validation: tuple[NDArray[np.uint8], NDArray[np.float64]],
    compressing: CompressConfig,
    fitting: FitConfig,
    ordered: OrderedPictures | None = None,
    unlabelled: UnlabelledPictures | None = None,
    unlabelled_weight: float = 1.0,
    domains: Sequence[DomainPictures] = (),
    domains_weight: float = 0.0,
    seed: int,
    report: Report = print,
) -> None:
    """Make PCA, prototypes, their scores and the temperature anew, in place; the tower stays as it is.

    Args:
        model: The model.
        pictures: (N, H, H, 3) uint8 labelled pictures.
        scores: (N,) their human scores in [0, 1].
        validation: Pictures and scores that are only reported on.
        compressing: Settings of stage 2.
        fitting: Settings of stage 3.
        ordered: Pictures for its terms on them.
        unlabelled: Pictures that stage 3 learns beside the labelled ones.
        unlabelled_weight: How much each of them counts in its regression beside a labelled picture. The tower has other
            embeddings of pictures that it has not learnt, or not as often: they tell more of what is to come.
        domains: Further data sets: the PCA is made of their embeddings too.
        domains_weight: Weight of the mean of 1 - PLCC over these sets in stage 3; 0 leaves their scores alone.
        seed: Seed of K-means and of the order.
        report: Called with lines of text.
    """
    embeddings = embed_pictures(model, pictures, report=report)
    held_out = embed_pictures(model, validation[0])
    theirs = [embed_pictures(model, domain.pixels, report=report) for domain in domains]
    compressed = compress(
        embeddings.numpy(), scores, **asdict(compressing), seed=seed,
        unscored=torch.cat(theirs).numpy() if theirs else None,
    )  # fmt: skip
    report(f"new head: {len(compressed.prototypes)} prototypes of dimension {compressed.prototypes.shape[1]}")
    known = None
    if fitting.uses_groups and ordered is not None and ordered.groups:
        flat = embed_pictures(model, ordered.pixels.reshape(-1, *ordered.pixels.shape[2:]))
        copies = np.stack([steady_copy(group[0]) for group in ordered.pixels]) if fitting.steady_weight else None
        known = OrderedEmbeddings(
            ordered.groups, flat.unflatten(0, (-1, 3)), None if copies is None else embed_pictures(model, copies)
        )
    targets = torch.from_numpy(scores).float()
    weights: Tensor | None = None
    if unlabelled is not None:
        parts = [embed_pictures(model, pixels, report=report) for pixels in unlabelled.pixels]
        if unlabelled_weight != 1:
            weights = torch.ones(len(targets) + len(unlabelled.scores))
            weights[len(targets) :] = unlabelled_weight
        embeddings = torch.cat([embeddings, *parts])
        targets = torch.cat([targets, torch.from_numpy(unlabelled.scores).float()])
    model.head = fit_head(
        build_head(compressed), embeddings, targets, validation=(held_out, validation[1]),
        **asdict(fitting), weights=weights, ordered=known,
        others=[(part, torch.from_numpy(domain.scores).float()) for part, domain in zip(theirs, domains, strict=True)],
        others_weight=domains_weight, seed=seed, report=report,
    ).to(device_of(model.encoder))  # fmt: skip
    for domain in domains:
        agreement = measure_agreement(predict_pictures(model, domain.validation), domain.validation_scores)
        report(f"{domain.name}: validation SRCC {agreement.srcc:.4f} PLCC {agreement.plcc:.4f}")
