"""Tuning the upper blocks of the image tower on human scores, before the head is made.

This is what stands in for RALI's stage 1 (contrastive alignment with written descriptions) until that is there: the
last blocks and a linear head are trained on smooth L1, a PLCC term, and an ordering term on synthetic distortions of
known level. The lower blocks are frozen and their tokens cached (`tokens.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .backbones import Backbone
from .evaluate import Agreement, Report, measure_agreement
from .precision import training_autocast
from .tokens import UpperBlocks, View, iterate_embeddings

SMOOTH_L1_BETA = 0.1
"""Error from which on the loss grows linearly, in units of the score."""
ORDER_MARGIN_PER_LEVEL = 0.03
"""How much lower each stronger distortion level should score."""


@dataclass(frozen=True)
class TuneSettings:
    """Settings of the tuning.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step, distorted views not counted.
        learning_rate: Peak learning rate of the last block; each earlier one gets `layer_decay` of the next.
        layer_decay: Factor per block, in (0, 1].
        head_learning_rate: Peak learning rate of the linear head.
        weight_decay: AdamW's weight decay, for matrices.
        plcc_weight: Weight of the PLCC term, 1 - PLCC.
        order_weight: Weight of the ordering term.
        ordered_per_batch: Images per step whose distorted views join the batch, two each.
        seed: Seed of order and choice of views.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 6e-4
    layer_decay: float = 0.8
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.05
    plcc_weight: float = 0.5
    order_weight: float = 1.0
    ordered_per_batch: int = 5
    seed: int = 0


def token_key(backbone: Backbone, blocks: int) -> str:
    """Identifies what cached tokens depend on besides the views."""
    return f"{backbone.source['sha256']}-{backbone.preprocess.image_size}-{blocks}"


def plcc_loss(predicted: Tensor, human: Tensor) -> Tensor:
    """1 - Pearson's correlation over the batch, 0 (best) to 2; both (B,)."""
    x, y = predicted - predicted.mean(), human - human.mean()
    loss: Tensor = 1 - (x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-8)
    return loss


def order_loss(scores: Tensor, levels: Tensor) -> Tensor:
    """Hinge on pairs of the same image: the stronger distortion must score lower, by a margin per level.

    Args:
        scores: (G, 3) predicted scores of the whole image, the weak and the strong distortion.
        levels: (G, 3) their levels, 0 for the undistorted image.

    Returns:
        () mean over the three pairs of each group.
    """
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    better, worse = scores[:, pairs[:, 0]], scores[:, pairs[:, 1]]
    margin = ORDER_MARGIN_PER_LEVEL * (levels[:, pairs[:, 1]] - levels[:, pairs[:, 0]])
    return functional.relu(margin - (better - worse)).mean()


class _Regressor(nn.Module):
    def __init__(self, upper: UpperBlocks, embed_dim: int, bias: float) -> None:
        super().__init__()
        self.upper = upper
        self.linear = nn.Linear(embed_dim, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.upper(tokens)).float().squeeze(-1)
        return scores


def tune_upper_blocks(
    upper: UpperBlocks,
    tokens: NDArray[np.float16],
    views: list[View],
    scores: NDArray[np.float64],
    *,
    validation: tuple[NDArray[np.float16], NDArray[np.float64]],
    settings: TuneSettings,
    checkpoint: Path,
    report: Report = print,
) -> None:
    """Tune the blocks in place; resumes from `checkpoint` where there is one.

    Args:
        upper: The blocks to tune.
        tokens: (V, tokens, width) cached output of the frozen blocks for every view.
        views: The V views.
        scores: (N,) human scores of the N images that the views show, in [0, 1].
        validation: Cached tokens and human scores of the validation images.
        settings: How to train.
        checkpoint: File for the state after each epoch; a state of other settings is refused.
        report: Called with a line of text now and then.

    Raises:
        ValueError: `checkpoint` belongs to a run with other settings.
    """
    by_kind = _index_views(views)
    width = tokens.shape[-1]
    model = _Regressor(upper, width, float(scores.mean()))
    optimizer = _build_optimizer(model, settings)
    steps_per_epoch = len(scores) // settings.batch_size or 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=settings.epochs * steps_per_epoch,
        pct_start=0.08,
        cycle_momentum=False,
    )
    signature = f"{settings} {tokens.shape}"
    first_epoch = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["signature"] != signature:
            raise ValueError(f"{checkpoint} belongs to a run with other settings: delete it, or use another folder")
        for part, name in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[name])
        first_epoch = state["epoch"]
        report(f"tune: going on after epoch {first_epoch}")
    targets = torch.from_numpy(scores).float()
    for epoch in range(first_epoch, settings.epochs):
        random = np.random.default_rng([settings.seed, epoch])
        order = random.permutation(len(scores))
        totals = np.zeros(3)
        model.train()
        for step in range(steps_per_epoch):
            images = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            losses = _step(model, tokens, by_kind, images, targets, views, settings.ordered_per_batch, random)
            loss = losses[0] + settings.plcc_weight * losses[1] + settings.order_weight * losses[2]
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            totals += [float(value.detach()) for value in losses]
            if (step + 1) % 50 == 0:
                l1, plcc, order_term = totals / (step + 1)
                report(
                    f"tune epoch {epoch + 1} step {step + 1}/{steps_per_epoch}: smooth L1 {l1:.5f}, "
                    f"1 - PLCC {plcc:.4f}, order {order_term:.4f}"
                )
        agreement = _validate(model, validation)
        report(
            f"tune epoch {epoch + 1}/{settings.epochs}: validation SRCC {agreement.srcc:.4f} "
            f"PLCC {agreement.plcc:.4f} MAE {agreement.mae:.4f}"
        )
        state = {
            "signature": signature,
            "epoch": epoch + 1,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        temporary = checkpoint.with_suffix(".partial")
        torch.save(state, temporary)
        temporary.replace(checkpoint)
    upper.eval()


def _index_views(views: list[View]) -> dict[str, dict[int, int]]:
    index: dict[str, dict[int, int]] = {kind: {} for kind in ("whole", "mirrored", "crop", "weak", "strong")}
    for position, view in enumerate(views):
        index[view.kind][view.image] = position
    return index


def _step(
    model: _Regressor,
    tokens: NDArray[np.float16],
    by_kind: dict[str, dict[int, int]],
    images: NDArray[np.int64],
    targets: Tensor,
    views: list[View],
    ordered_per_batch: int,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    grouped = [image for image in images.tolist() if image in by_kind["weak"]][:ordered_per_batch]
    chosen = []
    for image in images.tolist():
        # The ordering term compares with the whole picture, so that only the distortion differs.
        kind = "whole" if image in grouped else ("whole", "mirrored", "crop")[int(random.integers(3))]
        chosen.append(by_kind[kind][image])
    extra = [by_kind[kind][image] for image in grouped for kind in ("weak", "strong")]
    batch = torch.from_numpy(np.stack([tokens[index] for index in chosen + extra])).float()
    with training_autocast():
        predicted = model(batch)
    labelled, human = predicted[: len(chosen)], targets[torch.from_numpy(images)]
    l1 = functional.smooth_l1_loss(labelled, human, beta=SMOOTH_L1_BETA)
    plcc = plcc_loss(labelled, human) if len(human) > 2 else l1.new_zeros(())
    if not grouped:
        return l1, plcc, l1.new_zeros(())
    positions = [position for position, image in enumerate(images.tolist()) if image in grouped]
    groups = torch.cat([labelled[positions].unsqueeze(1), predicted[len(chosen) :].view(-1, 2)], dim=1)
    levels = torch.tensor(
        [[0] + [views[by_kind[kind][image]].level for kind in ("weak", "strong")] for image in grouped]
    )
    return l1, plcc, order_loss(groups, levels)


def _validate(model: _Regressor, validation: tuple[NDArray[np.float16], NDArray[np.float64]]) -> Agreement:
    tokens, scores = validation
    model.eval()
    with torch.inference_mode():
        parts = [model.linear(batch) for batch in iterate_embeddings(model.upper, tokens, np.arange(len(tokens)))]
    return measure_agreement(torch.cat(parts).squeeze(-1).numpy(), scores)


def _build_optimizer(model: _Regressor, settings: TuneSettings) -> torch.optim.AdamW:
    """Lower learning rates for earlier blocks, weight decay for matrices only."""
    depth, first = len(model.upper.blocks), model.upper.first  # the slice of the tower keeps its blocks' own numbers
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("linear."):
            rate = settings.head_learning_rate
        elif name.startswith("upper.blocks."):
            rate = settings.learning_rate * settings.layer_decay ** (depth - 1 - int(name.split(".")[2]) + first)
        else:
            rate = settings.learning_rate
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]
    )
