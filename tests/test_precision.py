from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rali_core import precision
from rali_core.checkpoint import ModelInfo
from rali_core.model import RaliModel
from rali_core.precision import fastest_precision, has_bf16_instructions
from rali_core.scorer import RaliScorer


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


@pytest.mark.parametrize("seconds", [{"float32": 1.0, "bfloat16": 0.5}, {"float32": 1.0, "bfloat16": 0.95}])
def test_a_file_loaded_with_auto_scores_exactly_as_with_the_dtype_that_was_chosen(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]
) -> None:
    monkeypatch.setattr(precision, "has_bf16_instructions", lambda: True)
    monkeypatch.setattr(
        precision, "_block_seconds", lambda _, tokens: seconds[str(tokens.dtype).removeprefix("torch.")]
    )
    pixels = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    chosen = RaliScorer.from_pretrained(tiny_file, device="cpu", dtype="auto")
    named = RaliScorer.from_pretrained(tiny_file, device="cpu", dtype=chosen.dtype)
    assert chosen.dtype == ("bfloat16" if seconds["bfloat16"] == 0.5 else "float32")
    assert chosen.score(pixels).scores.tolist() == named.score(pixels).scores.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("processor : 0\nFeatures\t: fp asimd bf16 sve\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_the_instructions_are_read_from_what_linux_tells(text: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bf16_instructions(tmp_path / "cpuinfo") is expected
    assert has_bf16_instructions(tmp_path / "missing") is False
