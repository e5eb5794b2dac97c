from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rali_core.encoder import EncoderConfig, build_encoder
from rali_core.training.backbones import TINYVIT_CONFIG, load_backbone

TINYVIT = EncoderConfig(embed_dim=320, vision_cfg={**TINYVIT_CONFIG, "image_size": 224})


def write_graph(state: dict[str, torch.Tensor], path: Path) -> None:
    """The tensors as PyTorch's exporter lays them out: folded convolutions and transposed, anonymous matrices."""
    initializers, nodes, number = [], [], 2000

    def add(name: str, tensor: torch.Tensor) -> str:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(tensor.numpy()), name))
        return name

    for name, tensor in state.items():
        module, _, kind = name.removeprefix("trunk.").rpartition(".")
        path_of_node = "/" + re.sub(r"(stages|blocks)/(\d+)", r"\1/\1.\2", module.replace(".", "/"))
        number += 1
        if tensor.ndim == 4:
            bias = state[name.removesuffix("weight") + "bias"]
            inputs = ["x", add(f"onnx::Conv_{number}", tensor), add(f"onnx::Conv_b{number}", bias)]
            nodes.append(helper.make_node("Conv", inputs, [f"y{number}"], name=path_of_node + "/Conv"))
        elif tensor.ndim == 2 and kind == "weight":
            inputs = ["x", add(f"onnx::MatMul_{number}", tensor.T)]
            nodes.append(helper.make_node("MatMul", inputs, [f"y{number}"], name=path_of_node + "/MatMul"))
        elif not (kind == "bias" and state.get(name.removesuffix("bias") + "weight", tensor).ndim == 4):
            add(name.removeprefix("trunk."), tensor)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "tower", [value], [value], initializers)
    onnx.save(helper.make_model(graph), path)


@pytest.fixture
def tinyvit() -> torch.nn.Module:
    torch.manual_seed(3)
    tower = build_encoder(TINYVIT)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return tower


def test_tinyvit_is_read_from_its_graph_tensor_by_tensor(tinyvit: torch.nn.Module, tmp_path: Path) -> None:
    write_graph(tinyvit.state_dict(), tmp_path / "tiny_vit_5m_224_in22k.onnx")
    with zipfile.ZipFile(tmp_path / "carrier.whl", "w") as wheel:
        wheel.write(tmp_path / "tiny_vit_5m_224_in22k.onnx", "package/models/tiny_vit_5m_224_in22k.onnx")
    backbone = load_backbone(tmp_path / "carrier.whl", image_size=448)
    assert backbone.source["name"] == "TinyViT-5M"
    assert backbone.preprocess.image_size == backbone.encoder.image_size == 448
    expected = tinyvit.state_dict()
    assert set(backbone.state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(backbone.state[name], tensor), name
    build_encoder(backbone.encoder).load_state_dict(backbone.state)


def test_a_size_that_tinyvit_cannot_halve_is_refused(tinyvit: torch.nn.Module, tmp_path: Path) -> None:
    write_graph(tinyvit.state_dict(), tmp_path / "tiny_vit_5m_224_in22k.onnx")
    with pytest.raises(ValueError, match="image_size must be a multiple of 32 for TinyViT, got 300"):
        load_backbone(tmp_path / "tiny_vit_5m_224_in22k.onnx", image_size=300)


def test_a_graph_of_something_else_is_refused(tinyvit: torch.nn.Module, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in tinyvit.state_dict().items() if "head.norm" not in name}
    write_graph(state, tmp_path / "tiny_vit_5m_224_in22k.onnx")
    with pytest.raises(ValueError, match=r"this is not tiny_vit_5m_224_in22k\.onnx"):
        load_backbone(tmp_path / "tiny_vit_5m_224_in22k.onnx")


def test_folding_the_batch_norms_changes_nothing_that_timm_computes() -> None:
    import timm

    torch.manual_seed(0)
    plain = timm.create_model("tiny_vit_5m_224", num_classes=0).eval()
    with torch.no_grad():
        for name, buffer in plain.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for name, parameter in plain.named_parameters():
            if ".bn." in name:
                parameter.normal_(1 if name.endswith("weight") else 0, 0.1)
    state = {}
    for name, module in plain.named_modules():
        if type(module).__name__ == "ConvNorm":
            fused = module.fuse()
            state[f"trunk.{name}.conv.weight"], state[f"trunk.{name}.conv.bias"] = fused.weight, fused.bias
    state |= {
        "trunk." + name: t for name, t in plain.state_dict().items() if ".conv." not in name and ".bn." not in name
    }
    tower = build_encoder(TINYVIT)
    tower.load_state_dict(state)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(tower(pixels), plain(pixels), atol=1e-4)
