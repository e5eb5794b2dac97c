"""Tuning a whole model end to end: upper blocks of the tower, prototypes, their scores and the temperature.

RALI's stage 3 (Zhao et al., ICLR 2026, arXiv 2510.11369, section 4.3) tunes the head alone, with the mean squared
error. Here the upper blocks are tuned with it, and beside the error against human scores stand a PLCC term and two
terms on pictures without human scores (`ordered.py`): a stronger distortion must score lower, a pristine picture of
any style must not score low, and a strongly distorted one not high. The PCA stays as it is.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ..devices import device_of, training_autocast
from ..model import RaliModel
from ..preprocess import PreprocessConfig
from ..vision_transformer import PatchPattern
from .distortions import recode
from .evaluate import Agreement, Report, measure_agreement
from .losses import ORDER_MARGIN_PER_LEVEL, SMOOTH_L1_BETA, plcc_loss
from .ordered import GENTLE, OrderedGroup
from .tokens import LowerBlocks, UpperBlocks, timm_trunk

PRISTINE_FLOOR = 0.62
"""An undistorted pristine picture should score at least this."""
DISTORTED_CEILING = (0.80, 0.10)
"""From level 3 on, a distorted picture should score at most the first number minus the second times its level."""
STEADY_QUALITY = 95
"""JPEG quality that should not move a score."""
MOST_DRAWN_AHEAD = 8
"""So many steps' pictures are cut and saved as JPEG while a GPU computes; each takes some 50 MB."""
SMALLEST_CROP = 0.8
"""Random crops keep at least this share of the side, half of the steps see whole pictures."""


@dataclass(frozen=True)
class JointSettings:
    """Settings of the tuning.

    Attributes:
        image_size: Side of the tower's input in pixels.
        frozen_blocks: Blocks of the tower that stay as they are.
        steps: Optimiser steps; 0 leaves the model as it is.
        batch_size: Labelled images per step.
        groups_per_batch: Ordered groups per step, three pictures each.
        learning_rate: Peak learning rate of the last block; each earlier one gets `layer_decay` of the next.
        layer_decay: Factor per block, in (0, 1].
        head_learning_rate: Peak learning rate of prototypes, scores and temperature.
        weight_decay: AdamW's weight decay, for the tower's matrices.
        warmup_steps: Steps of linear warm-up; a cosine to 3 % of the peak follows.
        plcc_weight: Weight of 1 - PLCC.
        order_weight: Weight of the ordering term.
        anchor_weight: Weight of the term on pristine and on strongly distorted pictures.
        steady_weight: Weight of the term that asks for the same score of an undistorted picture of a group and of its
            mirror image, saved as JPEG at quality 95.
        steady_pictures: Labelled images per step that this term asks the same of. Photographs of middling quality are
            among them, whose scores move more easily than those at the ends of the scale. Needs a `steady_weight`.
        average_decay: Decay of the moving average of the weights, which is what comes out.
        patch_pattern: Which patches the tuned model looks at, `"all"` or `"checkerboard"`; None leaves that as it is.
        kept_patches: Share of all patches that a step sees, in (0, 1): a random part of each picture (PatchDropout, Liu
            et al., WACV 2023). Half of them cost less than half of the time. 1 for those that the model looks at.
        whole_steps: The last so many steps see the patches that the model looks at.
        seed: Seed of every random choice.

    Raises:
        ValueError: `kept_patches` does not lie in (0, 1], or `steady_pictures` is negative or without `steady_weight`.
    """

    image_size: int = 336
    frozen_blocks: int = 8
    steps: int = 340
    batch_size: int = 24
    groups_per_batch: int = 5
    learning_rate: float = 1e-4
    layer_decay: float = 0.8
    head_learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup_steps: int = 30
    plcc_weight: float = 0.5
    order_weight: float = 1.0
    anchor_weight: float = 0.5
    steady_weight: float = 0.0
    steady_pictures: int = 0
    average_decay: float = 0.985
    patch_pattern: PatchPattern | None = None
    kept_patches: float = 1.0
    whole_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.kept_patches <= 1:
            raise ValueError(f"kept_patches must lie in (0, 1], got {self.kept_patches}")
        if self.steady_pictures < 0 or (self.steady_pictures and self.steady_weight <= 0):
            raise ValueError(
                "steady_pictures must be at least 0, and needs a positive steady_weight, the weight of their term; "
                f"got {self.steady_pictures} pictures and weight {self.steady_weight}"
            )


@dataclass(frozen=True)
class OrderedPictures:
    """Ordered groups with their pixels.

    Attributes:
        groups: G groups.
        pixels: (G, 3, H, H, 3) uint8, see `ordered.render_group`.
    """

    groups: list[OrderedGroup]
    pixels: NDArray[np.uint8]


def with_image_size(
    model: RaliModel, image_size: int, positions: Tensor | None = None, *, pattern: PatchPattern | None = None
) -> RaliModel:
    """The same model for another input size; position embeddings are resampled.

    Args:
        model: With a timm vision transformer for a tower.
        image_size: Side of the new input in pixels.
        positions: (1, 1 + g * g, D) position embeddings to use instead, such as those of the pretrained tower, whose
            own grid was finer.
        pattern: Which patches the new model looks at; None for the model's own choice. Only DINOv2's towers have one.

    Raises:
        ValueError: The tower is of another kind, or `positions` or `pattern` do not fit.
    """
    from timm.layers import resample_abs_pos_embed

    trunk: Any = timm_trunk(model.encoder)
    config = model.preprocess_config
    vision = {**model.encoder_config.vision_cfg, "image_size": image_size}
    if pattern is not None and pattern != vision.get("patch_pattern", "all"):
        vision["patch_pattern"] = pattern
    encoder_config = replace(model.encoder_config, vision_cfg=vision)
    result = RaliModel(
        encoder_config,
        PreprocessConfig(image_size, config.mean, config.std, config.eight_bit),
        pca_dim=len(model.head.components), prototypes=len(model.head.scores), coverage=model.coverage,
    )  # fmt: skip
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    name = "encoder.trunk.pos_embed"
    wanted = result.state_dict()[name].shape
    if positions is None and state[name].shape != wanted:
        grid = math.isqrt(wanted[1] - trunk.num_prefix_tokens)
        positions = resample_abs_pos_embed(state[name], [grid, grid], num_prefix_tokens=trunk.num_prefix_tokens)
    if positions is not None:
        if positions.shape != wanted:
            raise ValueError(f"expected position embeddings of shape {tuple(wanted)}, got {tuple(positions.shape)}")
        state[name] = positions
    result.load_state_dict(state)
    return result.eval()


@dataclass(frozen=True)
class UnlabelledPictures:
    """Pictures that other models have scored, in the place of people.

    Attributes:
        pixels: Arrays of (N, H, H, 3) uint8, one after the other.
        scores: (N,) scores in [0, 1] of all of them.
    """

    pixels: list[NDArray[np.uint8]]
    scores: NDArray[np.float64]


class _Pictures:
    """Several arrays of pictures as one, none of which is copied: they may be larger than the memory."""

    def __init__(self, parts: list[NDArray[np.uint8]]) -> None:
        self.parts, self.ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        picture: NDArray[np.uint8] = self.parts[part][index - int(self.ends[part])]  # counted from its end
        return picture


class _Upper(nn.Module):
    """What is tuned: from the frozen blocks' tokens to scores."""

    def __init__(self, model: RaliModel, frozen_blocks: int) -> None:
        super().__init__()
        self.blocks = UpperBlocks(model.encoder, frozen_blocks)
        self.head = model.head

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(tokens).float())
        return scores


def tune_jointly(
    model: RaliModel,
    pictures: NDArray[np.uint8],
    scores: NDArray[np.float64],
    ordered: OrderedPictures,
    *,
    unlabelled: UnlabelledPictures | None = None,
    validation: tuple[NDArray[np.uint8], NDArray[np.float64]],
    settings: JointSettings,
    checkpoint: Path,
    checkpoint_every: int = 30,
    report: Report = print,
) -> list[dict[str, float]]:
    """Tune the model in place, where it is; goes on from `checkpoint` where there is one.

    Args:
        model: Of the settings' image size (`with_image_size`), on the device that shall do the work.
        pictures: (N, H, H, 3) uint8 labelled pictures.
        scores: (N,) their human scores in [0, 1].
        ordered: Pictures without human scores; no groups leave out the terms on them.
        unlabelled: Pictures that are learnt as the labelled ones are, of their size; drawn as often as these.
        validation: Pictures and scores that are only reported on.
        settings: How to tune.
        checkpoint: File for the state; one of other settings is refused.
        checkpoint_every: Steps between two writes of it.
        report: Called with lines of text.

    Returns:
        The log: one entry per ten steps, with the mean loss and its terms.

    Raises:
        ValueError: `checkpoint` belongs to a run with other settings, or the model does not fit the settings.
    """
    if model.preprocess_config.image_size != settings.image_size:
        raise ValueError(
            f"the model takes {model.preprocess_config.image_size} pixels, the settings say {settings.image_size}: "
            "use with_image_size first"
        )
    depth = len(timm_trunk(model.encoder).blocks)  # type: ignore[arg-type]
    if not 0 <= settings.frozen_blocks < depth:
        raise ValueError(
            f"frozen_blocks must lie in 0..{depth - 1} for this tower of {depth} blocks, got {settings.frozen_blocks}"
        )
    lower = LowerBlocks(model.encoder, settings.frozen_blocks).requires_grad_(False).eval()
    upper = _Upper(model, settings.frozen_blocks).requires_grad_(True)
    for tensor in (upper.head.components, upper.head.scale):
        tensor.requires_grad_(False)
    patches = lower.trunk.pos_embed.shape[1] - lower.trunk.num_prefix_tokens
    embed = _make_embedder(lower, model.preprocess_config)
    optimizer, peaks = _build_optimizer(upper, settings)
    average = {name: tensor.clone() for name, tensor in upper.state_dict().items()}
    log: list[dict[str, float]] = []
    parts = [pictures, *(unlabelled.pixels if unlabelled is not None else [])]
    if unlabelled is not None:
        scores = np.concatenate([scores, unlabelled.scores])
    learnt, shape = _Pictures(parts), (sum(map(len, parts)), *pictures.shape[1:])
    digest = hashlib.sha256(scores.astype(np.float32).tobytes()).hexdigest()[:16]
    first, signature = 0, f"{asdict(settings)} {shape} {digest} {len(ordered.groups)}"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=device_of(upper))
        if state["signature"] != signature:
            raise ValueError(f"{checkpoint} belongs to a run with other settings: delete it, or use another folder")
        upper.load_state_dict(state["upper"])
        optimizer.load_state_dict(state["optimizer"])
        average, first, log = state["average"], state["step"], state["log"]
        report(f"joint tuning: going on after step {first}")
    upper.train()
    terms: list[dict[str, Tensor]] = []  # read every ten steps: a GPU would be waited for each time
    steps = range(first, settings.steps)
    draw = partial(_draw_batch, learnt, ordered, patches, settings)
    threads = min(MOST_DRAWN_AHEAD, os.cpu_count() or 1) if device_of(upper).type == "cuda" else 0
    for step, batch in zip(steps, _draw_ahead(draw, steps, threads), strict=True):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * _schedule(step, settings)
        loss, values = _step(upper, embed, batch, scores, ordered, settings)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(upper.parameters(), 1.0)
        optimizer.step()
        decay = min(settings.average_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            upper.head.scores.clamp_(0.0, 1.0)
            for name, tensor in upper.state_dict().items():
                average[name].lerp_(tensor, 1 - decay)
        terms.append(values)
        last = step + 1 == settings.steps
        if (step + 1) % 10 == 0 or last:
            entry = {name: float(torch.stack([term[name] for term in terms]).mean()) for name in values}
            log.append({"step": step + 1, **entry})
            terms = []
            shown = ", ".join(f"{name} {value:.4f}" for name, value in entry.items())
            report(f"joint tuning {step + 1}/{settings.steps}: {shown}")
        if (step + 1) % checkpoint_every == 0 or last:
            _write_checkpoint(checkpoint, signature, upper, optimizer, average, step + 1, log)
    upper.load_state_dict(average)
    upper.requires_grad_(True).eval()
    agreement = _validate(upper, embed, *validation)
    report(f"joint tuning: validation SRCC {agreement.srcc:.4f} PLCC {agreement.plcc:.4f} MAE {agreement.mae:.4f}")
    return log


def _schedule(step: int, settings: JointSettings) -> float:
    warmup = max(1, min(settings.warmup_steps, settings.steps // 8))
    if step < warmup:
        return (step + 1) / warmup
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (settings.steps - warmup)))


Embed = Callable[[NDArray[np.uint8], Tensor | None], Tensor]
"""From square pictures, and which patches of them are kept, to the frozen blocks' tokens."""


def _make_embedder(lower: LowerBlocks, config: PreprocessConfig) -> Embed:
    size, device = config.image_size, device_of(lower)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (config.mean, config.std))

    def embed(pictures: NDArray[np.uint8], kept: Tensor | None) -> Tensor:
        """(B, H, H, 3) uint8 pictures to the frozen blocks' tokens."""
        pixels = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != size:
            pixels = functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        kept = None if kept is None else kept.to(device)
        with torch.no_grad(), training_autocast(device):
            tokens: Tensor = lower((pixels - mean) / std, kept)
        return tokens.float()

    return embed


@dataclass(frozen=True)
class _Batch:
    """What one step looks at; B labelled pictures, P of them steady, and G ordered groups.

    Attributes:
        labelled: (B, h, h, 3) uint8.
        chosen: (B,) their numbers.
        seen: (B, n) indexes of the patches that are kept of them; None for all, here and below.
        labelled_copies: (P, h, h, 3) uint8 copies of the first ones, which should score the same.
        copies_seen: (P, n) the same places in these.
        groups: Numbers of the groups.
        grouped: (3 G, H, H, 3) uint8, the groups' pictures one after the other.
        group_seen: (3 G, n) indexes of patches, alike within a group.
        group_copies: (G, H, H, 3) uint8 copies of the undistorted ones; none where their term has no weight.
        group_copies_seen: (G, n) the same places in these.
    """

    labelled: NDArray[np.uint8]
    chosen: NDArray[np.int64]
    seen: Tensor | None
    labelled_copies: NDArray[np.uint8]
    copies_seen: Tensor | None
    groups: list[int]
    grouped: NDArray[np.uint8]
    group_seen: Tensor | None
    group_copies: NDArray[np.uint8]
    group_copies_seen: Tensor | None


def _draw_batch(
    pictures: _Pictures, ordered: OrderedPictures, patches: int, settings: JointSettings, step: int
) -> _Batch:
    """Choose and cut a step's pictures; depends on the settings' seed and the step alone."""
    random = np.random.default_rng([settings.seed, step])
    batch = min(settings.batch_size, len(pictures))
    per_epoch = len(pictures) // batch
    order = np.random.default_rng([settings.seed, 1_000_000, step // per_epoch]).permutation(len(pictures))
    chosen = order[(step % per_epoch) * batch :][:batch]
    labelled = _augment([pictures[int(index)] for index in chosen], random)
    groups = min(settings.groups_per_batch, len(ordered.groups))
    picked: list[int] = random.choice(len(ordered.groups), groups, replace=False).tolist() if groups else []
    share = settings.kept_patches if step < settings.steps - settings.whole_steps else 1.0
    seen = _choose_patches(patches, share, batch, random)
    mirrored = random.random(groups) < 0.5
    grouped = [
        np.ascontiguousarray(picture[:, ::-1]) if flip else picture
        for index, flip in zip(picked, mirrored, strict=True)
        for picture in ordered.pixels[index]
    ]
    kept = _choose_patches(patches, share, groups, random)  # one choice for the pictures that are compared
    steady = labelled[: settings.steady_pictures]
    first = None if seen is None else seen[: len(steady)]
    return _Batch(
        labelled=_stack(labelled),
        chosen=chosen,
        seen=seen,
        labelled_copies=_stack([steady_copy(picture) for picture in steady]),
        copies_seen=None if first is None else mirror_patches(first, patches),
        groups=picked,
        grouped=_stack(grouped),
        group_seen=None if kept is None else kept.repeat_interleave(3, dim=0),
        group_copies=_stack([steady_copy(picture) for picture in grouped[::3]] if settings.steady_weight else []),
        group_copies_seen=None if kept is None else mirror_patches(kept, patches),
    )


def _stack(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(pictures) if pictures else np.empty((0, 0, 0, 3), np.uint8)


def _draw_ahead(draw: Callable[[int], _Batch], steps: range, threads: int) -> Iterator[_Batch]:
    """The batches of all steps in turn; up to `threads` of the next ones are being drawn meanwhile."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        coming: deque[Future[_Batch]] = deque()
        try:
            for step in steps:
                coming.append(pool.submit(draw, step))
                if len(coming) > threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _step(
    upper: _Upper, embed: Embed, batch: _Batch, scores: NDArray[np.float64], ordered: OrderedPictures,
    settings: JointSettings,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    size, groups, steady_pictures = len(batch.labelled), len(batch.groups), len(batch.labelled_copies)
    shown = [
        (batch.labelled, batch.seen),
        (batch.grouped, batch.group_seen),
        (batch.group_copies, batch.group_copies_seen),
        (batch.labelled_copies, batch.copies_seen),
    ]
    tokens = torch.cat([embed(pictures, kept) for pictures, kept in shown if len(pictures)])
    with training_autocast(tokens.device):
        predicted = upper(tokens).float()
    predicted, copies = predicted.split([len(predicted) - steady_pictures, steady_pictures])
    human = torch.from_numpy(scores[batch.chosen]).float().to(predicted.device)
    error = functional.smooth_l1_loss(predicted[:size], human, beta=SMOOTH_L1_BETA)
    correlation = plcc_loss(predicted[:size], human) if size > 2 else error.new_zeros(())
    loss = error + settings.plcc_weight * correlation
    parts = {"smooth L1": error, "1 - PLCC": correlation}
    if groups:
        in_groups = predicted[size : size + 3 * groups].view(-1, 3)
        order_term, anchor = ordered_losses(in_groups, [ordered.groups[i] for i in batch.groups])
        loss = loss + settings.order_weight * order_term + settings.anchor_weight * anchor
        parts |= {"order": order_term, "anchor": anchor}
        if settings.steady_weight:
            steady = (predicted[size + 3 * groups :] - in_groups[:, 0]).abs().mean()
            loss = loss + settings.steady_weight * steady
            parts["steady"] = steady
    if steady_pictures:
        steady = (copies - predicted[:steady_pictures]).abs().mean()
        loss = loss + settings.steady_weight * steady
        parts["steady, labelled"] = steady
    return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in parts.items()}}


def _choose_patches(patches: int, share: float, count: int, random: np.random.Generator) -> Tensor | None:
    """(count, n) indexes of the patches to keep; None for all of them."""
    if share == 1.0:
        return None
    order = random.permuted(np.tile(np.arange(patches), (count, 1)), axis=1)
    return torch.from_numpy(order[:, : max(1, round(share * patches))])


def steady_copy(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mirror image of an (H, W, 3) picture, saved as JPEG: it should have the same score."""
    mirrored = Image.fromarray(np.ascontiguousarray(picture[:, ::-1]))
    return np.array(recode(mirrored, "JPEG", quality=STEADY_QUALITY))


def mirror_patches(kept: Tensor, patches: int) -> Tensor:
    """Indexes of the same places in the mirror image, (count, n)."""
    side = math.isqrt(patches)
    return kept // side * side + (side - 1 - kept % side)


def _augment(pictures: list[NDArray[np.uint8]], random: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Mirror each at random; half of the time cut all to one random size, each at its own place."""
    full = pictures[0].shape[0]
    side = full if random.random() < 0.5 else int(random.integers(int(SMALLEST_CROP * full), full))
    result = []
    for picture in pictures:
        top, left = random.integers(full - side + 1, size=2)
        cut = picture[top : top + side, left : left + side]
        result.append(np.ascontiguousarray(cut[:, ::-1] if random.random() < 0.5 else cut))
    return result


def ordered_losses(scores: Tensor, groups: list[OrderedGroup]) -> tuple[Tensor, Tensor]:
    """The two terms on pictures without human scores.

    Args:
        scores: (G, 3) scores of the undistorted picture, the weak and the strong distortion.
        groups: The G groups.

    Returns:
        () mean hinge on the three ordered pairs of each group, by a margin per level; () mean hinge of pristine
        pictures below `PRISTINE_FLOOR` plus that of strong distortions above `DISTORTED_CEILING`.
    """
    device = scores.device
    levels = torch.tensor([[0.0, group.weak, group.strong] for group in groups], device=device)
    gentle = torch.tensor([group.distortion in GENTLE for group in groups], device=device)
    pristine = torch.tensor([group.pristine for group in groups], device=device).float()
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    margin = ORDER_MARGIN_PER_LEVEL * (levels[:, pairs[:, 1]] - levels[:, pairs[:, 0]])
    margin = torch.where(gentle[:, None], margin / 2, margin)
    order = functional.relu(margin - (scores[:, pairs[:, 0]] - scores[:, pairs[:, 1]])).mean()
    top, per_level = DISTORTED_CEILING
    strong = (levels >= 3) & ~gentle[:, None]
    above = (functional.relu(scores - (top - per_level * levels)) * strong).mean()
    return order, (pristine * functional.relu(PRISTINE_FLOOR - scores[:, 0])).mean() + above


def _build_optimizer(upper: _Upper, settings: JointSettings) -> tuple[torch.optim.AdamW, list[float]]:
    depth = len(upper.blocks.blocks)
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}  # each group costs the GPU a dozen launches a step
    for name, parameter in upper.named_parameters():  # the slice of the tower keeps its blocks' own numbers
        if not parameter.requires_grad:
            continue
        rate = settings.head_learning_rate if name.startswith("head.") else settings.learning_rate
        if name.startswith("blocks.blocks."):
            rate *= settings.layer_decay ** (depth - 1 - int(name.split(".")[2]) + settings.frozen_blocks)
        decay = settings.weight_decay if parameter.ndim > 1 and not name.startswith("head.") else 0.0
        alike.setdefault((rate, decay), []).append(parameter)
    groups = [{"params": same, "lr": rate, "weight_decay": decay} for (rate, decay), same in alike.items()]
    return torch.optim.AdamW(groups), [rate for rate, _ in alike]


def _write_checkpoint(
    path: Path,
    signature: str,
    upper: _Upper,
    optimizer: torch.optim.AdamW,
    average: dict[str, Tensor],
    step: int,
    log: list[dict[str, float]],
) -> None:
    state = {
        "signature": signature,
        "upper": upper.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
        "step": step,
        "log": log,
    }
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def embed_pictures(model: RaliModel, pictures: NDArray[np.uint8], *, report: Report | None = None) -> Tensor:
    """(N, H, H, 3) uint8 pictures to (N, D) float32 embeddings, without gradient and in training's arithmetic.

    Args:
        model: The model.
        pictures: Square; another size than the tower's is resized.
        report: Called with a line of text now and then.
    """
    embed = _make_embedder(LowerBlocks(model.encoder, 0).eval(), model.preprocess_config)
    return _run(UpperBlocks(model.encoder, 0).eval(), embed, pictures, report=report)


def predict_pictures(
    model: RaliModel, pictures: NDArray[np.uint8], *, report: Report | None = None
) -> NDArray[np.float32]:
    """(N, H, H, 3) uint8 pictures to (N,) float32 scores, without gradient and in training's arithmetic.

    Args:
        model: The model.
        pictures: Square; another size than the tower's is resized.
        report: Called with a line of text now and then.
    """
    embed = _make_embedder(LowerBlocks(model.encoder, 0).eval(), model.preprocess_config)
    return _predict(_Upper(model, 0), embed, pictures, report=report)


def fit_line(model: RaliModel, pictures: NDArray[np.uint8], scores: NDArray[np.float64]) -> dict[str, float] | None:
    """Give a model's scores the slope and the offset that fit human scores best (least squares), in place.

    The score is a weighted mean of the prototypes' scores, so they take both, within [0, 1]; ranks stay.

    Args:
        model: The model; its prototypes' scores are changed.
        pictures: (N, H, H, 3) uint8.
        scores: (N,) their human scores in [0, 1].

    Returns:
        `slope` and `offset`; None, and nothing changed, where the model's scores do not rise with the human ones.
    """
    predicted = predict_pictures(model, pictures)
    slope, offset = (float(value) for value in np.polyfit(predicted, scores, 1))
    if not slope > 0:
        return None
    with torch.no_grad():
        model.head.scores.mul_(slope).add_(offset).clamp_(0.0, 1.0)
    return {"slope": slope, "offset": offset}


def _validate(
    upper: _Upper,
    embed: Embed,
    pictures: NDArray[np.uint8],
    scores: NDArray[np.float64],
) -> Agreement:
    return measure_agreement(_predict(upper, embed, pictures), scores)


def _predict(
    upper: _Upper, embed: Embed, pictures: NDArray[np.uint8], *, report: Report | None = None
) -> NDArray[np.float32]:
    result: NDArray[np.float32] = _run(upper, embed, pictures, report=report).numpy()
    return result


def _run(upper: nn.Module, embed: Embed, pictures: NDArray[np.uint8], *, report: Report | None = None) -> Tensor:
    """What `upper` makes of all pictures, float32, a few at a time and without gradient."""
    results = []
    for start in range(0, len(pictures), 16):
        tokens = embed(np.array(pictures[start : start + 16]), None)
        with torch.no_grad(), training_autocast(tokens.device):
            results.append(upper(tokens).float().cpu())
        if report is not None and (start // 16 + 1) % 100 == 0:
            report(f"{start + 16} of {len(pictures)} pictures went through the model")
    return torch.cat(results)
