"""A verifier for tt-scale-flux (`sayakpaul/tt-scale-flux`), which searches over initial noises.

Its `verifiers.SUPPORTED_VERIFIERS` maps a name to a class, made with the `verifier_args` of the configuration; then
`verifier.score(inputs=verifier.prepare_inputs(images=..., prompts=...))` gives a dictionary per image, in which the
configured `choice_of_metric` is looked up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..scorer import RaliScorer
from .core import RaliReward, make_reward
from .transforms import OnBadSample

METRIC = "rali_score"


class ScaleFluxVerifier:
    """`prepare_inputs` and `score`, like that project's own verifiers.

    Args:
        model: As for `RaliReward`.
        device: As for `RaliReward`.
        on_error: How to handle a bad sample, as for `RaliReward`; the project writes JSON: give a number, not `"nan"`.
        verifier_args: The project's settings (`name`, `choice_of_metric`, `max_new_tokens`, ...); only
            `choice_of_metric` matters here.

    Raises:
        ValueError: `choice_of_metric` is not `"rali_score"`.
    """

    SUPPORTED_METRIC_CHOICES = (METRIC,)

    def __init__(
        self,
        *,
        model: RaliReward | RaliScorer | str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        on_error: OnBadSample | None = None,
        **verifier_args: Any,
    ) -> None:
        metric = verifier_args.get("choice_of_metric", METRIC)
        if metric != METRIC:
            raise ValueError(f"choice_of_metric must be {METRIC!r}, got {metric!r}")
        self._reward = make_reward(model, device=device, on_error=on_error)

    def prepare_inputs(
        self, images: Sequence[Image.Image] | Image.Image, prompts: Sequence[str] | str | None = None, **_: Any
    ) -> list[Image.Image]:
        """The images; prompts are ignored."""
        del prompts
        return [images] if isinstance(images, Image.Image) else list(images)

    def score(self, inputs: Sequence[Image.Image], **_: Any) -> list[dict[str, float]]:
        """`{"rali_score": score}` for each image, higher is better; a plain float, as the project writes it as JSON."""
        return [{METRIC: value} for value in self._reward(list(inputs))]
