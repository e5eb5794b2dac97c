from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rali_core.rewards import RaliLoss


def test_the_loss_is_the_shortfall_below_a_perfect_score(tiny_model: Any, pixels: Any) -> None:
    scores = tiny_model(pixels)
    assert torch.allclose(RaliLoss(tiny_model, reduction="none")(pixels), 1 - scores)
    assert torch.allclose(RaliLoss(tiny_model)(pixels), (1 - scores).mean())
    assert torch.allclose(RaliLoss(tiny_model, reduction="sum")(pixels), (1 - scores).sum())


def test_beyond_the_target_there_is_neither_loss_nor_gradient(tiny_model: Any, pixels: Any) -> None:
    scores = tiny_model(pixels).detach()
    target = float(scores.sort().values[2:4].mean())
    image = pixels.clone().requires_grad_(True)
    losses = RaliLoss(tiny_model, target=target, reduction="none")(image)
    assert torch.allclose(losses, (target - scores).clamp_min(0))
    losses.sum().backward()
    moved = image.grad.flatten(1).abs().sum(dim=1) > 0
    assert torch.equal(moved, scores < target)
    assert 0 < int(moved.sum()) < len(scores)


def test_the_gradient_agrees_with_finite_differences_in_float64(tiny_model: Any) -> None:
    loss = RaliLoss(tiny_model.double())
    generator = torch.Generator().manual_seed(1)
    # Larger than the encoder's input, so that the antialiased resize is in the chain; away from 0 and 1, where it clips.
    pixels = (0.3 + 0.4 * torch.rand(1, 3, 36, 34, generator=generator, dtype=torch.float64)).requires_grad_(True)
    assert torch.autograd.gradcheck(loss, (pixels,), eps=1e-6, atol=1e-7, rtol=1e-4, fast_mode=True)
    (gradient,) = torch.autograd.grad(loss(pixels), pixels)
    for index in ((0, 0, 5, 5), (0, 1, 20, 11), (0, 2, 30, 30)):
        step = torch.zeros_like(pixels)
        step[index] = 1e-5
        with torch.no_grad():
            slope = (loss(pixels + step) - loss(pixels - step)) / 2e-5
        assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-4, abs=1e-10)


def test_the_gradient_through_a_vae_to_the_latents_agrees_with_finite_differences_in_float64(tiny_model: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    from rali_core.diffusers_hook import decode_latents

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval().double()  # fmt: skip
    loss = RaliLoss(tiny_model.double())
    generator = torch.Generator().manual_seed(0)
    latents = (0.2 * torch.randn(1, 4, 16, 16, generator=generator, dtype=torch.float64)).requires_grad_(True)

    def from_latents(values: torch.Tensor) -> torch.Tensor:
        return loss.from_latents(values, lambda x: decode_latents(vae, x))

    assert from_latents(latents).dtype == torch.float64
    assert torch.autograd.gradcheck(from_latents, (latents,), eps=1e-6, atol=1e-7, rtol=1e-4, fast_mode=True)
    (gradient,) = torch.autograd.grad(from_latents(latents), latents)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (from_latents(latents + h * direction) for h in (1e-5, -1e-5))
    assert float(gradient.norm()) > 1e-4
    assert float((ahead - behind) / 2e-5) == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_in_bfloat16_the_gradient_points_the_same_way(tiny_model: Any, pixels: Any) -> None:
    image = pixels.clone().requires_grad_(True)
    (exact,) = torch.autograd.grad(RaliLoss(tiny_model)(image), image)
    tiny_model.encoder.bfloat16()
    value = RaliLoss(tiny_model)(image)
    (rough,) = torch.autograd.grad(value, image)
    assert value.dtype == torch.float32
    assert torch.isfinite(rough).all()
    assert float(nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), dim=0)) > 0.95


def test_descending_the_loss_raises_the_score(tiny_model: Any, pixels: Any) -> None:
    loss = RaliLoss(tiny_model)
    image = pixels.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([image], lr=0.01)
    before = float(loss(image).detach())
    for _ in range(5):
        optimiser.zero_grad()
        loss(image.clamp(0, 1)).backward()
        optimiser.step()
    assert float(loss(image.detach().clamp(0, 1))) < before - 0.005


def test_the_scorer_itself_is_never_trained(tiny_model: Any, pixels: Any) -> None:
    loss = RaliLoss(tiny_model)
    owner = nn.ModuleList([loss]).train()
    image = pixels.clone().requires_grad_(True)
    loss(image).backward()
    assert owner.training
    assert not tiny_model.training
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


@pytest.mark.parametrize("target", [None, 0.9, 0.03])
def test_a_blank_image_counts_as_the_worst_and_keeps_the_models_gradient(
    tiny_model: Any, pixels: Any, target: float | None
) -> None:
    batch = pixels.clone()
    batch[1], batch[2] = 0.0, torch.linspace(0, 1, batch.shape[-1])
    image = batch.requires_grad_(True)
    scores = tiny_model(image)
    (expected,) = torch.autograd.grad(-scores.sum(), image)
    losses = RaliLoss(tiny_model, target=target, reduction="none")(image)
    best = 1.0 if target is None else target
    assert losses[1:3].tolist() == pytest.approx([best - 0.02] * 2, abs=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), image)
    torch.testing.assert_close(gradient[1:3], expected[1:3])
    assert gradient[1:3].abs().sum() > 0
    others = [index for index in range(len(batch)) if index not in (1, 2)]
    assert torch.equal(losses[others], (best - scores[others]).clamp_min(0))


def test_an_unknown_reduction_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'max'"):
        RaliLoss(tiny_model, reduction="max")  # type: ignore[arg-type]
