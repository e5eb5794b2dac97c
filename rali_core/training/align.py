"""Stage 1 of RALI: the image tower learns to agree with what was written about the quality of its pictures.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369), section 4.1: symmetric InfoNCE between the embeddings of images and
of their descriptions; several descriptions of each image ("seed augmentation"). Differences: the text tower is frozen
and may be of another family than the image tower, so a linear projection, which is thrown away afterwards, leads from
the one space to the other; the lower blocks of the image tower are frozen and their output is cached (`tokens.py`).
The large batch comes from gradient caching, with a memory queue of further negatives if wanted (`contrast.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..devices import device_of, training_autocast
from .contrast import EmbeddingQueue, TextProjection, backward_in_chunks, info_nce, retrieval_recall
from .curves import Panel, draw_curves
from .evaluate import Report
from .tokens import UpperBlocks, iterate_embeddings

RECALL_AT = (1, 5, 10)
LARGEST_GRADIENT = 1.0
"""Norm that the gradient is clipped to."""


@dataclass(frozen=True)
class AlignSettings:
    """Settings of the alignment.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images per step; the loss compares all of them with all of their descriptions.
        chunk_size: Images that go through the tower at a time: what has to fit into memory.
        texts_per_image: Descriptions that are drawn for each image in each step; an image with fewer gives all it has.
        queue_size: Embeddings of past steps that are compared with as well, images and texts each; 0 for none.
        learning_rate: Peak learning rate of the last block; each earlier one gets `layer_decay` of the next.
        layer_decay: Factor per block, in (0, 1].
        projection_learning_rate: Peak learning rate of the projection and of the temperature.
        weight_decay: AdamW's weight decay, for matrices.
        warmup_steps: Steps of linear warm-up; a cosine to 0 follows.
        mixed_precision: Run the blocks in bfloat16 where the processor has it.
        validate_every: Steps between two looks at the validation images.
        checkpoint_every: Steps between two checkpoints.
        seed: Seed of every random choice.
    """

    steps: int = 400
    batch_size: int = 128
    chunk_size: int = 32
    texts_per_image: int = 2
    queue_size: int = 0
    learning_rate: float = 1e-4
    layer_decay: float = 0.8
    projection_learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 30
    mixed_precision: bool = True
    validate_every: int = 50
    checkpoint_every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "chunk_size", "texts_per_image", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: an image is compared with the others of its batch")


@dataclass(frozen=True)
class DescribedViews:
    """Cached views of the images of one set, and their embedded descriptions.

    Attributes:
        tokens: (V, tokens, width) float16 output of the frozen blocks.
        view_images: (V,) which image each view shows.
        texts: (T, E) float32 embeddings of the descriptions.
        text_images: (T,) which image each of them describes.
    """

    tokens: NDArray[np.float16]
    view_images: NDArray[np.int64]
    texts: Tensor
    text_images: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.view_images) or len(self.texts) != len(self.text_images):
            raise ValueError(
                f"{len(self.tokens)} views with {len(self.view_images)} images, {len(self.texts)} texts with "
                f"{len(self.text_images)} images"
            )


Validate = Callable[[UpperBlocks, TextProjection], dict[str, float]]
"""Measures the blocks as they are; what it returns goes into the log."""


class _Sampler:
    """Draws batches from several sets: images by a permutation of all of them, a view and some texts of each."""

    def __init__(self, sets: Sequence[DescribedViews], settings: AlignSettings) -> None:
        self.sets, self.settings = sets, settings
        self.texts = torch.cat([described.texts for described in sets])
        self.images: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
        offset = 0
        for number, described in enumerate(sets):
            for image in np.intersect1d(described.view_images, described.text_images).tolist():
                views = np.flatnonzero(described.view_images == image)
                self.images.append((number, views, offset + np.flatnonzero(described.text_images == image)))
            offset += len(described.texts)
        if len(self.images) < 2:
            raise ValueError(f"aligning needs at least two images with a description, got {len(self.images)}")

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, tokens, width) float16 tokens, (B,) image ids, (T, E) texts and (T,) their image ids."""
        settings = self.settings
        batch = min(settings.batch_size, len(self.images))
        per_epoch = len(self.images) // batch
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([settings.seed, 1, epoch]).permutation(len(self.images))
        random = np.random.default_rng([settings.seed, 2, step])
        chosen = order[place * batch :][:batch].tolist()
        tokens, texts, text_ids = [], [], []
        for index in chosen:
            number, views, descriptions = self.images[index]
            tokens.append(self.sets[number].tokens[views[random.integers(len(views))]])
            drawn = random.permutation(descriptions)[: settings.texts_per_image]
            texts.append(drawn)
            text_ids += [index] * len(drawn)
        stacked = torch.from_numpy(np.stack(tokens))
        return stacked, torch.tensor(chosen), self.texts[np.concatenate(texts)], torch.tensor(text_ids)


def align(
    upper: UpperBlocks,
    projection: TextProjection,
    sets: Sequence[DescribedViews],
    *,
    settings: AlignSettings,
    folder: Path,
    validate: Validate | None = None,
    report: Report = print,
) -> list[dict[str, float]]:
    """Tune blocks and projection in place, where they are; goes on from the folder's checkpoint if there is one.

    Args:
        upper: The blocks to tune.
        projection: From the tower's embedding to the text tower's space.
        sets: What is aligned; images without a description are left out. Images of different sets are negatives of
            each other as those of one set are.
        settings: How to tune.
        folder: For `checkpoint.pt`, the log `log.jsonl` and the plots `curves.png`.
        validate: Called before the first step, after every `settings.validate_every` steps and after the last one.
        report: Called with lines of text.

    Returns:
        The log, as in `log.jsonl`: one entry per step with `step` (counted from 1), `loss`, `learning_rate` and
        `temperature`, and what `validate` returned where it was called; what it returned at first stands alone, as
        step 0. An interrupted and resumed run gives the log of an uninterrupted one.

    Raises:
        ValueError: The checkpoint belongs to a run with other settings, or there are less than two described images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sampler = _Sampler(sets, settings)
    model = nn.ModuleDict({"upper": upper, "projection": projection}).requires_grad_(True)
    optimizer = build_optimizer(model, upper, settings)
    peaks = [group["lr"] for group in optimizer.param_groups]
    queues = (EmbeddingQueue(settings.queue_size), EmbeddingQueue(settings.queue_size))
    kept = replace(settings, validate_every=1, checkpoint_every=1)  # these may change while it runs
    signature = f"{kept} {[tuple(described.tokens.shape) for described in sets]} {tuple(sampler.texts.shape)}"
    first, log = _restore(folder / "checkpoint.pt", signature, model, optimizer, queues)
    log_file = folder / "log.jsonl"
    if first:
        report(f"align: going on after step {first}")
    elif validate is not None:
        log.append({"step": 0, **_validate(validate, upper, projection, 0, settings, report)})
    log_file.write_text("".join(json.dumps(entry) + "\n" for entry in log))
    for step in range(first, settings.steps):
        factor = scale_learning_rate(step, settings)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        upper.train()
        loss = _step(upper, projection, sampler.draw(step), queues, settings)
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad()
        entry = {
            "step": step + 1,
            "loss": float(loss),
            "learning_rate": settings.learning_rate * factor,
            "temperature": 1 / float(projection.logit_scale.detach()),
        }
        last = step + 1 == settings.steps
        if validate is not None and ((step + 1) % settings.validate_every == 0 or last):
            entry |= _validate(validate, upper, projection, step + 1, settings, report)
        log.append(entry)
        with log_file.open("a") as handle:
            handle.write(json.dumps(entry) + "\n")
        if (step + 1) % 10 == 0 or last:
            recent = np.mean([past["loss"] for past in log[-10:] if "loss" in past])
            report(f"align {step + 1}/{settings.steps}: loss {recent:.4f}, tau {entry['temperature']:.4f}")
        if (step + 1) % settings.checkpoint_every == 0 or last:
            _store(folder / "checkpoint.pt", signature, model, optimizer, queues, step + 1, log)
    upper.eval()
    draw_curves(log, folder / "curves.png", alignment_panels(log))
    return log


def _step(
    upper: UpperBlocks,
    projection: TextProjection,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    queues: tuple[EmbeddingQueue, EmbeddingQueue],
    settings: AlignSettings,
) -> Tensor:
    device = device_of(upper)
    tokens, image_ids, texts, text_ids = (part.to(device) for part in batch)
    projected: list[Tensor] = []

    def encode(chunk: Tensor) -> Tensor:
        with training_autocast(device, wanted=settings.mixed_precision):
            embeddings: Tensor = upper(chunk.float())
        return embeddings.float()

    def compare(embeddings: Tensor) -> Tensor:
        projected.append(projection(embeddings))
        return info_nce(
            projected[0], texts, image_ids, text_ids, projection.logit_scale,
            queued_images=queues[0].content, queued_texts=queues[1].content,
        )  # fmt: skip

    loss = backward_in_chunks(encode, tokens.split(settings.chunk_size), compare)
    if settings.queue_size:
        queues[0].push(projected[0], image_ids)
        queues[1].push(texts, text_ids)
    return loss


def scale_learning_rate(step: int, settings: AlignSettings) -> float:
    """Factor of the peak learning rate in a step counted from 0: linear warm-up, then a cosine to 0."""
    warmup = min(settings.warmup_steps, settings.steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (settings.steps - warmup)))


def build_optimizer(model: nn.Module, upper: UpperBlocks, settings: AlignSettings) -> torch.optim.AdamW:
    """AdamW with lower learning rates for earlier blocks, and weight decay for matrices only."""
    depth = len(upper.blocks)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("projection."):
            rate = settings.projection_learning_rate
        elif name.startswith("upper.blocks."):  # the slice of the tower keeps its blocks' own numbers
            rate = settings.learning_rate * settings.layer_decay ** (depth - 1 - int(name.split(".")[2]) + upper.first)
        else:
            rate = settings.learning_rate
        groups.setdefault((rate, settings.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]
    )


def make_projection(embed_dim: int, text_dim: int, *, seed: int) -> TextProjection:
    """A projection with seeded random weights, whatever the state of the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TextProjection(embed_dim, text_dim)


def measure_recall(upper: UpperBlocks, projection: TextProjection, described: DescribedViews) -> dict[str, float]:
    """Share of images with a description of their own among the 1, 5 and 10 nearest of all descriptions.

    Args:
        upper: The blocks.
        projection: Into the text tower's space.
        described: One view and any number of descriptions of each image.
    """
    embeddings = torch.cat(
        [part.clone() for part in iterate_embeddings(upper, described.tokens, np.arange(len(described.tokens)))]
    )
    with torch.inference_mode():
        images = projection(embeddings.to(device_of(projection))).cpu()
        ids = torch.from_numpy(described.view_images), torch.from_numpy(described.text_images)
        return {f"recall@{k}": retrieval_recall(images, described.texts, *ids, k=k) for k in RECALL_AT}


def alignment_panels(log: Sequence[dict[str, float]]) -> list[Panel]:
    """Loss, retrieval recall and rank correlation: what `draw_curves` is to draw of a log of `align`."""
    names = {name for entry in log for name in entry}
    return [
        ("loss (InfoNCE)", ["loss"]),
        ("retrieval recall, validation", sorted((name for name in names if "recall@" in name), key=_by_number)),
        ("SRCC of the unfitted head, validation", sorted(name for name in names if "srcc" in name)),
    ]


def _by_number(name: str) -> tuple[str, int]:
    prefix, _, number = name.rpartition("@")
    return prefix, int(number)


def _validate(
    validate: Validate,
    upper: UpperBlocks,
    projection: TextProjection,
    step: int,
    settings: AlignSettings,
    report: Report,
) -> dict[str, float]:
    upper.eval()
    figures = validate(upper, projection)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    report(f"align {step}/{settings.steps}: validation {shown}")
    return figures


def _restore(
    path: Path,
    signature: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    queues: Sequence[EmbeddingQueue],
) -> tuple[int, list[dict[str, float]]]:
    if not path.is_file():
        return 0, []
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device_of(model))
    if state["signature"] != signature:
        raise ValueError(f"{path} belongs to a run with other settings: delete it, or use another folder")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for queue, content in zip(queues, state["queues"], strict=True):
        if content is not None:
            queue.push(*content)
    return state["step"], state["log"]


def _store(
    path: Path,
    signature: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    queues: Sequence[EmbeddingQueue],
    step: int,
    log: list[dict[str, float]],
) -> None:
    state = {
        "signature": signature,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "queues": [queue.content for queue in queues],
        "step": step,
        "log": log,
    }
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)
