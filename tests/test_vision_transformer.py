from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rali_core import encoder as encoder_module
from rali_core.encoder import EncoderConfig, build_encoder
from rali_core.patch_tokens import embed_patches
from rali_core.vision_transformer import ClipEncoder, DinoEncoder

DINO = {"timm_model_name": "vit_small_patch14_dinov2", "timm_pool": "token", "timm_proj": "none", "image_size": 60}
CLIP = {"image_size": 36, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "mlp_ratio": 3.0}
ENCODERS = [
    pytest.param(EncoderConfig(384, DINO), DinoEncoder, id="dinov2"),
    pytest.param(EncoderConfig(20, CLIP, quick_gelu=True), ClipEncoder, id="clip, quick gelu"),
    pytest.param(EncoderConfig(20, CLIP), ClipEncoder, id="clip, gelu"),
]


def both(config: EncoderConfig, kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module]:
    """Our encoder and open_clip's with the same weights, none of them near 0 or 1."""
    ours = build_encoder(config)
    monkeypatch.setattr(encoder_module, "build_plain", lambda *_, **__: None)
    theirs = build_encoder(config)
    assert type(ours) is kind
    assert type(theirs) is not kind
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in theirs.state_dict().items()}
    for encoder in (ours, theirs):
        encoder.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize(("config", "kind"), ENCODERS)
def test_the_encoder_has_the_names_values_and_gradients_of_open_clips(
    config: EncoderConfig, kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for encoder in both(config, kind, monkeypatch):
        encoder.double()
        pixels = torch.randn(2, 3, config.image_size, config.image_size, dtype=torch.float64,
                             generator=torch.Generator().manual_seed(1)).requires_grad_()  # fmt: skip
        embedding = encoder(pixels)
        embedding.square().sum().backward()
        with torch.no_grad():
            assert torch.allclose(encoder(pixels), embedding, rtol=1e-12)
        assert pixels.grad is not None
        gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        results.append(
            {"": embedding.detach(), "pixels": pixels.grad, "patches": patches(encoder, pixels), **gradients}
        )
    ours, theirs = results
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value is not None
        assert ours[name] is not None, name
        assert torch.allclose(ours[name], value, rtol=1e-9, atol=1e-9 * float(value.abs().max())), name  # type: ignore[arg-type]


def patches(encoder: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return embed_patches(encoder, pixels)


@pytest.mark.parametrize(
    "settings",
    [
        {**DINO, "timm_pool": "avg"},
        {key: value for key, value in DINO.items() if key != "timm_proj"},
        {**CLIP, "pool_type": "avg"},
        {**CLIP, "ls_init_value": 0.1},
    ],
)
def test_an_encoder_of_another_kind_is_left_to_open_clip(settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert type(build_encoder(EncoderConfig(384, settings))) not in (ClipEncoder, DinoEncoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 50}, "a width of 50 cannot be shared by 3 heads"),
        ({"head_width": 0}, "cannot build a vision encoder"),
        ({"layers": 0}, "expected positive whole numbers"),
        ({"patch_size": 40}, "an image of 36 pixels has no patch of 40"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(EncoderConfig(20, {**CLIP, **change}))


def test_a_checkerboard_sees_every_second_patch_and_nothing_of_the_others() -> None:
    config = EncoderConfig(384, {**DINO, "image_size": 70})
    whole = build_encoder(config).double()
    half = build_encoder(EncoderConfig(384, {**config.vision_cfg, "patch_pattern": "checkerboard"})).double()
    half.load_state_dict(whole.state_dict())
    pixels = torch.randn(2, 3, 70, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    embedding = half(pixels)
    embedding.square().sum().backward()
    assert pixels.grad is not None
    seen = pixels.grad.abs().sum(1).unfold(1, 14, 14).unfold(2, 14, 14).sum((-1, -2)) > 0
    board = torch.tensor([[(row + column) % 2 == 0 for column in range(5)] for row in range(5)])
    assert torch.equal(seen, board.expand(2, -1, -1))
    kept = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + board.flatten().nonzero()[:, 0]])
    tokens = whole.trunk._pos_embed(whole.trunk.patch_embed(pixels))[:, kept]
    torch.testing.assert_close(embedding, whole.trunk.norm(whole.trunk.blocks(tokens))[:, 0])
    assert not torch.allclose(whole(pixels), embedding)
    assert embed_patches(half, pixels).shape == (2, 5, 5, 384), "maps show all patches"


def test_the_class_token_of_an_intermediate_block_is_appended() -> None:
    plain = build_encoder(EncoderConfig(384, {**DINO, "image_size": 70}))
    both = build_encoder(EncoderConfig(768, {**DINO, "image_size": 70, "intermediate_block": 4}))
    both.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embedding = both(pixels)
        assert torch.equal(embedding[:, :384], plain(pixels))
        assert torch.equal(embedding[:, 384:], plain.forward_first(pixels, 4)[:, 0])
        for count in (0, 3, 4):
            assert torch.equal(both.forward_rest(both.forward_first(pixels, count), count), embedding)
        maps = embed_patches(both, pixels)
        assert maps.shape == (2, 5, 5, 768), "a patch's own two tokens"
        torch.testing.assert_close(maps[0, 1, 2, 384:], plain.forward_first(pixels, 4)[0, 1 + 5 + 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_block": 12}, r"intermediate_block must lie in 0\.\.11 for 12 blocks, got 12"),
        ({"intermediate_block": 3}, "this encoder's embedding has 768 dimensions, got embed_dim 384"),
        (
            {"patch_pattern": "checkerboard"},
            "a checkerboard needs an odd number of patches a side, got 4: image_size 60",
        ),
        ({"patch_pattern": "stripes"}, "patch_pattern must be one of all, checkerboard, got 'stripes'"),
        ({"patch_pattern": "checkerboard", "timm_pool": "avg"}, "open_clip cannot build a vision encoder"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(EncoderConfig(384, {**DINO, **change}))


def test_scoring_a_file_imports_nothing_that_it_does_not_need(
    photographs: dict[str, Image.Image], tmp_path: Path
) -> None:
    file = tmp_path / "cat.jpg"
    photographs["cat"].save(file)
    code = """
import sys
from rali_core.cli import main
status = main(["score", sys.argv[1]])
heavy = ("timm", "open_clip", "torchvision", "transformers", "huggingface_hub", "scipy", "sklearn", "matplotlib")
loaded = [name for name in heavy if name in sys.modules]
assert not loaded, loaded
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(file) in done.stdout
