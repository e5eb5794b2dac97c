"""One pipeline call that can be suspended between two steps.

Pruning compares candidates in the middle of their calls. A call's state lives in the local variables of the
pipeline's `__call__`, which no callback can save and restore for every pipeline class; so each call runs in its own
thread, which waits inside its callback. Exactly one thread computes at any time, on a shallow copy of the pipeline
with its own scheduler, hence nothing depends on timing and every call computes what it would compute alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .arguments import UserCallback, isolate
from .latents import watch_latents
from .predicted_x0 import StepRecorder
from .pruning import DenoiserCounter
from .shrink import shrink_generators, shrink_scheduler, shrink_tensors, tensors_to_shrink


class _Dropped(BaseException):
    """Ends a call from inside its callback; not an Exception, so that no pipeline's handler catches it."""


class SuspendedCall:
    """A pipeline call for some seeds that stops at each rung.

    Args:
        pipe: The caller's pipeline; never changed.
        arguments: The call's arguments for one prompt, see `complete_call`.
        seeds: One per image.
        rungs: Function from the number of steps to the 0-based steps after which to stop.
        prepared: Called with (pipeline, latents, height, width) before the first step; an exception ends the call.
        preview: From (pipeline, predicted clean latents) to (B, 3, H, W) pixels, which may hold NaN.
        counter: Counts the denoiser's calls, of this call and of others.
        callback: The caller's own `callback_on_step_end`.

    Attributes:
        seeds: Of the images still in the call.
        previews: (3, H, W) denoised preview of each, while suspended; then None.
        output: The pipeline's output object, once it is done.
        latents: (B, ...) final latents on the CPU, once it is done; NaN where they were.
        cost: Denoiser calls so far per image that is still in the call.
    """

    def __init__(
        self,
        pipe: Any,
        arguments: dict[str, Any],
        seeds: tuple[int, ...],
        *,
        rungs: Callable[[int], tuple[int, ...]],
        prepared: Callable[[Any, Tensor, int | None, int | None], None],
        preview: Callable[[Any, Tensor], Tensor],
        counter: DenoiserCounter,
        callback: UserCallback,
    ) -> None:
        self._tensors = tensors_to_shrink(pipe, arguments) if len(seeds) > 1 else ("latents",)
        self._pipe = isolate(pipe)
        self._recorder = StepRecorder(self._pipe.scheduler)
        self._arguments = arguments
        self._callback = callback
        self._prepared = prepared
        self._rungs_of = rungs
        self._rungs: tuple[int, ...] = ()
        self._preview = preview
        self._counter = counter
        self._counted = 0
        self._kept: list[int] = []
        self._dropping = False
        self._failure: BaseException | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self.seeds = seeds
        self.previews: list[Tensor] | None = None
        self.output: Any = None
        self.latents: Tensor | None = None
        self._last: Tensor | None = None
        self.cost = 0.0

    @property
    def done(self) -> bool:
        """True once the pipeline has returned."""
        return self.output is not None

    def advance(self, kept: list[int] | None = None) -> None:
        """Compute up to the next rung, or to the end.

        Args:
            kept: 0-based positions in `seeds` that continue; None for all.

        Raises:
            Exception: Any exception of the pipeline.
        """
        self._kept = list(range(len(self.seeds))) if kept is None else kept
        self._counted = self._counter.calls or 0
        if self._thread is None:
            body = _carry_torch_state(self._body)
            self._thread = threading.Thread(target=body, name="rali-best-of-n", daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def drop(self) -> None:
        """End the call at its current or next step; does nothing if it has ended."""
        self._dropping = True
        if self._thread is not None:
            self._go.release()
            self._thread.join()
        self.previews, self.output, self.latents, self._last, self._arguments = None, None, None, None, {}

    def _body(self) -> None:
        pipe = self._pipe
        watch_latents(pipe, lambda latents, height, width: self._prepared(pipe, latents, height, width))
        try:
            self._recorder.attach()
            self.output = pipe(
                **self._arguments,
                callback_on_step_end=self._on_step_end,
                callback_on_step_end_tensor_inputs=self._callback.wanted_with(self._tensors),
            )
            self.latents = None if self._last is None else self._last.detach().cpu()
        except _Dropped:
            if hasattr(self._pipe, "maybe_free_model_hooks"):
                self._pipe.maybe_free_model_hooks()  # what the pipeline does at its end, for CPU offload
        except BaseException as error:
            self._failure = error
        finally:
            self._recorder.detach()
            self._stopped.release()

    def _on_step_end(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if self._dropping:
            raise _Dropped
        now = self._counter.calls or 0
        self.cost += (now - self._counted) / len(self.seeds)
        self._counted = now
        steps = pipe.num_timesteps
        if step == 0:
            self._rungs = self._rungs_of(steps)
        result = self._callback(pipe, step, timestep, tensors)
        tensors = {**tensors, **result}
        if step in self._rungs:
            result = {**result, **self._compare(pipe, tensors)}
        self._last = result.get("latents", tensors["latents"])
        if step == steps - 1:
            result = {**result, **finite_latents(self._last)}
        return result

    def _compare(self, pipe: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        predicted = self._recorder.predicted()
        if predicted.shape != tensors["latents"].shape:
            raise ValueError(
                f"{type(pipe).__name__} steps latents of shape {tuple(predicted.shape)} and gives its callback "
                f"{tuple(tensors['latents'].shape)}: no denoised preview; best_of_n without prune= works"
            )
        self.previews = list(self._preview(pipe, predicted).cpu())
        self._stopped.release()
        self._go.acquire()
        self.previews = None
        if self._dropping or not self._kept:
            raise _Dropped
        batch = len(self.seeds)
        if len(self._kept) == batch:
            return {}
        shape = tensors["latents"].shape
        shrink_scheduler(pipe.scheduler, self._kept, shape)
        shrink_generators(self._arguments["generator"], self._kept)
        self.seeds = tuple(self.seeds[sample] for sample in self._kept)
        return dict(shrink_tensors({name: tensors[name] for name in self._tensors}, self._kept, batch))


def are_finite(latents: Tensor) -> list[bool]:
    """For each sample, whether all its values are finite."""
    return torch.isfinite(latents).flatten(1).all(dim=1).tolist()


def finite_latents(latents: Tensor) -> dict[str, Any]:
    """`{"latents": ...}` with zeros for samples that are not finite; empty if all are.

    A pipeline would decode NaN to a black image with a warning; such samples are reported as without content instead.
    """
    finite = torch.isfinite(latents).flatten(1).all(dim=1)
    if finite.all():
        return {}
    return {"latents": torch.where(finite.view(-1, *[1] * (latents.ndim - 1)), latents, torch.zeros_like(latents))}


def _carry_torch_state(body: Callable[[], None]) -> Callable[[], None]:
    """`body` under the caller's thread-local settings: inference mode, autocast, CUDA device, default device."""
    inference = torch.is_inference_mode_enabled()
    autocasts = [
        (kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(kind)
    ]
    cuda = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    default_device = torch.get_default_device()

    @contextmanager
    def state() -> Iterator[None]:
        with ExitStack() as stack:
            if inference:
                stack.enter_context(torch.inference_mode())
            for kind, dtype in autocasts:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            if cuda is not None:
                stack.enter_context(torch.cuda.device(cuda))
            if default_device.type != "cpu":
                stack.enter_context(default_device)
            yield

    def run() -> None:
        with state():
            body()

    return run
