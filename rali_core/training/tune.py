"""Stage 3, tune: the encoder learns human scores and the order of known distortions.

RALI's paper (Zhao et al., ICLR 2026, arXiv 2510.11369) tunes the head alone after the alignment. Here the encoder's
last blocks are tuned before the head is made, with a linear head that is discarded afterwards: smooth L1 and 1 - PLCC
on scores of the model's scale, within each set and over all of them, which makes kinds of images comparable; only
1 - PLCC, which is invariant to scale, within sets on their own scales. Without human scores: a ranking of known
distortions (after Liu et al., "RankIQA", ICCV 2017) and the same score for an image and for its mirror image, saved as
JPEG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..devices import device_of
from ..evaluation import measure_agreement
from ..model import RaliModel
from ..vision_transformer import ClipEncoder, DinoEncoder
from .config import ScoreRole, TuneConfig
from .distortion_triplets import DistortionTriplet
from .losses import SMOOTH_L1_BETA, consistency_loss, distortion_ranking_loss, plcc_loss
from .optimise import freeze_blocks, make_optimiser, optimise
from .token_cache import drop_patches, embed_images, encode, mirror_tokens

SMALLEST_SHARE = 4
"""Minimum images of each set per step: a correlation needs some."""


@dataclass(frozen=True)
class ScoredImages:
    """Images of one set with human scores.

    Attributes:
        name: The set's name.
        images: N of (T, W) float16 tokens after the frozen blocks.
        scores: (N,) in [0, 1]; those of a mapped set are mapped.
        role: How its scores are used.
        groups: The group of each image, such as its generator; every second step takes this set's images from one
            group, for the correlation within it. None without groups.
    """

    name: str
    images: Sequence[NDArray[np.float16]]
    scores: NDArray[np.float64]
    role: ScoreRole
    groups: NDArray[np.str_] | None = None


@dataclass(frozen=True)
class TripletImages:
    """Distortion triplets with their tokens.

    Attributes:
        triplets: G triplets.
        images: G of (3, T, W) float16, see `render_triplet`.
    """

    triplets: list[DistortionTriplet]
    images: Sequence[NDArray[np.float16]]


def share_batch(sizes: Sequence[int], batch_size: int) -> list[int]:
    """How many images of each set a step sees: in proportion to the cube root of the sizes, at least 4 of each.

    Args:
        sizes: Images of each set.
        batch_size: Images of all sets.
    """
    roots = np.cbrt(np.asarray(sizes, dtype=np.float64))
    return [
        min(size, max(SMALLEST_SHARE, round(float(root / roots.sum()) * batch_size)))
        for size, root in zip(sizes, roots, strict=True)
    ]


@dataclass(frozen=True)
class _Batch:
    """Tokens of B labelled images, set by set, then of G triplets, then of P pairs of an image and its copy."""

    images: NDArray[np.float16]
    scores: list[Tensor]
    triplets: list[DistortionTriplet]


class _Sampler:
    def __init__(
        self,
        sets: Sequence[ScoredImages],
        triplets: TripletImages | None,
        copies: Sequence[NDArray[np.float16]],
        mirrored: NDArray[np.int64],
        config: TuneConfig,
        seed: int,
    ) -> None:
        self.sets, self.triplets, self.copies, self.mirrored = sets, triplets, copies, mirrored
        self.config, self.seed = config, seed
        self.counts = share_batch([len(scored.images) for scored in sets], config.batch_size)
        self.pairs = min(config.consistency_images, len(copies))

    def __call__(self, step: int) -> _Batch:
        random = np.random.default_rng([self.seed, step])
        images, scores = [], []
        for number, (scored, count) in enumerate(zip(self.sets, self.counts, strict=True)):
            if scored.groups is not None and step % 2:
                chosen = _from_one_group(scored.groups, count, random)
            else:
                chosen = [self._nth(number, len(scored.images), step * count + place) for place in range(count)]
            images += [scored.images[index] for index in chosen]
            scores.append(torch.from_numpy(scored.scores[chosen]).float())
        triplets: list[DistortionTriplet] = []
        if self.triplets is not None:
            count = min(self.config.triplets_per_batch, len(self.triplets.triplets))
            for place in range(count):
                index = self._nth(-1, len(self.triplets.triplets), step * count + place)
                triplets.append(self.triplets.triplets[index])
                images += list(self.triplets.images[index])
        for place in range(self.pairs):
            image, copy = self.copies[self._nth(-2, len(self.copies), step * self.pairs + place)]
            images += [image, copy[self.mirrored]]
        return _Batch(drop_patches(images, self.config.patch_dropout, random, pairs=self.pairs), scores, triplets)

    def _nth(self, number: int, size: int, place: int) -> int:
        """The image at a position of an endless sequence of shuffled passes over a set."""
        epoch, index = divmod(place, size)
        return int(np.random.default_rng([self.seed, 7, number + 2, epoch]).permutation(size)[index])


def _from_one_group(groups: NDArray[np.str_], count: int, random: np.random.Generator) -> list[int]:
    """Indices of `count` random images of a random group; some twice if the group is smaller."""
    members = np.flatnonzero(groups == random.choice(np.unique(groups)))
    chosen: list[int] = random.choice(members, count, replace=len(members) < count).tolist()
    return chosen


class LinearHead(nn.Module):
    """The provisional head: a layer norm and a linear layer, initially constant."""

    def __init__(self, embed_dim: int, mean_score: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.linear = nn.Linear(embed_dim, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, mean_score)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, D) to (B,)."""
        return self.linear(self.norm(embeddings.float())).squeeze(-1)  # type: ignore[no-any-return]


def tune_encoder(
    model: RaliModel,
    sets: Sequence[ScoredImages],
    triplets: TripletImages | None,
    copies: Sequence[NDArray[np.float16]],
    validation: Sequence[ScoredImages],
    *,
    config: TuneConfig,
    frozen_blocks: int,
    folder: Path,
    inputs: object,
    seed: int,
    workers: int,
) -> list[dict[str, float]]:
    """Fine-tune the model's encoder in place; resumes from the folder's checkpoint.

    Args:
        model: Its encoder is trained, on its current device.
        sets: Labelled images; without sets whose scores are unused.
        triplets: Distortions of known level; None leaves out their terms.
        copies: P of (2, T, W) float16, tokens of images and of their copies that should have the same score.
        validation: Held-out images for validations with the provisional head.
        config: How to train.
        frozen_blocks: First blocks that are not trained, after which the tokens were taken.
        folder: For checkpoint and log.
        inputs: Everything else that the result depends on; see `optimise`.
        seed: Seed of every random choice.
        workers: Processes that draw batches.

    Returns:
        The log: the terms of the loss, and each validation set's SRCC and PLCC.

    Raises:
        ValueError: The checkpoint has other inputs, or the encoder cannot be trained.
    """
    device = device_of(model)
    mean = float(np.mean(np.concatenate([scored.scores for scored in sets if scored.role == "absolute"])))
    head = LinearHead(model.encoder_config.embed_dim, mean).to(device)
    freeze_blocks(model.encoder, frozen_blocks)
    both = nn.ModuleDict({"encoder": model.encoder, "head": head})
    mirrored = mirror_tokens(cast(ClipEncoder | DinoEncoder, model.encoder).shape)
    sampler = _Sampler(sets, triplets, copies, mirrored, config, seed)

    def backward(batch: _Batch) -> dict[str, Tensor]:
        predicted = head(encode(model, batch.images, frozen_blocks, device))
        loss, terms = _loss(predicted, batch, sets, sampler.counts, config)
        loss.backward()
        return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}

    def validate(averaged: nn.Module) -> dict[str, float]:
        assert isinstance(averaged, nn.ModuleDict)
        return validate_linear(model, averaged["encoder"], averaged["head"], validation, frozen_blocks)

    log = optimise(
        both, make_optimiser(model.encoder, head, config), sampler, backward,
        config=config, folder=folder, inputs=inputs, ema_decay=config.ema_decay, workers=workers,
        validate=validate if validation else None, validate_every=config.validate_every,
    )  # fmt: skip
    model.encoder.requires_grad_(True).eval()
    return log


def _loss(
    predicted: Tensor, batch: _Batch, sets: Sequence[ScoredImages], counts: list[int], config: TuneConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    ordered = 3 * len(batch.triplets)
    labelled, distorted, pairs = predicted.split([sum(counts), ordered, len(predicted) - sum(counts) - ordered])
    on_scale: list[tuple[Tensor, Tensor]] = []
    varied: list[tuple[Tensor, Tensor]] = []
    correlations: list[Tensor] = []
    weights: list[float] = []
    for scored, part, scores in zip(sets, labelled.split(counts), batch.scores, strict=True):
        human, common = scores.to(part.device), scored.role != "correlation"
        if common:
            on_scale.append((part, human))
        if len(part) > 2 and float(scores.max() - scores.min()) > 0:
            correlations.append(plcc_loss(part, human))
            weights.append(config.plcc_weight if common else config.correlation_weight)
            varied += [(part, human)] if common else []
    if len(varied) > 1:
        correlations.append(plcc_loss(*map(torch.cat, zip(*varied, strict=True))))
        weights.append(config.plcc_weight)
    parts, humans = zip(*on_scale, strict=True)
    terms = {"smooth L1": functional.smooth_l1_loss(torch.cat(parts), torch.cat(humans), beta=SMOOTH_L1_BETA)}
    loss = terms["smooth L1"]
    if correlations:
        terms["1 - PLCC"] = torch.stack(correlations).mean()
        loss = loss + sum(weight * term for weight, term in zip(weights, correlations, strict=True))
    if len(pairs):
        terms["consistency"] = consistency_loss(pairs[::2], pairs[1::2])
        loss = loss + config.consistency_weight * terms["consistency"]
    if batch.triplets:
        terms["ranking"], terms["range"] = distortion_ranking_loss(distorted.view(-1, 3), batch.triplets)
        loss = loss + config.ranking_weight * terms["ranking"] + config.range_weight * terms["range"]
    return loss, terms


def validate_linear(
    model: RaliModel, encoder: nn.Module, head: nn.Module, validation: Sequence[ScoredImages], frozen_blocks: int
) -> dict[str, float]:
    """SRCC and PLCC of an encoder with its provisional head on each held-out set."""
    figures: dict[str, float] = {}
    for scored in validation:
        embeddings = embed_images(model, scored.images, frozen_blocks, encoder=encoder)
        with torch.no_grad():
            predicted = head(embeddings.to(device_of(model))).cpu().numpy()
        agreement = measure_agreement(predicted, scored.scores)
        figures |= {f"SRCC {scored.name}": agreement.srcc, f"PLCC {scored.name}": agreement.plcc}
    return figures
