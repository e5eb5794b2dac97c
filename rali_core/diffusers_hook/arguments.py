"""The caller's pipeline arguments: checked, split by prompt, and completed with one generator per candidate."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

RESERVED_ARGUMENTS = {
    "generator": "each candidate gets its own; pass seeds=[...]",
    "latents": "each candidate starts from the noise of its seed; pass seeds=[...]",
    "callback": "it is deprecated in diffusers; pass callback_on_step_end",
    "callback_steps": "it is deprecated in diffusers; pass callback_on_step_end",
    "return_dict": "best_of_n reads the pipeline's output object",
}
_PER_PROMPT_LISTS = frozenset(
    {
        *("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3"),
        *("image", "mask_image", "control_image"),
    }
)
_PER_PROMPT_TENSORS = frozenset(
    {
        *("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
        *("prompt_attention_mask", "negative_prompt_attention_mask", "image", "mask_image", "control_image"),
    }
)
_RAW_TENSORS = frozenset(
    {
        *("KandinskyPipeline", "KandinskyInpaintPipeline", "KandinskyCombinedPipeline"),
        *("KandinskyInpaintCombinedPipeline", "KandinskyV22Pipeline", "KandinskyV22ControlnetPipeline"),
        *("KandinskyV22InpaintPipeline", "KandinskyV22CombinedPipeline", "KandinskyV22InpaintCombinedPipeline"),
        "Kandinsky3Pipeline",
    }
)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_pipe_arguments(pipe: Any, arguments: dict[str, Any]) -> None:
    """Refuse arguments that cannot be combined with best-of-N.

    Raises:
        TypeError: `pipe` is not a pipeline, or it has no such argument.
        ValueError: An argument that best-of-N sets itself, or an unknown output type.
    """
    if not callable(pipe) or not (hasattr(type(pipe), "components") or hasattr(pipe, "components")):
        raise TypeError(f"expected a diffusers pipeline, got {type(pipe).__name__}")
    if descends_from(type(pipe), {"ModularPipeline"}):
        raise TypeError(f"{type(pipe).__name__} is made of blocks: put a RaliBestOfNBlock among them")
    for name in sorted(RESERVED_ARGUMENTS.keys() & arguments.keys()):
        raise ValueError(f"{name} cannot be given here: {RESERVED_ARGUMENTS[name]}")
    check_makes_images(type(pipe))
    output_type = arguments.get("output_type", "pil")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
    # Some of diffusers' pipelines silently accept unknown arguments: `treshold=0.8` would be ignored.
    known = inspect.signature(type(pipe).__call__).parameters
    if type(pipe).__module__.startswith("diffusers."):
        for name in arguments.keys() - known.keys():
            raise TypeError(f"neither best_of_n nor {type(pipe).__name__} has an argument {name!r}")


def output_fields(kind: type) -> tuple[str, ...] | None:
    """Fields of the output object that a pipeline class returns, such as `("images",)` or `("frames",)`.

    Read from the return annotation of `__call__`, without calling it; None if it names no output class.
    """
    for base in kind.__mro__:
        call = vars(base).get("__call__")
        function = inspect.unwrap(call) if callable(call) else None
        code = getattr(function, "__code__", None)
        if code is None:
            continue
        found = [function.__globals__.get(name) for name in code.co_names if name.endswith("Output")]  # type: ignore[union-attr]
        fields = [
            field.name for output in found if dataclasses.is_dataclass(output) for field in dataclasses.fields(output)
        ]
        if fields:
            return tuple(dict.fromkeys(fields))
    return None


def why_no_images(kind: type) -> str | None:
    """Why best-of-N cannot choose among a pipeline class's outputs, or None if it can."""
    name = kind.__name__
    if name.startswith("LEditsPPPipeline"):
        return f"{name} edits an inverted image: its noise does not come from a seed"
    if name == "QwenImageLayeredPipeline":
        return f"{name} makes several layers from one seed, which have no score each"
    fields = output_fields(kind)
    if fields is None and "Prior" in name:
        return f"{name} makes embeddings, not images"
    if fields is None or {"images", "image"} & set(fields):
        return None
    if "frames" in fields:
        return None
    return f"{name} gives {', '.join(fields)}, and best_of_n needs images"


def descends_from(kind: type, names: Collection[str]) -> bool:
    """Whether a class or one of its bases has one of these names; classes that this diffusers lacks can be named."""
    return any(base.__name__ in names for base in kind.__mro__)


def gives_raw_tensors(kind: type) -> bool:
    """Whether a pipeline class gives its decoder's values, in [-1, 1], for `output_type="pt"`."""
    return descends_from(kind, _RAW_TENSORS)


def makes_videos(kind: type) -> bool:
    """Whether a pipeline class makes videos, as lists of frames."""
    fields = set(output_fields(kind) or ())
    return "frames" in fields and not {"images", "image"} & fields


def check_video_arguments(arguments: dict[str, Any], batch_size: int) -> None:
    """Refuse what best-of-N does not support for videos.

    Raises:
        ValueError: Several videos a call, or latents as output.
    """
    if batch_size != 1 or arguments.get("num_videos_per_prompt", 1) != 1:
        raise ValueError("videos are made one a call: leave out batch_size and num_videos_per_prompt")
    if arguments.get("output_type") == "latent":
        raise ValueError("a video's frames are scored, and output_type='latent' gives none: take 'pil', 'np' or 'pt'")


def check_makes_images(kind: type) -> None:
    """Refuse pipelines that generate something other than images, before anything is generated.

    Raises:
        ValueError: The message says what it generates.
    """
    reason = why_no_images(kind)
    if reason is not None:
        raise ValueError(reason)


def choose_seeds(n: int, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """The candidates' seeds: the given ones, else 0, 1, ... n - 1.

    Raises:
        ValueError: Not n of them, not whole numbers in 0..2^63-1, or a duplicate.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    chosen = tuple(range(n)) if seeds is None else tuple(seeds)
    if len(chosen) != n:
        raise ValueError(f"expected n = {n} seeds, got {len(chosen)}")
    for seed in chosen:
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ValueError(f"a seed is a whole number in 0..2^63-1, got {seed!r}")
    if len(set(chosen)) != n:
        raise ValueError("the seeds hold the same number twice; both would make the same image")
    return tuple(int(seed) for seed in chosen)


def split_by_prompt(pipe: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """One set of arguments per prompt.

    Prompts may be a list, or embeddings with a batch axis; an argument given once serves all prompts.

    Raises:
        ValueError: A list beside the prompts has another length, or it is ambiguous what belongs to which prompt.
    """
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if isinstance(prompt, list | tuple):
        count = len(prompt)
        if count == 0:
            raise ValueError("prompt is an empty list")
    elif isinstance(embeds, Tensor):
        count = len(embeds)
    else:
        return [dict(arguments)]
    images = arguments.get("image")
    if count > 1 and isinstance(images, list) and getattr(pipe, "controlnet", None) is not None:
        raise ValueError(
            "a list of images can mean one per prompt or one per ControlNet; call best_of_n once per prompt instead"
        )
    return [{name: _part(name, value, index, count) for name, value in arguments.items()} for index in range(count)]


def _part(name: str, value: Any, index: int, count: int) -> Any:
    if name in _PER_PROMPT_LISTS and isinstance(value, list | tuple):
        if len(value) != count:
            raise ValueError(f"expected {count} entries in {name}, one per prompt, got {len(value)}")
        return value[index]
    batched = isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.ndim == 4)
    if name in _PER_PROMPT_TENSORS and batched and value.ndim > 1 and not (name.endswith("image") and value.ndim < 4):
        if len(value) not in (1, count):
            raise ValueError(f"expected {name} for {count} prompts, got shape {tuple(value.shape)}")
        return value[index : index + 1] if len(value) == count else value
    return value


def complete_call(
    arguments: dict[str, Any], seeds: Sequence[int], generator_device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Arguments of one call that generates one image per seed.

    Args:
        arguments: The caller's, without those that `UserCallback` takes.
        seeds: One per image.
        generator_device: Where the noise is drawn. On the CPU, whatever the pipeline's device, the same seed gives the
            same noise everywhere; many published seeds were drawn on a GPU.

    Returns:
        Arguments for the pipeline. Alone, a seed's image is
        `pipe(..., generator=torch.Generator(generator_device).manual_seed(seed))`.
    """
    # Pipelines write into such dictionaries (`joint_attention_kwargs`), and calls may be interleaved.
    own = {name: copy.copy(value) if isinstance(value, dict) else value for name, value in arguments.items()}
    generators = [torch.Generator(generator_device).manual_seed(seed) for seed in seeds]
    return {
        **own,
        "generator": generators if len(seeds) > 1 else generators[0],
        **({"num_images_per_prompt": len(seeds)} if len(seeds) > 1 else {}),
    }


def isolate(pipe: Any) -> Any:
    """A shallow copy with its own scheduler: same weights, and nothing that a call writes reaches the original."""
    clone = copy.copy(pipe)
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is not None:
        if "step" in vars(scheduler):
            raise ValueError("pipe.scheduler is in use by a RaliStepCallback or RaliGuidance; leave its `with` first")
        clone.scheduler = copy.deepcopy(scheduler)
    if hasattr(clone, "set_progress_bar_config"):
        clone.set_progress_bar_config(**{**getattr(pipe, "_progress_bar_config", {}), "disable": True})
    return clone


StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]


class UserCallback:
    """The caller's own `callback_on_step_end`, called before ours: a function or a diffusers `PipelineCallback`.

    Args:
        arguments: The pipeline's arguments; the callback and its tensor inputs are taken out.

    Attributes:
        tensor_inputs: Names of the tensors that it wants.

    Raises:
        TypeError: The callback cannot be called.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._callback: StepCallback | None = arguments.pop("callback_on_step_end", None)
        wanted = arguments.pop("callback_on_step_end_tensor_inputs", None)
        self.tensor_inputs: tuple[str, ...] = ()
        if self._callback is None:
            return
        if not callable(self._callback):
            raise TypeError(f"callback_on_step_end must be callable, got {self._callback!r}")
        named = getattr(self._callback, "tensor_inputs", None)
        self.tensor_inputs = tuple(named if named is not None else wanted if wanted is not None else ["latents"])

    def wanted_with(self, ours: Sequence[str]) -> list[str]:
        """Our tensor inputs and those of the callback, each once."""
        return list(dict.fromkeys([*ours, *self.tensor_inputs]))

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Call it, if there is one, with the tensors that it wants; returns those that it replaced."""
        if self._callback is None:
            return {}
        return self._callback(pipe, step, timestep, {name: tensors[name] for name in self.tensor_inputs}) or {}


def takes_callback(pipe: Any) -> bool:
    """Whether the pipeline follows the `callback_on_step_end` protocol."""
    return "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters


def describe(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as plain JSON types, for metadata; other values are described."""
    return {name: _describe(value) for name, value in sorted(arguments.items())}


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, Image.Image):
        return f"image {value.width} x {value.height}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {tuple(value.shape)}"
    return type(value).__name__
