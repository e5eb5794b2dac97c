"""Hugging Face's CLIP vision encoder in open_clip's naming.

The same network, stored differently: open_clip holds the query, key and value weights of a block as one matrix, in that
order, and multiplies by the projection from the right, so that it is the transpose of Hugging Face's linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .layout import Architecture

DROPPED_PREFIXES = ("text_model.", "text_projection.")
DROPPED_NAMES = ("logit_scale", "vision_model.embeddings.position_ids")
"""Parts of a `CLIPModel` that no image embedding depends on."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Mapped:
    """One tensor of the model file and where it comes from.

    Attributes:
        target: Its name in open_clip's encoder.
        sources: Names in Hugging Face's `CLIPModel`.
        shape: Shape of each source.
        how: Copy the source, stack the sources along the first axis, or transpose the source.
    """

    target: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    how: Literal["copy", "stack", "transpose"] = "copy"

    def make(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Our tensor, in the sources' dtype."""
        parts = [tensors[name].detach() for name in self.sources]
        if self.how == "stack":
            return torch.cat(parts)
        return parts[0].T.contiguous() if self.how == "transpose" else parts[0].contiguous()


def map_encoder(architecture: Architecture) -> Iterator[Mapped]:
    """All tensors of the encoder, in open_clip's order of layers."""
    width, hidden, patch = architecture.width, architecture.intermediate, architecture.patch
    positions = (architecture.encoder.image_size // patch) ** 2 + 1
    encoder = "vision_model."
    yield Mapped("class_embedding", (encoder + "embeddings.class_embedding",), (width,))
    yield Mapped("positional_embedding", (encoder + "embeddings.position_embedding.weight",), (positions, width))
    yield Mapped("conv1.weight", (encoder + "embeddings.patch_embedding.weight",), (width, 3, patch, patch))
    yield from _map_layer("ln_pre", encoder + "pre_layrnorm", (width,))
    for number in range(architecture.layers):
        ours, theirs = f"transformer.resblocks.{number}.", f"{encoder}encoder.layers.{number}."
        yield from _map_layer(ours + "ln_1", theirs + "layer_norm1", (width,))
        for kind, shape in (("weight", (width, width)), ("bias", (width,))):
            sources = tuple(f"{theirs}self_attn.{letter}_proj.{kind}" for letter in "qkv")
            yield Mapped(f"{ours}attn.in_proj_{kind}", sources, shape, "stack")
        yield from _map_layer(ours + "attn.out_proj", theirs + "self_attn.out_proj", (width, width))
        yield from _map_layer(ours + "ln_2", theirs + "layer_norm2", (width,))
        yield from _map_layer(ours + "mlp.c_fc", theirs + "mlp.fc1", (hidden, width))
        yield from _map_layer(ours + "mlp.c_proj", theirs + "mlp.fc2", (width, hidden))
    yield from _map_layer("ln_post", encoder + "post_layernorm", (width,))
    yield Mapped("proj", ("visual_projection.weight",), (architecture.encoder.embed_dim, width), "transpose")


def _map_layer(ours: str, theirs: str, shape: tuple[int, ...]) -> Iterator[Mapped]:
    yield Mapped(ours + ".weight", (theirs + ".weight",), shape)
    yield Mapped(ours + ".bias", (theirs + ".bias",), shape[:1])


def is_dropped(name: str) -> bool:
    """Whether a tensor of a `CLIPModel` belongs to its text side, or is no weight."""
    return name.startswith(DROPPED_PREFIXES) or name in DROPPED_NAMES


def check_tensor(tensor: object, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor, without reading it; None where nothing is."""
    if not isinstance(tensor, Tensor):
        return f"expected a tensor, got {type(tensor).__name__}"
    if tuple(tensor.shape) != shape:
        return f"expected shape {shape}, got {tuple(tensor.shape)}"
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return f"expected an ordinary tensor, got a {tensor.layout} one on {tensor.device}"
    if tensor.dtype not in FLOATS:
        return f"expected float16, bfloat16, float32 or float64, got {tensor.dtype}"
    # A view may repeat a few bytes over a huge shape; the shape was compared above, this refuses overlaps in it.
    if math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "its storage holds fewer values than its shape"
    return None


def check_values(tensor: Tensor, dtype: torch.dtype) -> str | None:
    """What is wrong with a tensor's values where it is to be stored as `dtype`; None where nothing is."""
    low, high = (float(value) for value in torch.aminmax(tensor)) if tensor.numel() else (0.0, 0.0)
    if not (abs(low) < math.inf and abs(high) < math.inf):  # NaN makes either comparison false
        return "holds NaN or infinite values"
    limit = torch.finfo(dtype).max
    if max(-low, high) > limit:
        return f"holds {max(-low, high):.4g}, {dtype} ends at {limit:.5g}: convert with another --dtype"
    return None
