from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rali_core import devices
from rali_core.checkpoint import ModelInfo
from rali_core.devices import choose_device, fastest_precision, has_bf16_instructions
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
    """A block that records when it runs, and takes a given time."""

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
def test_the_instructions_are_read_from_proc_cpuinfo(text: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bf16_instructions(tmp_path / "cpuinfo") is expected
    assert has_bf16_instructions(tmp_path / "missing") is False


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("meta", "device 'meta' computes nothing; examples: cpu, cuda"),
        ("toaster", "unknown device 'toaster'; examples: cpu, cuda, cuda:1, mps, xpu"),
        ("cuda:99", "device 'cuda:99' is not available"),
        ("xpu", "device 'xpu' is not available on this machine: "),
        ("xpu:3", "device 'xpu:3' is not available on this machine: "),
        ("mps", "device 'mps' is not available on this machine: "),
        ("hpu", "device 'hpu' is not available on this machine: "),
        ("privateuseone", "device 'privateuseone.*' is not available on this machine: "),
        ("directml", "device 'directml' needs the package torch-directml"),
        ("cpu:x", "unknown device 'cpu:x'"),
    ],
)
def test_an_unusable_device_is_a_one_line_error(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        choose_device(device)
    assert "\n" not in str(caught.value)


def test_a_device_that_works_is_taken_and_the_cpu_where_no_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # it claims so, and fails
    assert choose_device(None) == torch.device("cpu")


def test_directml_is_spared_inference_mode() -> None:
    for device, inference in (("cpu", True), ("privateuseone", False)):
        with devices.without_gradient(torch.device(device)):
            assert not torch.is_grad_enabled()
            assert torch.is_inference_mode_enabled() == inference
    assert torch.is_grad_enabled()


class NoFloat64(TorchDispatchMode):
    """Refuses float64 in every operation, as Apple's GPUs do."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, result)):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64 and value.device.type != "cpu":
                raise TypeError(f"Cannot convert a tensor to float64 in {function}")
        return result


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends a GPU")
def test_the_model_makes_no_float64_off_the_cpu(tiny_model: RaliModel) -> None:
    model = copy.deepcopy(tiny_model)
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
        for part in model.modules():
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(torch.empty(parameter.shape, device="cuda")))
            for name, buffer in part.named_buffers(recurse=False):
                part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
        crops = torch.rand(2, 3, tiny_model.preprocess_config.image_size, tiny_model.preprocess_config.image_size)
        embedded = model.embed(crops.to("cuda"))
        assert model.head(embedded).dtype == torch.float32
        assert model.head.weights(embedded).mean(dim=0).cpu().dtype == torch.float32
        with pytest.raises(TypeError, match="Cannot convert a tensor to float64"):
            embedded.double()


def test_where_an_operator_is_missing_the_resize_is_done_on_the_cpu() -> None:
    from torch.nn import functional

    from rali_core.preprocess import resize_shorter_side

    class MissingOperator(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_upsample_bicubic2d_aa" in str(function) and args[0].device.type == "meta":
                raise NotImplementedError("The operator 'aten::_upsample_bicubic2d_aa.out' is not implemented")
            return function(*args, **(kwargs or {}))

    with MissingOperator(), pytest.raises(NotImplementedError):
        functional.interpolate(torch.rand(1, 3, 50, 60, device="meta"), (20, 24), mode="bicubic", antialias=True)
    with MissingOperator(), pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        resize_shorter_side(torch.rand(1, 3, 50, 60, device="meta"), 20)  # it went to copy the pixels to the CPU
