"""Stage 5, fit: prototypes, their scores and the temperature are fine-tuned end to end on the human scores.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369), section 4.3: mean squared error; the PCA is not changed. Beyond the
paper: sets on their own scales count as a correlation within each, unscored distortions keep their order, and copies
that look the same get the same score.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..head import PrototypeHead
from .compress import Embedded
from .config import FitConfig
from .distortion_triplets import DistortionTriplet
from .losses import consistency_loss, distortion_ranking_loss, plcc_loss

logger = logging.getLogger("rali")

WEIGHT_DECAY = 1e-4
TRIPLETS_PER_STEP = 48
COPIES_PER_STEP = 64


@dataclass(frozen=True)
class TripletEmbeddings:
    """Embeddings of distortion triplets.

    Attributes:
        triplets: G triplets.
        embeddings: (G, 3, D): undistorted, mild, severe.
    """

    triplets: list[DistortionTriplet]
    embeddings: Tensor


def fit_head(
    head: PrototypeHead,
    absolute: Embedded,
    correlation: Sequence[Embedded],
    triplets: TripletEmbeddings | None,
    copies: Tensor | None,
    *,
    config: FitConfig,
    seed: int,
) -> PrototypeHead:
    """Fine-tune prototypes, scores and temperature in place.

    Args:
        head: From `compress_embeddings`.
        absolute: (N, D) embeddings and (N,) scores in [0, 1], which the head learns.
        correlation: The same of further sets, each on its own scale: only which image is better, and by how much,
            counts.
        triplets: For the ranking; None leaves it out.
        copies: (P, 2, D) embeddings of images and of their copies that should have the same score; None leaves them
            out.
        config: How to train.
        seed: Seed of the order.

    Returns:
        The same head, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings, human = _tensors(absolute)
    further = [_tensors(part) for part in correlation]
    head.components.requires_grad_(False)
    head.scale.requires_grad_(False)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = config.epochs * -(-len(human) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    head.train()
    for epoch in range(config.epochs):
        errors = []
        for index in torch.randperm(len(human), generator=generator).split(config.batch_size):
            error = functional.mse_loss(head(embeddings[index]), human[index])
            errors.append(float(error.detach()))
            loss = error + config.correlation_weight * _correlation(head, further, config.batch_size, generator)
            if triplets is not None:
                loss = loss + config.ranking_weight * _ranking(head, triplets, generator)
            if copies is not None:
                loss = loss + config.consistency_weight * _consistency(head, copies, generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                head.scores.clamp_(0.0, 1.0)
        logger.info(
            "fit %d/%d: MSE %.5f, temperature %.4f",
            epoch + 1, config.epochs, np.mean(errors), 1 / float(head.logit_scale.detach()),
        )  # fmt: skip
    return head.requires_grad_(True).eval()


def _tensors(embedded: Embedded) -> tuple[Tensor, Tensor]:
    embeddings, scores = embedded
    return torch.from_numpy(embeddings), torch.from_numpy(scores).float()


def _correlation(
    head: PrototypeHead, sets: Sequence[tuple[Tensor, Tensor]], batch_size: int, generator: torch.Generator
) -> Tensor | float:
    terms = []
    for embeddings, human in sets:
        index = torch.randperm(len(human), generator=generator)[:batch_size]
        terms.append(plcc_loss(head(embeddings[index]), human[index]))
    return torch.stack(terms).mean() if terms else 0.0


def _ranking(head: PrototypeHead, triplets: TripletEmbeddings, generator: torch.Generator) -> Tensor:
    index = torch.randperm(len(triplets.triplets), generator=generator)[:TRIPLETS_PER_STEP]
    scores = head(triplets.embeddings[index].flatten(0, 1)).view(-1, 3)
    return distortion_ranking_loss(scores, [triplets.triplets[number] for number in index.tolist()])[0]


def _consistency(head: PrototypeHead, copies: Tensor, generator: torch.Generator) -> Tensor:
    index = torch.randperm(len(copies), generator=generator)[:COPIES_PER_STEP]
    one, other = head(copies[index].flatten(0, 1)).view(-1, 2).unbind(1)
    return consistency_loss(one, other, squared=True)
