from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rali_core.attributes import Attribute, AttributeProbes
from rali_core.checkpoint import load_model, read_metadata, save_model
from rali_core.cli import main
from rali_core.encoder import EncoderConfig
from rali_core.model import RaliModel
from rali_core.training.averaging import average_models


@pytest.fixture
def other_model(tiny_model: RaliModel) -> RaliModel:
    other = RaliModel(tiny_model.encoder_config, tiny_model.preprocess_config, pca_dim=8, prototypes=12).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.uniform_(generator=torch.Generator().manual_seed(1))
    return other


def test_the_average_is_that_of_every_tensor(tiny_model: RaliModel, other_model: RaliModel) -> None:
    result = average_models([tiny_model, other_model], [3.0, 1.0]).state_dict()
    for name, tensor in tiny_model.state_dict().items():
        assert torch.allclose(result[name], 0.75 * tensor + 0.25 * other_model.state_dict()[name], atol=1e-6), name
    half = average_models([tiny_model, tiny_model]).state_dict()
    assert all(torch.equal(half[name], tensor) for name, tensor in tiny_model.state_dict().items())


def test_models_that_cannot_be_averaged_are_refused(tiny_model: RaliModel) -> None:
    with pytest.raises(ValueError, match="at least two models and a weight for each, got 1 and 1"):
        average_models([tiny_model])
    with pytest.raises(ValueError, match=r"weights must be at least 0 and not all 0, got \[1\.0, -1\.0\]"):
        average_models([tiny_model, tiny_model], [1.0, -1.0])
    smaller = RaliModel(tiny_model.encoder_config, tiny_model.preprocess_config, pca_dim=4, prototypes=12)
    with pytest.raises(ValueError, match="heads of different sizes"):
        average_models([tiny_model, smaller])
    vision = {**tiny_model.encoder_config.vision_cfg, "layers": 1}
    encoder = EncoderConfig(embed_dim=16, vision_cfg=vision)
    shallow = RaliModel(encoder, tiny_model.preprocess_config, pca_dim=8, prototypes=12)
    with pytest.raises(ValueError, match="different encoders or preprocessing"):
        average_models([tiny_model, shallow])


def test_the_command_writes_a_model_file(tiny_file: Path, other_model: RaliModel, tmp_path: Path) -> None:
    loaded = load_model(tiny_file)
    save_model(tmp_path / "other.safetensors", other_model, loaded.info)
    output = tmp_path / "average.safetensors"
    assert main(["average", str(tiny_file), str(tmp_path / "other.safetensors"), "-o", str(output)]) == 0
    averaged = load_model(output).model.state_dict()["head.scores"]
    expected = (loaded.model.head.scores + other_model.head.scores) / 2
    assert torch.allclose(averaged, expected, atol=1e-6)
    assert [entry["weight"] for entry in read_metadata(output)["training"]["average_of"]] == [1.0, 1.0]


def test_probes_belong_to_one_encoder_and_are_not_averaged(tiny_model: RaliModel, other_model: RaliModel) -> None:
    tiny_model.probes = AttributeProbes([Attribute("blur", "blurred", 0.5, 0.9)], 16)
    assert average_models([tiny_model, other_model]).attributes == ()
