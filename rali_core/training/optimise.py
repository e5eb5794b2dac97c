"""The training loop: AdamW, layer-wise learning rates, warm-up and cosine, EMA, clipping, checkpoints, log and curves.

timm has the parts: `param_groups_layer_decay` (after BEiT, Bao et al., ICLR 2022), `CosineLRScheduler` and
`ModelEmaV3`. The random choices of a step are those of its batch, which depends on the seed and the number of the step
alone, so a resumed run gives the weights and the log of an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..files import atomic_write
from .token_cache import Computed

logger = logging.getLogger("rali")

GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm."""
LOG_EVERY = 10
"""Steps per line of the log, which holds their mean; checkpoints are written between two lines only."""
LOG_SETTINGS = ("validation_images", "validate_every")
"""Settings that change the log and not the result."""
CHECKPOINT_SECONDS = 60.0
"""Minimum seconds between two checkpoints."""

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class OptimiserConfig:
    """Settings of the optimiser.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images per step.
        learning_rate: Peak learning rate of the encoder's last layer.
        head_learning_rate: Peak learning rate of the provisional head, which is discarded afterwards.
        layer_decay: Factor on the learning rate from each block to the one before it, in (0, 1].
        weight_decay: AdamW's weight decay, for matrices.
        warmup_steps: Steps of linear warm-up; a cosine to 0 follows.
        schedule_steps: Steps of the cosine; more than `steps` stops the training before it reaches 0; 0 for `steps`.
    """

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    layer_decay: float = 0.8
    weight_decay: float = 0.05
    warmup_steps: int = 30
    schedule_steps: int = 0


def freeze_blocks(encoder: nn.Module, blocks: int) -> None:
    """Make an encoder's patch embedding and its first blocks untrainable.

    Raises:
        ValueError: There are not that many blocks.
    """
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(encoder, _group_matcher(encoder), reverse=True)
    depth = max(layers.values())  # 0 is the patch embedding, 1 the first block; the final norm goes with the last
    if not 0 <= blocks < depth:
        raise ValueError(f"frozen_blocks must lie in 0..{depth - 1} for this encoder of {depth} blocks, got {blocks}")
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(layers[name] > blocks)


def _group_matcher(encoder: Any) -> dict[str, Any]:
    if not hasattr(encoder, "group_matcher"):
        raise ValueError(
            "training needs a plain vision transformer (CLIP's, or DINOv2's without registers); "
            f"got {type(encoder).__name__}"
        )
    matcher: dict[str, Any] = encoder.group_matcher(coarse=False)
    return matcher


def make_optimiser(encoder: nn.Module, head: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over an encoder with layer-wise learning rates and a head with its own."""
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(encoder, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    for group in groups:
        group["lr"] = config.learning_rate * group["lr_scale"]
    groups.append({"params": list(head.parameters()), "lr": config.head_learning_rate, "weight_decay": 0.0})
    return torch.optim.AdamW(groups)


def _collate(item: Any) -> Any:
    """A batch as it was drawn."""
    return item


def optimise(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    draw: Callable[[int], Batch],
    backward: Callable[[Batch], dict[str, Tensor]],
    *,
    config: OptimiserConfig,
    folder: Path,
    inputs: object,
    ema_decay: float = 0.0,
    workers: int = 0,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
) -> list[dict[str, float]]:
    """Train a model in place; resumes from the folder's checkpoint, if there is one.

    Args:
        model: Everything that is trained; its EMA is validated, and is the result.
        optimiser: Optimiser of the model's parameters.
        draw: The batch of a step, counted from 0; must depend on the step alone. Runs in `workers` processes.
        backward: Computes the loss of a batch, accumulates the gradients and returns the values to log, as tensors of
            shape (). torch's generator is seeded by the step.
        config: Steps, warm-up and clipping.
        folder: For `checkpoint.pt` and `log.jsonl`.
        inputs: All else that the result depends on, as plain JSON types; a checkpoint with other inputs is refused.
        ema_decay: Decay of the exponential moving average; the average warms up. 0 keeps the last weights.
        workers: Processes that draw batches ahead; 0 draws in this one.
        validate: Function from a model in evaluation mode to figures.
        validate_every: Steps between two validations; there is always one after the last step.

    Returns:
        The log: `step` and the means of what `backward` returned over ten steps, and what `validate` returned.

    Raises:
        ValueError: The checkpoint was made with other inputs.
    """
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3

    folder.mkdir(parents=True, exist_ok=True)
    length = config.schedule_steps or config.steps
    schedule = CosineLRScheduler(
        optimiser, t_initial=length, lr_min=0.0, warmup_t=min(config.warmup_steps, length // 4), warmup_lr_init=0.0,
        t_in_epochs=False,
    )  # fmt: skip
    ema = ModelEmaV3(model, decay=ema_decay, use_warmup=True) if ema_decay else None
    settings = {name: value for name, value in asdict(config).items() if name not in LOG_SETTINGS}
    checkpoint = _Checkpoint(folder / "checkpoint.pt", {"inputs": inputs, "config": settings})
    first, log = checkpoint.restore(model, optimiser, ema)
    loader: DataLoader[Batch] = DataLoader(
        Computed(draw, config.steps), batch_size=None, sampler=range(first, config.steps), num_workers=workers,
        collate_fn=_collate,
    )  # fmt: skip
    recent: list[dict[str, Tensor]] = []
    written = time.monotonic()
    for step, batch in zip(range(first, config.steps), loader, strict=True):
        model.train()
        schedule.step_update(step + 1)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(step)  # for an encoder with dropout of its own
            recent.append(backward(batch))
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimiser.step()
        optimiser.zero_grad()
        if ema is not None:
            ema.update(model, step + 1)
        last = step + 1 == config.steps
        if (step + 1) % LOG_EVERY == 0 or last:
            entry: dict[str, float] = {"step": step + 1}
            entry |= {name: float(torch.stack([terms[name] for terms in recent]).mean()) for name in recent[0]}
            recent = []
            if validate is not None and (last or (validate_every and (step + 1) % validate_every == 0)):
                entry |= validate((model if ema is None else ema.module).eval())
            log.append(entry)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in entry.items() if name != "step")
            logger.info("%s %d/%d: %s", folder.name, step + 1, config.steps, shown)
            if last or time.monotonic() - written > CHECKPOINT_SECONDS:
                checkpoint.store(step + 1, log, model, optimiser, ema)
                written = time.monotonic()
    if ema is not None:
        model.load_state_dict(ema.module.state_dict())
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
    model.eval()
    return log


class _Checkpoint:
    """The state of a training in a file."""

    def __init__(self, path: Path, signature: dict[str, Any]) -> None:
        self.path, self.signature = path, json.dumps(signature, sort_keys=True, default=str)

    def restore(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, ema: nn.Module | None
    ) -> tuple[int, list[dict[str, float]]]:
        if not self.path.is_file():
            return 0, []
        state = torch.load(self.path, weights_only=True, map_location=next(model.parameters()).device)
        if state["signature"] != self.signature:
            raise ValueError(f"{self.path} belongs to a training with other inputs: delete it, or use another work_dir")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if ema is not None:
            ema.load_state_dict(state["ema"])
        logger.info("%s: resuming from step %d", self.path.parent.name, state["step"])
        return int(state["step"]), list(state["log"])

    def store(
        self,
        step: int,
        log: list[dict[str, float]],
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        ema: nn.Module | None,
    ) -> None:
        state = {
            "signature": self.signature, "step": step, "log": log, "model": model.state_dict(),
            "optimiser": optimiser.state_dict(), "ema": None if ema is None else ema.state_dict(),
        }  # fmt: skip
        with atomic_write(self.path) as temporary:
            torch.save(state, temporary)


def draw_curves(log: Sequence[dict[str, float]], path: str | Path) -> None:
    """Draw the logged values over the steps, as PNG: a panel per value.

    Args:
        log: An entry per line, each with `step` and some values by name.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for entry in log for name in entry if name != "step"))
    rows = -(-len(names) // 4)
    figure = Figure(figsize=(14.0, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # no global state, no display
    for axes, name in zip(figure.subplots(rows, 4, squeeze=False).flat, names, strict=False):
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        axes.plot(*zip(*points, strict=True), linewidth=1.2, marker="." if len(points) < 60 else None)
        axes.set_xlabel("step", fontsize=8)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
    for axes in figure.axes[len(names) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=110)
