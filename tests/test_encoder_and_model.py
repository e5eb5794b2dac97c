from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rali_core import devices
from rali_core.constants import CLIP_MEAN, CLIP_STD, OFFICIAL_OPEN_CLIP_NAME
from rali_core.encoder import EncoderConfig, build_encoder
from rali_core.model import RaliModel
from rali_core.preprocess import PreprocessConfig
from rali_core.vision_transformer import ClipEncoder, DinoEncoder, ViTConfig


def test_the_official_encoder_has_the_published_shape_and_no_text_tower() -> None:
    config = EncoderConfig.from_open_clip(OFFICIAL_OPEN_CLIP_NAME)
    assert (config.embed_dim, config.image_size, config.quick_gelu) == (768, 336, True)
    with torch.device("meta"):
        encoder = build_encoder(config)
    # CLIP ViT-L/14-336's vision encoder with projection: 304.3 million weights (OpenAI's model card rounds to 304 M).
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 304_293_888
    assert not any("token_embedding" in name for name, _ in encoder.named_parameters())
    assert type(encoder.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_a_timm_encoder_takes_the_configured_input_size() -> None:
    config = EncoderConfig(
        384,
        {"timm_model_name": "vit_small_patch14_dinov2", "timm_pool": "token", "timm_proj": "none", "image_size": 112},
    )
    encoder = build_encoder(config)
    with torch.inference_mode():
        assert encoder(torch.rand(2, 3, 112, 112)).shape == (2, 384)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"embed_dim": 0, "vision_cfg": {}}, "embed_dim must be a positive whole number"),
        ({"embed_dim": 8, "vision_cfg": [1]}, "vision_cfg must be a dictionary"),
        ({"embed_dim": 8, "vision_cfg": {}, "quick_gelu": 1}, "quick_gelu must be true or false"),
    ],
)
def test_an_unusable_configuration_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**config)  # type: ignore[arg-type]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="open_clip knows no model 'ViT-Z'"):
        EncoderConfig.from_open_clip("ViT-Z")
    with pytest.raises(ValueError, match="timm has no model 'no_such_model'"):
        build_encoder(EncoderConfig(8, {"timm_model_name": "no_such_model"}))


def test_gradients_reach_the_pixels_and_agree_with_finite_differences(tiny_model: RaliModel) -> None:
    model = tiny_model.double()
    pixels = torch.rand(1, 3, 40, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    pixels.requires_grad_()
    model(pixels).sum().backward()
    assert pixels.grad is not None
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-6 * direction
    with torch.no_grad():
        numeric = (model(pixels + step) - model(pixels - step)).item() / 2e-6
    assert numeric == pytest.approx((pixels.grad * direction).sum().item(), rel=1e-5)
    assert abs(numeric) > 1e-6


def test_the_score_is_the_weighted_sum_of_the_prototypes_scores(tiny_model: RaliModel) -> None:
    pixels = torch.rand(2, 3, 40, 100, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        weights = tiny_model.weights(pixels, coverage="tiles")
        scores = tiny_model(pixels, coverage="tiles")
        assert weights.shape == (2, 12)
        assert torch.allclose(weights @ tiny_model.head.scores, scores, atol=1e-6)


def test_a_told_domain_is_the_last_coordinate_whatever_the_image_says(telling_model: RaliModel) -> None:
    """The same as prototypes whose last coordinate is compared with that of the domain, in plain NumPy."""
    pixels = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        untold, weights = telling_model(pixels), telling_model.weights(pixels)
        told = {}
        for name in ("photographs", "generated"):
            telling_model.set_domain(name)
            told[telling_model.domain] = telling_model(pixels)
            assert torch.allclose(told[telling_model.domain], telling_model.weights(pixels) @ telling_model.head.scores)
        embedding = telling_model.embed(telling_model.preprocess(pixels).flatten(0, 1)).numpy().astype(np.float64)
    head = {name: tensor.numpy().astype(np.float64) for name, tensor in telling_model.head.state_dict().items()}
    projected = (embedding - head["mean"]) / abs(head["scale"]) @ head["components"].T
    projected[:, -1] = 4.0
    unit, prototypes = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (projected, head["prototypes"]))
    shares = np.exp(unit @ prototypes.T * head["logit_scale"])
    assert told["generated images"] == pytest.approx(shares @ head["scores"] / shares.sum(1), abs=1e-5)
    assert not torch.allclose(told["photographs"], told["generated images"], atol=1e-3)
    telling_model.set_domain(None)
    with torch.no_grad():
        assert torch.equal(telling_model(pixels), untold)
        assert torch.equal(telling_model.weights(pixels), weights)


@pytest.mark.parametrize("name", ["drawings", "", "generated images of mine"])
def test_a_domain_that_the_model_does_not_know_is_refused(name: str, telling_model: RaliModel) -> None:
    with pytest.raises(ValueError, match="unknown domain '.*'; this model knows 'photographs', 'generated images'"):
        telling_model.set_domain(name)
    telling_model.domains = {"generated drawings": 1.0, "generated images": 2.0}
    with pytest.raises(ValueError, match="unknown domain 'gen'"):
        telling_model.set_domain("gen")
    telling_model.domains = {}
    with pytest.raises(ValueError, match=r"this model knows none: leave `domain` \(--domain\) out"):
        telling_model.set_domain("photographs")


def test_encoder_and_preprocessing_must_agree_on_the_size() -> None:
    config = EncoderConfig(16, {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8})
    with pytest.raises(ValueError, match="the encoder takes 32 pixels, the preprocessing makes 64"):
        RaliModel(config, PreprocessConfig(64, CLIP_MEAN, CLIP_STD), pca_dim=4, prototypes=3)


def test_on_a_cpu_a_plain_encoder_gets_a_few_inputs_at_a_time(
    tiny_model: RaliModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_model.encoder
    assert isinstance(encoder, ClipEncoder)
    size = tiny_model.preprocess_config.image_size
    inputs = torch.randn(7, 3, size, size, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    whole = tiny_model.embed(inputs)
    widest = encoder.shape.seen_tokens * max(encoder.shape.hidden, 3 * encoder.shape.width) * 4
    monkeypatch.setattr("rali_core.vision_transformer.CPU_PASS_BYTES", 3 * widest)
    torch.testing.assert_close(tiny_model.embed(inputs), whole, atol=1e-6, rtol=1e-6)
    assert seen == [7, 3, 2, 2]


def test_the_bundled_encoders_batch_of_eight_is_cut_in_two_in_float32_only() -> None:
    shape = ViTConfig(518, 14, 384, 12, 6, 1536, "checkerboard")
    encoder = DinoEncoder(shape)
    inputs = torch.zeros(1, 3, 518, 518)
    assert (
        shape.seen_tokens
        == encoder.trunk.select_patches(encoder.trunk._pos_embed(encoder.trunk.patch_embed(inputs))).shape[1]
    )
    assert (shape.max_batch(4), shape.max_batch(2)) == (5, 11)


class CopiesToDevice(TorchDispatchMode):
    """Remembers whether each copy from main memory to the meta device was one that need not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asynchronous: list[bool] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and args[0].is_cpu and str(kwargs.get("device")) == "meta":
            self.asynchronous.append(bool(kwargs.get("non_blocking")))
        return function(*args, **kwargs)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_pass_never_waits_for_the_device(
    tiny_model: RaliModel, eight_bit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU: it has no values to hand back, so asking for one raises."""
    monkeypatch.setattr(devices, "ASYNCHRONOUS", {"meta"})
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the meta device
    tiny_model.preprocess_config = replace(tiny_model.preprocess_config, eight_bit=eight_bit)
    model, pixels = tiny_model.to("meta"), torch.zeros(2, 3, 90, 400, dtype=torch.uint8, device="meta")
    with CopiesToDevice() as copies, torch.no_grad():
        scores = model(pixels, coverage="full")
    assert scores.shape == (2,)
    assert len(copies.asynchronous) >= 3
    assert all(copies.asynchronous)
