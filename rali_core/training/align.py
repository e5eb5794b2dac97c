"""Stage 2, align: the encoder learns to agree with descriptions of its images' quality.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369), section 4.1: symmetric InfoNCE between the embeddings of images and
of their descriptions; several descriptions of each image ("seed augmentation"). Images of all data sets are in every
batch (RACT, the paper's appendix). Differences: the text encoder is frozen and may be of another family, so a linear
projection, which is discarded afterwards, maps from the one space to the other; the first blocks of the image
encoder may be frozen; the large batch comes from gradient caching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..devices import device_of
from ..model import RaliModel
from .config import AlignConfig
from .losses import backward_in_chunks, info_nce, retrieval_recall
from .optimise import freeze_blocks, make_optimiser, optimise
from .token_cache import drop_patches, embed_images, encode

RECALL_AT = (1, 5, 10)
LARGEST_SCALE = 100.0
"""Upper limit of the inverse temperature, as in CLIP."""


@dataclass(frozen=True)
class DescribedImages:
    """Images of one set with their embedded descriptions.

    Attributes:
        images: N of (P, W) float16 tokens after the frozen blocks.
        texts: (T, E) float32 embeddings of the descriptions.
        text_images: (T,) index of the image that each of them describes.
    """

    images: Sequence[NDArray[np.float16]]
    texts: Tensor
    text_images: NDArray[np.int64]


class TextProjection(nn.Module):
    """Projects the image embedding to the text encoder's space, with a learned temperature; used in training only.

    Args:
        embed_dim: Dimension of the image embedding.
        text_dim: Dimension of the text embedding.
    """

    def __init__(self, embed_dim: int, text_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, text_dim)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @property
    def logit_scale(self) -> Tensor:
        """Current inverse temperature, ()."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, embed_dim) to (B, text_dim)."""
        projected: Tensor = self.linear(embeddings.float())
        return projected


@dataclass(frozen=True)
class _Batch:
    images: NDArray[np.float16]
    image_ids: Tensor
    texts: Tensor
    text_ids: Tensor


class _Sampler:
    """Draws the batch of a step: images by a permutation of all sets together, and some texts of each."""

    def __init__(self, sets: Sequence[DescribedImages], config: AlignConfig, seed: int) -> None:
        self.sets, self.config, self.seed = sets, config, seed
        self.entries = [
            (number, image, np.flatnonzero(described.text_images == image))
            for number, described in enumerate(sets)
            for image in np.unique(described.text_images).tolist()
        ]
        if len(self.entries) < 2:
            raise ValueError(f"aligning needs at least two images with a description, got {len(self.entries)}")

    def __call__(self, step: int) -> _Batch:
        size = min(self.config.batch_size, len(self.entries))
        epoch, place = divmod(step, len(self.entries) // size)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.entries))
        random = np.random.default_rng([self.seed, 2, step])
        chosen = order[place * size :][:size].tolist()
        images, texts, text_ids = [], [], []
        for index in chosen:
            number, image, descriptions = self.entries[index]
            images.append(self.sets[number].images[image])
            drawn = random.permutation(descriptions)[: self.config.texts_per_image]
            texts.append(self.sets[number].texts[drawn])
            text_ids += [index] * len(drawn)
        kept = drop_patches(images, self.config.patch_dropout, random)
        return _Batch(kept, torch.tensor(chosen), torch.cat(texts), torch.tensor(text_ids))


def align_encoder(
    model: RaliModel,
    sets: Sequence[DescribedImages],
    validation: Sequence[DescribedImages],
    *,
    config: AlignConfig,
    frozen_blocks: int,
    folder: Path,
    inputs: object,
    seed: int,
    workers: int,
) -> list[dict[str, float]]:
    """Align the model's encoder in place; resumes from the folder's checkpoint.

    Args:
        model: Its encoder is trained, on its current device.
        sets: Described images. Images of different sets are negatives of each other, like those of one set.
        validation: Held-out images and texts for the recall.
        config: How to train.
        frozen_blocks: First blocks that are not trained, after which the tokens were taken.
        folder: For checkpoint and log.
        inputs: Everything else that the result depends on; see `optimise`.
        seed: Seed of every random choice.
        workers: Processes that draw batches.

    Returns:
        The log, with recall@1, 5 and 10 on the validation images.

    Raises:
        ValueError: Fewer than two described images, or the checkpoint has other inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = TextProjection(model.encoder_config.embed_dim, sets[0].texts.shape[1]).to(device_of(model))
    freeze_blocks(model.encoder, frozen_blocks)
    both = nn.ModuleDict({"encoder": model.encoder, "projection": projection})
    device = device_of(model)

    def embed(chunk: NDArray[np.float16]) -> Tensor:
        return encode(model, chunk, frozen_blocks, device)

    def backward(batch: _Batch) -> dict[str, Tensor]:
        ids, texts, text_ids = (part.to(device) for part in (batch.image_ids, batch.texts, batch.text_ids))

        def compare(embeddings: Tensor) -> Tensor:
            return info_nce(projection(embeddings), texts, ids, text_ids, projection.logit_scale)

        chunks = [batch.images[start:][: config.chunk_size] for start in range(0, len(batch.images), config.chunk_size)]
        loss = backward_in_chunks(embed, chunks, compare)
        return {"loss": loss, "temperature": 1 / projection.logit_scale.detach()}

    def validate(averaged: nn.Module) -> dict[str, float]:
        assert isinstance(averaged, nn.ModuleDict)
        model.eval()
        return measure_recall(model, averaged["projection"], validation, frozen_blocks)

    log = optimise(
        both, make_optimiser(model.encoder, projection, config), _Sampler(sets, config, seed), backward,
        config=config, folder=folder, inputs=inputs, workers=workers,
        validate=validate if validation else None, validate_every=config.validate_every,
    )  # fmt: skip
    model.encoder.requires_grad_(True).eval()
    return log


def measure_recall(
    model: RaliModel, projection: nn.Module, sets: Sequence[DescribedImages], frozen_blocks: int
) -> dict[str, float]:
    """Share of images with one of their descriptions among the 1, 5 and 10 nearest of all sets' descriptions."""
    embeddings = torch.cat([embed_images(model, described.images, frozen_blocks) for described in sets])
    with torch.no_grad():
        projected = projection(embeddings.to(device_of(projection))).cpu()
    offsets = np.cumsum([0, *(len(described.images) for described in sets)])
    text_ids = np.concatenate([d.text_images + offset for d, offset in zip(sets, offsets, strict=False)])
    texts = torch.cat([described.texts for described in sets])
    ids = torch.arange(len(embeddings)), torch.from_numpy(text_ids)
    return {f"recall@{k}": retrieval_recall(projected, texts, *ids, k=k) for k in RECALL_AT}
