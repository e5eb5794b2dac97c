"""Loss terms: contrastive, correlation, ranking of distortions, consistency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .distortion_triplets import MILD_DISTORTIONS, DistortionTriplet

SMOOTH_L1_BETA = 0.1
"""Error from which on the loss grows linearly, in units of the score."""
MARGIN_PER_LEVEL = 0.03
"""How much lower each stronger distortion level should score."""
PRISTINE_FLOOR = 0.62
"""An undistorted pristine image should score at least this."""
DISTORTED_CEILING = (0.80, 0.10)
"""From level 3 on, a distorted image should score at most the first number minus the second times its level."""


def info_nce(images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE with any number of positives.

    Source: CLIP (Radford et al. 2021); an image may have several descriptions, all of which are its positives, in the
    form of Khosla et al. 2020 (supervised contrastive learning, "L_out"). With one each it is CLIP's loss exactly.

    Args:
        images: (B, E) image embeddings of any length.
        texts: (T, E) text embeddings of any length.
        image_ids: (B,) integer id of each image.
        text_ids: (T,) id of the image that each text describes.
        logit_scale: Inverse temperature.

    Returns:
        () half the mean over images plus half the mean over texts. An anchor without a positive is ignored.

    Raises:
        ValueError: Shapes do not fit.
    """
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(f"expected (B, E) and (T, E) embeddings, got {tuple(images.shape)} and {tuple(texts.shape)}")
    if image_ids.shape != images.shape[:1] or text_ids.shape != texts.shape[:1]:
        raise ValueError(
            f"expected one id per embedding, got {tuple(image_ids.shape)} and {tuple(text_ids.shape)} for "
            f"{len(images)} images and {len(texts)} texts"
        )
    logits = logit_scale * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    positive = (image_ids[:, None] == text_ids[None, :]).to(logits.dtype)
    return (_one_way(logits, positive) + _one_way(logits.T, positive.T)) / 2


def _one_way(logits: Tensor, positive: Tensor) -> Tensor:
    count = positive.sum(dim=-1)
    per_anchor = -(functional.log_softmax(logits, dim=-1) * positive).sum(dim=-1) / count.clamp_min(1)
    return per_anchor.sum() / (count > 0).sum().clamp_min(1)


def retrieval_recall(images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor, *, k: int) -> float:
    """Share of images with one of their descriptions among the k texts nearest to them.

    Args:
        images: (B, E) image embeddings.
        texts: (T, E) text embeddings.
        image_ids: (B,) ids.
        text_ids: (T,) ids.
        k: How many nearest texts count, at most T.
    """
    similar = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    nearest = similar.topk(min(k, len(texts)), dim=-1).indices
    return float((text_ids[nearest] == image_ids[:, None]).any(dim=-1).float().mean())


def backward_in_chunks(
    encode: Callable[[Any], Tensor], chunks: Sequence[Any], loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gradients of a loss over a large batch with the memory of one chunk: gradient caching (Gao et al. 2021).

    Args:
        encode: Function from a chunk of inputs to (n, E) embeddings. It runs twice, and must give the same.
        chunks: The batch in pieces; a single one is run once, without caching.
        loss: Function from all (B, E) embeddings to ().

    Returns:
        () the loss, detached. Gradients are accumulated in the encoder's parameters, and in everything else that `loss`
        uses, as `loss(encode(whole batch)).backward()` would.
    """

    if len(chunks) == 1:
        whole = loss(encode(chunks[0]))
        whole.backward()
        return whole.detach()
    with torch.no_grad():
        embeddings = torch.cat([encode(chunk) for chunk in chunks])
    embeddings.requires_grad_(True)
    value = loss(embeddings)
    value.backward()
    assert embeddings.grad is not None
    for chunk, gradient in zip(chunks, embeddings.grad.split([len(chunk) for chunk in chunks]), strict=True):
        torch.autograd.backward(encode(chunk), gradient)
    return value.detach()


def plcc_loss(predicted: Tensor, human: Tensor) -> Tensor:
    """1 - Pearson's correlation over the batch, 0 (best) to 2; both (B,). The scale of `human` does not matter."""
    x, y = predicted - predicted.mean(), human - human.mean()
    loss: Tensor = 1 - (x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-8)
    return loss


def distortion_ranking_loss(scores: Tensor, triplets: Sequence[DistortionTriplet]) -> tuple[Tensor, Tensor]:
    """The two terms on distortions of known level, which need no human scores.

    After Liu et al., "RankIQA", ICCV 2017.

    Args:
        scores: (G, 3) scores of the undistorted image, the mild and the severe distortion.
        triplets: The G triplets.

    Returns:
        () mean hinge on the three ordered pairs of each triplet, by a margin per level; () mean hinge of pristine
        images below `PRISTINE_FLOOR` plus that of severe distortions above `DISTORTED_CEILING`.
    """
    device = scores.device
    levels = torch.tensor([[0.0, triplet.mild, triplet.severe] for triplet in triplets], device=device)
    hardly_hurts = torch.tensor([triplet.distortion in MILD_DISTORTIONS for triplet in triplets], device=device)
    pristine = torch.tensor([triplet.pristine for triplet in triplets], device=device).float()
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    margin = MARGIN_PER_LEVEL * (levels[:, pairs[:, 1]] - levels[:, pairs[:, 0]])
    margin = torch.where(hardly_hurts[:, None], margin / 2, margin)
    order = functional.relu(margin - (scores[:, pairs[:, 0]] - scores[:, pairs[:, 1]])).mean()
    top, per_level = DISTORTED_CEILING
    severe = (levels >= 3) & ~hardly_hurts[:, None]
    above = (functional.relu(scores - (top - per_level * levels)) * severe).mean()
    return order, (pristine * functional.relu(PRISTINE_FLOOR - scores[:, 0])).mean() + above


def consistency_loss(scores: Tensor, copies: Tensor, *, squared: bool = False) -> Tensor:
    """Mean difference between the scores of images and of copies that should score the same.

    Args:
        scores: (B,) scores of the images.
        copies: (B,) scores of their copies.
        squared: The squared difference instead of the absolute one.
    """
    return functional.mse_loss(scores, copies) if squared else (scores - copies).abs().mean()
