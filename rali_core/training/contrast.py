"""The contrastive loss of stage 1, and two ways to a large batch on a small machine.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369), section 4.1: symmetric InfoNCE between an image's embedding and that
of its description, as CLIP (Radford et al. 2021). An image may have several descriptions ("seed augmentation"): all of
them count as its positives, in the form of Khosla et al. 2020 (supervised contrastive learning, "L_out"), which for
one description each is CLIP's loss exactly.

A larger batch than memory allows: the memory queue of He et al. 2020 (MoCo) gives more negatives that are a few steps
old; gradient caching (Gao et al. 2021) gives the exact gradient of the large batch for one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def info_nce(
    images: Tensor,
    texts: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    logit_scale: Tensor | float,
    *,
    queued_images: tuple[Tensor, Tensor] | None = None,
    queued_texts: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Symmetric InfoNCE with any number of positives.

    Args:
        images: (B, E) image embeddings of any length.
        texts: (T, E) text embeddings of any length.
        image_ids: (B,) integer id of each image.
        text_ids: (T,) id of the image that each text describes.
        logit_scale: Inverse temperature.
        queued_images: (Q, E) embeddings and (Q,) ids of further images, compared with but not anchors themselves.
        queued_texts: (R, E) embeddings and (R,) ids of further texts.

    Returns:
        () half the mean over images plus half the mean over texts. An anchor without a positive does not count.

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
    all_images, all_image_ids = _join(images, image_ids, queued_images)
    all_texts, all_text_ids = _join(texts, text_ids, queued_texts)
    images, texts = functional.normalize(images, dim=-1), functional.normalize(texts, dim=-1)
    from_images = _one_way(images, all_texts, image_ids, all_text_ids, logit_scale)
    from_texts = _one_way(texts, all_images, text_ids, all_image_ids, logit_scale)
    return (from_images + from_texts) / 2


def _join(embeddings: Tensor, ids: Tensor, queued: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if queued is not None:
        embeddings, ids = torch.cat([embeddings, queued[0]]), torch.cat([ids, queued[1]])
    return functional.normalize(embeddings, dim=-1), ids


def _one_way(
    anchors: Tensor, others: Tensor, anchor_ids: Tensor, other_ids: Tensor, logit_scale: Tensor | float
) -> Tensor:
    log_probability = functional.log_softmax(logit_scale * anchors @ others.T, dim=-1)
    positive = (anchor_ids[:, None] == other_ids[None, :]).to(log_probability.dtype)
    count = positive.sum(dim=-1)
    per_anchor = -(log_probability * positive).sum(dim=-1) / count.clamp_min(1)
    return per_anchor.sum() / (count > 0).sum().clamp_min(1)


class EmbeddingQueue:
    """The last embeddings with their ids, first in, first out.

    Args:
        size: Number of embeddings to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._embeddings: Tensor | None = None
        self._ids: Tensor | None = None

    @property
    def content(self) -> tuple[Tensor, Tensor] | None:
        """(Q, E) embeddings and (Q,) ids, Q <= size; None while it is empty."""
        return None if self._embeddings is None or self._ids is None else (self._embeddings, self._ids)

    def push(self, embeddings: Tensor, ids: Tensor) -> None:
        """Append detached copies of (B, E) embeddings and (B,) ids; the oldest drop out."""
        embeddings, ids = embeddings.detach().clone(), ids.detach().clone()
        if self._embeddings is not None and self._ids is not None:
            embeddings, ids = torch.cat([self._embeddings, embeddings]), torch.cat([self._ids, ids])
        self._embeddings, self._ids = embeddings[-self.size :], ids[-self.size :]


def backward_in_chunks(
    encode: Callable[[Tensor], Tensor],
    chunks: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
) -> Tensor:
    """Gradients of a loss over a large batch with the memory of one chunk: gradient caching.

    Args:
        encode: Encoder from a chunk of inputs to (n, E) embeddings; must be deterministic (no dropout), for it runs
            twice.
        chunks: The batch in pieces; a single one is run once, the plain way.
        loss: From all (B, E) embeddings to ().

    Returns:
        () the loss, detached. Gradients are accumulated in the encoder's parameters, and in whatever else `loss`
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


def retrieval_recall(images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor, *, k: int) -> float:
    """Share of images with a description of their own among the k texts nearest to them.

    Args:
        images: (B, E) image embeddings.
        texts: (T, E) text embeddings.
        image_ids: (B,) ids.
        text_ids: (T,) ids.
        k: How many texts are looked at; at most T count.
    """
    similar = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    nearest = similar.topk(min(k, len(texts)), dim=-1).indices
    return float((text_ids[nearest] == image_ids[:, None]).any(dim=-1).float().mean())


class TextProjection(nn.Module):
    """From the image tower's embedding to the text tower's space; used in training only.

    Args:
        embed_dim: Dimension of the image embedding.
        text_dim: Dimension of the text embedding.
        logit_scale: Initial inverse temperature; CLIP's 1 / 0.07 unless given. It is learned, up to 100 as in CLIP.
    """

    def __init__(self, embed_dim: int, text_dim: int, logit_scale: float = 1 / 0.07) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, text_dim)
        self.log_scale = nn.Parameter(torch.tensor(logit_scale).log())

    @property
    def logit_scale(self) -> Tensor:
        """Current inverse temperature, ()."""
        return self.log_scale.exp().clamp(max=100.0)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, embed_dim) to (B, text_dim)."""
        projected: Tensor = self.linear(embeddings.float())
        return projected
