"""Listening to a scheduler: what went into its last step, from which the predicted picture follows."""

from __future__ import annotations

from functools import wraps
from typing import Any

from torch import Tensor

from .predict import check_scheduler, predict_original


class StepRecorder:
    """Remembers sample, denoiser output and timestep of a scheduler's last step.

    diffusers' callback sees the latents after a step only; the denoiser's output passes through `scheduler.step`
    alone, so that is where it is read. The step itself is not changed.

    Args:
        scheduler: One scheduler object; `attach` puts a wrapper on this object and `detach` takes it off.

    Raises:
        ValueError: A scheduler whose predicted x0 is not known.
    """

    def __init__(self, scheduler: Any) -> None:
        check_scheduler(scheduler)
        self._scheduler = scheduler
        self._last: tuple[Tensor, Tensor, Any, int | None] | None = None

    def attach(self) -> None:
        """Start listening.

        Raises:
            RuntimeError: Something else listens to this scheduler already.
        """
        scheduler = self._scheduler
        if "step" in vars(scheduler):
            raise RuntimeError(
                f"this {type(scheduler).__name__}'s step() is already replaced; leave the other `with` block first"
            )
        original = scheduler.step

        @wraps(original)  # pipelines look at the signature to see whether a step takes eta and generator
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = original(model_output, timestep, sample, *args, **kwargs)
            index = getattr(scheduler, "step_index", None)
            self._last = (sample, model_output, timestep, None if index is None else index - 1)
            return result

        scheduler.step = step

    def detach(self) -> None:
        """Stop listening, and forget."""
        vars(self._scheduler).pop("step", None)
        self._last = None

    def predicted(self) -> Tensor:
        """(B, ...) float32 clean latents, as the last step's denoiser output predicts them.

        Raises:
            RuntimeError: No step has been taken since `attach`.
        """
        if self._last is None:
            raise RuntimeError(
                f"no step of this {type(self._scheduler).__name__} has been seen; pass the callback to the pipeline "
                "it was made for, inside the `with` block, and do not exchange pipe.scheduler in between"
            )
        sample, output, timestep, index = self._last
        return predict_original(self._scheduler, sample.detach(), output.detach(), timestep, index)
