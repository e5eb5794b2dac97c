"""The score of the predicted picture at each step of one pipeline call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .latents import latents_to_pixels
from .scoring import Scorer, make_score_function
from .step_hook import StepHook


@dataclass(frozen=True)
class StepScores:
    """One step's scores.

    Attributes:
        step: 0-based.
        timestep: The scheduler's.
        scores: Of each image in the batch: of the picture that the denoiser expected at this step.
    """

    step: int
    timestep: float
    scores: tuple[float, ...]


class RaliStepCallback(StepHook):
    """Records the score per step, and can end the run.

    Args:
        pipe: The pipeline that will be called.
        scorer: A `RaliScorer` or a callable on a list of PIL images; by default the bundled model.
        every: Score after every so many steps, and after the last.
        stop: Called with each `StepScores`; returning True ends the run there, and the pipeline returns the picture
            predicted at that step. The steps after it cost nothing.
        vae: A cheaper decoder, such as an `AutoencoderTiny`; by default the pipeline's.
        height: Height in pixels for Flux, where the call says one.
        width: Width, likewise.

    Attributes:
        history: What was recorded in the last run, in order.
        stopped: True where `stop` ended it.

    Raises:
        ValueError: `every` is less than 1, or the scheduler's predicted picture is not known.

    Example:
        >>> with RaliStepCallback(pipe, stop=lambda now: min(now.scores) > 0.8) as callback:  # doctest: +SKIP
        ...     image = pipe("a lighthouse", callback_on_step_end=callback).images[0]
        >>> [(now.step, now.scores[0]) for now in callback.history]  # doctest: +SKIP
    """

    def __init__(
        self,
        pipe: Any,
        *,
        scorer: Scorer | None = None,
        every: int = 1,
        stop: Callable[[StepScores], bool] | None = None,
        vae: Any = None,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__(pipe, height=height, width=width)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._score = make_score_function(scorer)
        self._every, self._stop, self._vae = every, stop, vae
        self.history: list[StepScores] = []
        self.stopped = False

    def on_step(self, pipe: Any, step: int, timestep: Any, latents: Tensor, predicted: Tensor) -> dict[str, Any]:
        """Score, record, and stop where asked to."""
        if step == 0:
            self.history.clear()
            self.stopped = False
        last = step == pipe.num_timesteps - 1
        if not last and (step + 1) % self._every:
            return {}
        with torch.no_grad():
            pixels = latents_to_pixels(pipe, predicted, vae=self._vae, height=self._height, width=self._width)
        now = StepScores(step, float(timestep), tuple(self._score(list(pixels))))
        self.history.append(now)
        if last or self._stop is None or not self._stop(now):
            return {}
        if not hasattr(pipe, "interrupt"):
            raise RuntimeError(f"{type(pipe).__name__} cannot be stopped: it has no `interrupt`")
        pipe._interrupt = True  # diffusers' documented way to end a call; the remaining steps are skipped
        self.stopped = True
        # The pipeline decodes what it holds now: half-noisy latents would be no picture.
        return {"latents": predicted.to(latents.dtype)}
