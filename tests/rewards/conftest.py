"""A tiny RaliModel with random weights, as an object and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.checkpoint import ModelInfo, save_model
from rali_core.constants import CLIP_MEAN, CLIP_STD
from rali_core.encoder import EncoderConfig
from rali_core.model import RaliModel
from rali_core.preprocess import PreprocessConfig
from rali_core.scorer import RaliScorer


def build_model() -> RaliModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = RaliModel(
            EncoderConfig(
                embed_dim=16, vision_cfg={"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
            ),
            PreprocessConfig(32, CLIP_MEAN, CLIP_STD),
            pca_dim=8,
            prototypes=12,
        )
        with torch.no_grad():
            model.head.components.copy_(torch.randn(8, 16) / 4)
            model.head.prototypes.copy_(torch.randn(12, 8))
            model.head.scores.copy_(torch.rand(12))
            model.head.logit_scale.fill_(4.0)
    return model.eval()


@pytest.fixture
def model() -> RaliModel:
    return build_model()


@pytest.fixture(scope="session")
def scorer() -> RaliScorer:
    return RaliScorer(build_model(), ModelInfo("tiny", "Apache-2.0"), device="cpu")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, build_model(), ModelInfo("tiny", "Apache-2.0"))
    return path


@pytest.fixture(scope="session")
def pixels() -> Any:
    """(5, 3, 40, 40) uint8-valued pictures in [0, 1], from smooth to noisy."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(5, 3, 40, 40, generator=generator)
    return ((0.5 + torch.linspace(0, 1, 5).view(5, 1, 1, 1) * (noise - 0.5)) * 255).round() / 255


@pytest.fixture(scope="session")
def pictures(pixels: Any) -> list[Image.Image]:
    arrays = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
