"""Step callbacks: their base class, and the one that records the score of the denoised preview at each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from .latents import check_preview, latents_to_pixels, watch_latents
from .predicted_x0 import StepRecorder
from .scoring import Scorer, make_score_function


class StepHook:
    """A `callback_on_step_end` that knows the denoised preview of each step.

    Alone, or beside others in a `MultiPipelineCallbacks`; several may watch one pipeline.

    Args:
        pipe: The pipeline that will be called, with the scheduler that it will be called with.
        vae: A cheaper decoder; by default the pipeline's.
        height: Height in pixels for packed latents, if the pipeline does not know it.
        width: Width, likewise.

    Attributes:
        tensor_inputs: Names of the tensors that diffusers passes to it at each step.

    Raises:
        ValueError: A pipeline or scheduler without a known preview.
    """

    tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(self, pipe: Any, *, vae: Any = None, height: int | None = None, width: int | None = None) -> None:
        check_preview(pipe)
        self._pipe = pipe
        self._recorder = StepRecorder(pipe.scheduler)
        self._vae, self._height, self._width = vae, height, width
        self._prepared: tuple[int | None, int | None] | None = None
        self._end_watching: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._recorder.attach()
        self._prepared = None
        self._end_watching = watch_latents(self._pipe, self._on_prepared)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._recorder.detach()
        if self._end_watching is not None:
            self._end_watching()
        self._end_watching = None

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Called by the pipeline after each step."""
        if self._end_watching is None:
            name = type(self).__name__
            raise RuntimeError(f"use it in a block: `with {name}(pipe, ...) as callback:` around the pipeline's call")
        if "latents" not in tensors:
            raise RuntimeError("the callback needs latents: name them in callback_on_step_end_tensor_inputs")
        # A MultiPipelineCallbacks passes what this returns to the next callback: all tensors, not only the changed
        # ones.
        return {**tensors, **self.on_step(pipe, step, timestep, tensors["latents"], self._recorder.predicted())}

    def on_step(self, pipe: Any, step: int, timestep: Any, latents: Tensor, predicted: Tensor) -> dict[str, Any]:
        """Handle a step.

        Args:
            pipe: The running pipeline.
            step: 0-based.
            timestep: The scheduler's.
            latents: The step's output.
            predicted: float32 clean latents that the denoiser expected before this step.

        Returns:
            Tensors that the pipeline continues with instead of its own.
        """
        raise NotImplementedError

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """(B, ...) clean latents to (B, 3, H, W) pixels in [0, 1]."""
        height, width = self._prepared or (None, None)
        return latents_to_pixels(
            pipe, latents, vae=self._vae, height=height or self._height, width=width or self._width
        )

    def _on_prepared(self, latents: Tensor, height: int | None, width: int | None) -> None:
        """Decode the first noise, so that a decoding error comes before the first denoising step."""
        first, self._prepared = self._prepared is None, (height, width)
        if first:
            with torch.no_grad():
                self.decode(self._pipe, latents[:1].detach())


@dataclass(frozen=True)
class StepScores:
    """One step's scores.

    Attributes:
        step: 0-based.
        timestep: The scheduler's.
        scores: Of each image in the batch: of the denoised preview at this step.
    """

    step: int
    timestep: float
    scores: tuple[float, ...]


class RaliStepCallback(StepHook):
    """Records the score per step, and can stop the run.

    Args:
        pipe: The pipeline that will be called.
        scorer: A `RaliScorer` or a callable on a list of PIL images; by default the bundled model.
        every: Score after every so many steps, and after the last.
        stop: Called with each `StepScores`; returning True ends the run there, and the pipeline returns that
            step's denoised preview. The remaining steps are skipped.
        vae: A cheaper decoder, such as an `AutoencoderTiny`; by default the pipeline's.
        height: Height in pixels for packed latents, if the pipeline does not know it.
        width: Width, likewise.

    Attributes:
        history: The scores of the last run, in order.
        stopped: True if `stop` ended it.

    Raises:
        ValueError: `every` is less than 1, or there is no denoised preview for this pipeline or scheduler.

    Examples:
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
        super().__init__(pipe, vae=vae, height=height, width=width)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._score = make_score_function(scorer)
        self._every, self._stop = every, stop
        self.history: list[StepScores] = []
        self.stopped = False

    def on_step(self, pipe: Any, step: int, timestep: Any, latents: Tensor, predicted: Tensor) -> dict[str, Any]:
        """Score, record, and stop if asked to."""
        if step == 0:
            self.history.clear()
            self.stopped = False
        last = step == pipe.num_timesteps - 1
        if not last and (step + 1) % self._every:
            return {}
        with torch.no_grad():
            pixels = self.decode(pipe, predicted)
        now = StepScores(step, float(timestep), tuple(self._score(list(pixels))))
        self.history.append(now)
        if last or self._stop is None or not self._stop(now):
            return {}
        if not hasattr(pipe, "interrupt"):
            raise RuntimeError(f"{type(pipe).__name__} cannot be stopped: it has no `interrupt`")
        pipe._interrupt = True  # diffusers' documented way to end a call; the remaining steps are skipped
        self.stopped = True
        # The pipeline decodes what it holds now: half-noisy latents would be no image.
        return {"latents": predicted.to(latents.dtype)}
