"""The core of score guidance, and gradients through weights that were made in inference mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rali_core.guidance import GuidanceSettings, Guide, rms
from rali_core.inference_tensors import input_gradient


def test_nudges_go_down_the_gradient_within_their_limit_and_are_pulled_back() -> None:
    guide = Guide(GuidanceSettings(scale=1e9, clip=0.03, regularisation=0.5))
    latents, gradient = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    first = guide.nudge(gradient, latents)
    assert torch.allclose(rms(first) / rms(latents), torch.full((2, 1, 1, 1), 0.03))
    assert ((first * gradient).flatten(1).sum(dim=1) < 0).all()
    assert torch.allclose(guide.nudge(gradient, latents), first - 0.5 * first)
    guide.reset()
    assert torch.equal(guide.nudge(gradient, latents), first)


@pytest.mark.parametrize(
    "wrong", [{"start": 0.8, "stop": 0.2}, {"stop": 1.1}, {"scale": -1.0}, {"clip": 0.0}, {"regularisation": 2.0}]
)
def test_settings_out_of_range_are_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        GuidanceSettings(**wrong)


def test_the_gradient_is_the_same_in_inference_mode_and_weights_are_left_as_they_are(tiny_model: Any) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        decoder = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid())  # its weights are inference tensors

    def loss(x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = 1.0 - tiny_model(decoder(x))
        return scores

    with torch.inference_mode():
        before = [parameter.clone() for parameter in decoder.parameters()]
        gradient = input_gradient([decoder, tiny_model], loss, pixels)
        assert all(map(torch.equal, decoder.parameters(), before))
        assert all(parameter.is_inference() for parameter in decoder.parameters())
    assert not gradient.is_inference()
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    step = 1e-2 / gradient.norm()
    with torch.no_grad():
        assert loss(pixels - step * gradient).sum() < loss(pixels).sum()
