"""Takes samples out of a running batch: tensors with guidance halves, scheduler state, generators.

Inside a pipeline's loop a callback can replace only what the pipeline reads back. The classes below read back
everything that has a batch axis; others (Flux keeps its pooled embeddings and guidance to itself, inpainting its
image latents and noise) do not, and are refused rather than guessed at: with `batch_size=1` every pipeline can be
pruned, because then a candidate's whole call ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SHRINKABLE = {
    "StableDiffusionPipeline": ("latents", "prompt_embeds"),
    "StableDiffusionImg2ImgPipeline": ("latents", "prompt_embeds"),
    "StableDiffusionXLPipeline": ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids"),
    "StableDiffusion3Pipeline": ("latents", "prompt_embeds", "pooled_prompt_embeds"),
}
_KEPT_IN_LOOP = (
    "ip_adapter_image",
    "ip_adapter_image_embeds",
    "skip_guidance_layers",
    "cross_attention_kwargs",
    "joint_attention_kwargs",
)


def tensors_to_shrink(pipe: Any, arguments: dict[str, Any]) -> tuple[str, ...]:
    """Names of the loop's tensors with a batch axis, for `callback_on_step_end_tensor_inputs`.

    Raises:
        ValueError: This pipeline's loop, or this call of it, keeps its own batch elsewhere.
    """
    remedy = "use batch_size=1, with which every pipeline can be pruned"
    # The class itself: a subclass may have its own loop.
    names = _SHRINKABLE.get(type(pipe).__name__)
    if names is None:
        raise ValueError(
            f"a batch inside {type(pipe).__name__} cannot be made smaller while it runs (it can in "
            f"{', '.join(_SHRINKABLE)}); {remedy}"
        )
    # Older versions read fewer of them back (SD3's pooled embeddings before diffusers 0.32, for one).
    missing = sorted(set(names) - set(type(pipe)._callback_tensor_inputs))
    if missing:
        raise ValueError(
            f"a batch inside this version's {type(pipe).__name__} cannot be made smaller while it runs, as its "
            f"callback does not reach {', '.join(missing)}; update diffusers, or {remedy}"
        )
    for name in _KEPT_IN_LOOP:
        if arguments.get(name) is not None:
            raise ValueError(f"a batch made with {name} cannot be made smaller while it runs; {remedy}")
    denoiser = getattr(pipe, "unet", None)
    if denoiser is not None and getattr(denoiser.config, "time_cond_proj_dim", None) is not None:
        raise ValueError(f"a batch with a guidance embedding cannot be made smaller while it runs; {remedy}")
    return names


def shrink_tensors(tensors: dict[str, Tensor], kept: list[int], batch: int) -> dict[str, Tensor]:
    """Keep some samples of each tensor; a tensor of twice the batch has one half for each side of the guidance.

    Raises:
        ValueError: A tensor's batch axis is neither `batch` nor twice that.
    """
    result = {}
    for name, tensor in tensors.items():
        if len(tensor) == batch:
            index = kept
        elif len(tensor) == 2 * batch:
            index = [*kept, *(batch + sample for sample in kept)]
        else:
            raise ValueError(f"expected {name} with a batch axis of {batch} or {2 * batch}, got {tuple(tensor.shape)}")
        result[name] = tensor[index]
    return result


def shrink_scheduler(scheduler: Any, kept: list[int], shape: torch.Size) -> None:
    """Keep some samples of a scheduler's state from earlier steps.

    Multistep schedulers hold earlier outputs in the shape of the latents, in attributes or lists of them; their tables
    (sigmas, timesteps) are vectors and stay.

    Args:
        scheduler: The running call's own scheduler; changed in place.
        kept: 0-based samples that stay.
        shape: Shape of the latents before.

    Raises:
        ValueError: It draws the noise of the whole batch at once.
    """
    if getattr(scheduler, "noise_sampler", None) is not None:
        raise ValueError(f"{type(scheduler).__name__} draws noise for the whole batch; use batch_size=1")

    def narrow(value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape == shape:
            return value[kept]
        if isinstance(value, list):
            return [narrow(item) for item in value]
        return value

    for name, value in list(vars(scheduler).items()):
        if isinstance(value, Tensor | list):
            setattr(scheduler, name, narrow(value))


def shrink_generators(generators: list[torch.Generator], kept: list[int]) -> None:
    """Keep some generators, in place: the pipeline's loop holds this very list."""
    generators[:] = [generators[sample] for sample in kept]
