"""Images from smooth to noisy, as pixels and as PIL images; the tiny model is the one of all tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def pixels() -> Any:
    """(5, 3, 40, 40) uint8-valued images in [0, 1], from smooth to noisy."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(5, 3, 40, 40, generator=generator)
    return ((0.5 + torch.linspace(0.2, 1, 5).view(5, 1, 1, 1) * (noise - 0.5)) * 255).round() / 255


@pytest.fixture(scope="session")
def pil_images(pixels: Any) -> list[Image.Image]:
    arrays = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
