from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rali_core import devices
from rali_core.checkpoint import ModelInfo
from rali_core.devices import fastest_precision, has_bf16_instructions
from rali_core.model import RaliModel
from rali_core.scorer import RaliScorer


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Let blocks take that long in each dtype."""
    monkeypatch.setattr(
        devices,
        "_fastest_seconds",
        lambda blocks, _: [seconds[str(next(block.parameters()).dtype)[6:]] for block in blocks],
    )


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
    monkeypatch.setattr(devices, "has_bf16_instructions", lambda: hardware)
    pretend(monkeypatch, seconds)
    assert fastest_precision(tiny_model.encoder, torch.device("cpu")) == chosen
    assert RaliScorer(tiny_model, tiny_info, device="cpu", dtype="auto").dtype == chosen


@pytest.mark.parametrize("seconds", [{"float32": 1.0, "bfloat16": 0.5}, {"float32": 1.0, "bfloat16": 0.95}])
def test_a_file_loaded_with_auto_scores_exactly_as_with_the_dtype_that_was_chosen(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]
) -> None:
    monkeypatch.setattr(devices, "has_bf16_instructions", lambda: True)
    pretend(monkeypatch, seconds)
    pixels = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    chosen = RaliScorer.from_pretrained(tiny_file, device="cpu", dtype="auto")
    named = RaliScorer.from_pretrained(tiny_file, device="cpu", dtype=chosen.dtype)
    assert chosen.dtype == ("bfloat16" if seconds["bfloat16"] == 0.5 else "float32")
    assert chosen.score(pixels).scores.tolist() == named.score(pixels).scores.tolist()


class Recorder(nn.Module):
    """A block that writes down when it is run, and takes as long as it is told."""

    def __init__(self, name: str, seconds: list[float], clock: list[float], order: list[str]) -> None:
        super().__init__()
        self.name, self.seconds, self.clock, self.order = name, seconds, clock, order

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.clock[0] += self.seconds.pop(0)
        self.order.append(self.name)
        return tokens


@pytest.mark.parametrize(("slow", "rounds"), [(0.01, 3), (9.0, 2)])
def test_blocks_take_turns_their_fastest_run_counts_and_slow_ones_are_tried_twice(
    monkeypatch: pytest.MonkeyPatch, slow: float, rounds: int
) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(devices.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(devices, "PROBE_ROUNDS", 3)
    first = Recorder("a", [9.0, slow, slow / 2, slow], clock, order)
    second = Recorder("b", [9.0, slow / 4, slow, slow], clock, order)
    fastest = devices._fastest_seconds([first, second], [torch.zeros(1)] * 2)
    assert order == ["a", "b"] * (1 + rounds)
    assert fastest == pytest.approx([slow / 2, slow / 4])


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
