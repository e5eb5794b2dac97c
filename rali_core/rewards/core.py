"""The reward itself: images in any form that a trainer holds, to one number each."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..constants import Coverage, DtypeName
from ..content import lower_blank
from ..scorer import Images, RaliScorer
from .transforms import OnBadSample, Transform, apply_all, check_on_error

_log = logging.getLogger("rali")

DEFAULT_BATCH_SIZE = 16


class RaliReward:
    """Quality scores as a reward: `reward(images) -> list[float]`.

    Deterministic, without gradient (`differentiable` has one), picklable: a pickle of a reward that was made from a
    name holds the name only, and the model is loaded on the first call in each process. May be called from several
    threads.

    Args:
        model: None for the bundled model, a model's name or file, or a `RaliScorer`.
        device: Where to compute; by default the GPU, if there is one. Not with a `RaliScorer`, which has its own.
        dtype: Of the image encoder. Likewise.
        batch_size: Crops per forward pass. Likewise.
        coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"`; by default the model's own. Likewise.
        domain: What kind of images these are, such as `"generated images"`, see `RaliScorer`. Likewise.
        transforms: Applied in order to the scores of each call, see `transforms`.
        on_error: How to handle a bad sample (an unreadable file, NaN or out-of-range pixels). `"raise"` (default) ends
            the call; a number is the sample's reward; `"nan"` lets the trainer mask it. With either, a line in the log
            `rali` names the sample, and the others are rewarded as if it were absent. A blank image is not a bad
            sample: it gets the lowest score, `content.NO_CONTENT_SCORE`.

    Raises:
        ValueError: A setting that the given scorer already has, or an invalid `on_error`.

    Examples:
        >>> from PIL import Image
        >>> reward = RaliReward(transforms=[Clip(high=0.8)])  # doctest: +SKIP
        >>> reward([Image.new("RGB", (64, 64))])  # doctest: +SKIP
        [0.12]
    """

    def __init__(
        self,
        model: RaliScorer | str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: DtypeName = "float32",
        batch_size: int = DEFAULT_BATCH_SIZE,
        coverage: Coverage | None = None,
        domain: str | None = None,
        transforms: Iterable[Transform] = (),
        on_error: OnBadSample = "raise",
    ) -> None:
        settings = (device, dtype, batch_size, coverage, domain)
        if isinstance(model, RaliScorer) and settings != (None, "float32", DEFAULT_BATCH_SIZE, None, None):
            raise ValueError("device, dtype, batch_size, coverage and domain belong to the scorer; set them there")
        self._scorer = model if isinstance(model, RaliScorer) else None
        self._name = None if isinstance(model, RaliScorer) else model
        self._owned = self._scorer is None
        self._settings: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "batch_size": batch_size,
            "coverage": coverage,
            "domain": domain,
        }
        self.transforms: tuple[Transform, ...] = tuple(transforms)
        self.on_error = check_on_error(on_error)
        self._lock = threading.Lock()

    @property
    def scorer(self) -> RaliScorer:
        """The scorer; loaded at first use.

        Raises:
            FileNotFoundError, CheckpointError: As for `RaliScorer.from_pretrained`.
        """
        with self._lock:
            if self._scorer is None:
                self._scorer = RaliScorer.from_pretrained(self._name, **self._settings)
            return self._scorer

    def __call__(self, images: Images) -> list[float]:
        """One reward per image.

        Args:
            images: As for `RaliScorer.score`: a list of PIL images, arrays or tensors of any sizes; an (N, 3, H, W)
                tensor, float in [0, 1] or uint8; an (N, H, W, 3) array, likewise.

        Returns:
            N numbers, higher is better; for bad samples what `on_error` says.

        Raises:
            TypeError, FileNotFoundError, ImageError: An image cannot be used, with `on_error="raise"`.
            ValueError: A score is not finite, likewise.
        """
        return [float(value) for value in self.tensor(images)]

    def tensor(self, images: Images) -> Tensor:
        """As `__call__`, as (N,) float32 on the CPU."""
        scorer = self.scorer
        # Under a trainer's autocast the score would depend on the trainer's precision.
        with torch.autocast(scorer.device.type, enabled=False):
            result = scorer.score(images, on_error="raise" if self.on_error == "raise" else "record")
        for index, (score, error) in enumerate(zip(result.scores, result.errors, strict=True)):
            if not math.isfinite(score):
                _log.warning("reward: sample %d has no score: %s", index, error or "it is not finite")
        return apply_all(self.transforms, torch.from_numpy(result.scores), self.on_error)

    def differentiable(self, pixels: Tensor) -> Tensor:
        """Rewards with a gradient to the pixels.

        Args:
            pixels: (N, 3, H, W), floating point in [0, 1], on any device.

        Returns:
            (N,) at least float32, on the scorer's device; bad samples get what `on_error` says, without a gradient, and
            blank ones the lowest score, with the model's gradient.

        Raises:
            TypeError, ValueError: As for `RaliModel.forward`; or a transform without a gradient (`Ranks`).
        """
        scorer = self.scorer
        scorer.model.requires_grad_(False)
        pixels = pixels.to(scorer.device)
        finite = torch.isfinite(pixels.detach()).flatten(1).all(dim=1)
        if self.on_error != "raise" and not finite.all():
            _log.warning("reward: samples %s hold NaN or infinite pixels", (~finite).nonzero().flatten().tolist())
            pixels = torch.where(finite.view(-1, 1, 1, 1), pixels, torch.full_like(pixels, 0.5))
        with torch.autocast(scorer.device.type, enabled=False):
            scores = scorer.model(pixels, coverage=scorer.coverage)
        scores = torch.where(finite, lower_blank(scores, pixels), torch.nan)
        rewards = apply_all(self.transforms, scores, self.on_error)
        if scores.requires_grad and not rewards.requires_grad:
            raise ValueError(f"no gradient passes through {[type(item).__name__ for item in self.transforms]}")
        return rewards

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_lock"}
        if self._owned:
            state["_scorer"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


def make_reward(
    model: RaliReward | RaliScorer | str | os.PathLike[str] | None,
    *,
    device: str | torch.device | None = None,
    transforms: Sequence[Transform] = (),
    on_error: OnBadSample | None = None,
) -> RaliReward:
    """The reward of an adapter: the given one, or a new one.

    Raises:
        ValueError: Settings beside a reward that has its own.
    """
    if isinstance(model, RaliReward):
        if device is not None or transforms or on_error is not None:
            raise ValueError("device, transforms and on_error belong to the reward; set them there")
        return model
    return RaliReward(model, device=device, transforms=transforms, on_error="raise" if on_error is None else on_error)
