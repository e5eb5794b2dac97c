from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rali_core import precision
from rali_core.checkpoint import ModelInfo
from rali_core.encoder import EncoderConfig, build_encoder
from rali_core.model import RaliModel
from rali_core.precision import GELU_LOWEST, QuantizedLinear, fastest_precision, has_bf16_instructions, quantize_tower
from rali_core.scorer import RaliScorer
from rali_core.vision_transformer import QuickGELU

CLIP = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}


@pytest.mark.parametrize("lowest", [None, GELU_LOWEST])
def test_an_int8_layer_is_within_its_rounding_of_the_float_layer(lowest: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(96, 40)
    inputs = torch.randn(2, 7, 96, generator=generator)
    inputs[0, 3] *= 1000.0  # a token like this must not cost the others their precision
    inputs[1, 2] = 0.0
    if lowest is not None:
        inputs = torch.nn.functional.gelu(inputs)
    with torch.inference_mode():
        exact = layer(inputs)
        error = (QuantizedLinear(layer.weight, layer.bias, lowest=lowest)(inputs) - exact).abs()
        assert torch.all(error.amax(dim=-1) <= 0.03 * exact.abs().amax(dim=-1))
        assert float(error.max()) > 0.0


def test_the_lower_bound_holds_for_both_activations() -> None:
    values = torch.linspace(-6, 6, 100_001)
    with torch.inference_mode():
        for activation in (torch.nn.GELU(), QuickGELU()):
            assert GELU_LOWEST < float(activation(values).min()) < GELU_LOWEST + 0.01


def test_an_int8_tower_keeps_its_last_block_and_refuses_gradients() -> None:
    tower = build_encoder(EncoderConfig(24, CLIP, quick_gelu=True))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = tower(pixels)
        quantize_tower(tower)
        assert torch.cosine_similarity(tower(pixels), exact).min() > 0.999
        assert not torch.equal(tower(pixels), exact)
    with pytest.raises(RuntimeError, match="no gradient: load the model with dtype='float32'"):
        tower(pixels.requires_grad_())
    with pytest.raises(ValueError, match="in int8 already"):
        quantize_tower(tower)


def test_another_tower_has_no_int8(tiny_timm_file: Path) -> None:
    with pytest.raises(ValueError, match="int8 is there for plain vision transformers"):
        RaliScorer.from_pretrained(tiny_timm_file, device="cpu", dtype="int8")


@pytest.mark.parametrize(
    ("seconds", "hardware", "chosen"),
    [
        ({"float32": 1.0, "bfloat16": 0.5}, True, "bfloat16"),
        ({"float32": 1.0, "bfloat16": 0.95}, True, "float32"),
        ({"float32": 1.0, "bfloat16": 0.5}, False, "float32"),
    ],
)
def test_fewer_bits_are_chosen_only_where_they_are_faster(
    tiny_model: RaliModel, tiny_info: ModelInfo, monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, float], hardware: bool, chosen: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(precision, "has_bf16_instructions", lambda: hardware)
    monkeypatch.setattr(
        precision, "_block_seconds", lambda _, tokens: seconds[str(tokens.dtype).removeprefix("torch.")]
    )
    assert fastest_precision(tiny_model.encoder, torch.device("cpu")) == chosen
    assert RaliScorer(tiny_model, tiny_info, device="cpu", dtype="auto").dtype == chosen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("processor : 0\nFeatures\t: fp asimd bf16 sve\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_the_instructions_are_read_from_what_linux_tells(
    text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bf16_instructions(tmp_path / "cpuinfo") is expected
    assert has_bf16_instructions(tmp_path / "missing") is False
