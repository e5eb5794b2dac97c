"""The reward itself: images in whatever form a trainer holds them, to one number each."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..preprocess import Coverage
from ..scorer import DtypeName, Images, RaliScorer
from .transforms import Transform, apply_all

DEFAULT_BATCH_SIZE = 16


class RaliReward:
    """Quality scores as a reward: `reward(images) -> list[float]`.

    Deterministic, without gradient (`differentiable` has one), picklable: a pickle of a reward that was made from a
    name holds the name only, and the model is loaded on the first call in each process. May be called from several
    threads.

    Args:
        model: None for the bundled model, a model's name or file, or a `RaliScorer`.
        device: Where to compute; by default the GPU where there is one. Not with a `RaliScorer`, which has its own.
        dtype: Of the image tower. Likewise.
        batch_size: Crops per forward pass. Likewise.
        coverage: `"center"` or `"tiles"`; by default the model's own. Likewise.
        transforms: Applied in order to the scores of each call, see `transforms`.

    Raises:
        ValueError: A setting that the given scorer has already.

    Example:
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
        transforms: Iterable[Transform] = (),
    ) -> None:
        settings = (device, dtype, batch_size, coverage)
        if isinstance(model, RaliScorer) and settings != (None, "float32", DEFAULT_BATCH_SIZE, None):
            raise ValueError("device, dtype, batch_size and coverage belong to the scorer; set them there")
        self._scorer = model if isinstance(model, RaliScorer) else None
        self._name = None if isinstance(model, RaliScorer) else model
        self._owned = self._scorer is None
        self._settings: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "batch_size": batch_size,
            "coverage": coverage,
        }
        self.transforms: tuple[Transform, ...] = tuple(transforms)
        self._lock = threading.Lock()

    @property
    def scorer(self) -> RaliScorer:
        """The scorer; loaded when it is first asked for.

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
            N numbers, higher is better.

        Raises:
            TypeError, FileNotFoundError, ImageError: An image cannot be used.
            ValueError: A score is not finite.
        """
        return [float(value) for value in self.tensor(images)]

    def tensor(self, images: Images) -> Tensor:
        """As `__call__`, as (N,) float32 on the CPU."""
        scorer = self.scorer
        # Under a trainer's autocast the score would depend on its precision.
        with torch.autocast(scorer.device.type, enabled=False):
            scores = torch.from_numpy(scorer.score(images).scores)
        return apply_all(self.transforms, scores)

    def differentiable(self, pixels: Tensor) -> Tensor:
        """Rewards with a gradient to the pixels.

        Args:
            pixels: (N, 3, H, W), floating point in [0, 1], on any device.

        Returns:
            (N,) at least float32, on the scorer's device.

        Raises:
            TypeError, ValueError: As for `RaliModel.forward`; or a transform without a gradient (`Ranks`).
        """
        scorer = self.scorer
        scorer.model.requires_grad_(False)
        with torch.autocast(scorer.device.type, enabled=False):
            scores = scorer.model(pixels.to(scorer.device), coverage=scorer.coverage)
        rewards = apply_all(self.transforms, scores)
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
) -> RaliReward:
    """The reward behind a face: the given one, or a new one.

    Raises:
        ValueError: Settings beside a reward that has its own.
    """
    if isinstance(model, RaliReward):
        if device is not None or transforms:
            raise ValueError("device and transforms belong to the reward; set them there")
        return model
    return RaliReward(model, device=device, transforms=transforms)
