"""What the step callbacks share: one pipeline, watched inside a `with` block."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor
from typing_extensions import Self

from .recorder import StepRecorder


class StepHook:
    """A `callback_on_step_end` that knows the predicted picture of each step.

    Args:
        pipe: The pipeline that will be called, with the scheduler that it will be called with.
        height: Height in pixels for pipelines with packed latents (Flux), where the call says one.
        width: Width, likewise.

    Raises:
        ValueError: A scheduler whose predicted picture is not known.
    """

    def __init__(self, pipe: Any, *, height: int | None = None, width: int | None = None) -> None:
        self._recorder = StepRecorder(pipe.scheduler)
        self._height, self._width = height, width
        self._inside = False

    def __enter__(self) -> Self:
        self._recorder.attach()
        self._inside = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._recorder.detach()
        self._inside = False

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Called by the pipeline after each step."""
        if not self._inside:
            name = type(self).__name__
            raise RuntimeError(f"use it in a block: `with {name}(pipe, ...) as callback:` around the pipeline's call")
        if "latents" not in tensors:
            raise RuntimeError("the callback needs latents: leave callback_on_step_end_tensor_inputs at its default")
        return self.on_step(pipe, step, timestep, tensors["latents"], self._recorder.predicted())

    def on_step(self, pipe: Any, step: int, timestep: Any, latents: Tensor, predicted: Tensor) -> dict[str, Any]:
        """What to do after a step.

        Args:
            pipe: The running pipeline.
            step: 0-based.
            timestep: The scheduler's.
            latents: What the step gave.
            predicted: float32 clean latents that the denoiser expected before this step.

        Returns:
            Tensors that the pipeline goes on with instead of its own.
        """
        raise NotImplementedError
