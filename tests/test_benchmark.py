from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rali_core.benchmark import contenders, measure, report
from rali_core.benchmark.processes import Case
from rali_core.cli import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "bench" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contenders_take_turns_and_one_that_cannot_be_made_does_not_end_the_others() -> None:
    names = ["tiny recipe", "no such contender", "tiny ours"]
    cases = [Case(64), Case(96, 3, "tensor")]
    result = measure.compare(names, cases, reference="tiny recipe", rounds=3, threads=1, say=lambda _: None)
    assert result["missing"].keys() == {"no such contender"}
    assert "ValueError: there is no contender" in result["missing"]["no such contender"]
    for case, summary in zip(cases, result["cases"], strict=True):
        assert (summary["size"], summary["batch"], summary["kind"]) == (case.size, case.batch, case.kind)
        recipe, ours = (summary["contenders"][name] for name in ("tiny recipe", "tiny ours"))
        assert recipe["ratio"] == recipe["processor_ratio"] == 1.0
        assert ours["rate"]["min"] <= ours["rate"]["median"] <= ours["rate"]["max"]
        assert "tiny ours" in report.format_case(summary, "tiny recipe")
    memory = measure.peak_memory(names, reference="tiny recipe", case=Case(64), threads=1)
    assert memory.keys() == {"tiny recipe", "tiny ours"}
    assert memory["tiny ours"]["ratio"] == memory["tiny ours"]["peak"] / memory["tiny recipe"]["peak"]


def test_the_time_of_a_folder_is_told_by_the_number_of_files(tiny_file: Path, tmp_path: Path) -> None:
    growth = measure.folder_growth([1, 3], model=str(tiny_file), threads=1)
    assert [entry["images"] for entry in growth] == [1, 3]
    assert all(entry["seconds"] > 0 for entry in growth)
    plots = report.draw({"growth": growth}, tmp_path)
    assert list(plots) == ["benchmark-images.png"]
    assert (tmp_path / "benchmark-images.png").stat().st_size > 1000


def test_a_peers_network_scores_pictures_and_tensors() -> None:
    pixels = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    images = [Image.fromarray(one) for one in pixels.mul(255).byte().permute(0, 2, 3, 1).numpy()]
    peer = contenders.make("tiny backbone")
    assert peer.score(images) == pytest.approx(peer.score(pixels), abs=1e-4)
    assert len(set(peer.score(pixels))) == 2


def test_the_recipe_beside_us_is_the_same_network() -> None:
    recipe = contenders.OfficialRecipe(contenders.TINY)
    ours = contenders.random_model(contenders.TINY)
    count = sum(parameter.numel() for parameter in recipe._model.vision_model.parameters())
    projection = recipe._model.visual_projection.weight.numel()
    assert sum(parameter.numel() for parameter in ours.encoder.parameters()) == count + projection


def summary(**ratios: float) -> dict[str, Any]:
    values = {name: {"ratio": ratio, "processor_ratio": ratio} for name, ratio in ratios.items()}
    return {"compare": {"cases": [{"size": 512, "batch": 1, "kind": "pil", "contenders": values}]}}


def test_what_became_slower_than_the_baseline_is_named() -> None:
    before = summary(recipe=1.0, fast=3.0, small=50.0)
    assert report.compare_with_baseline(summary(recipe=1.0, fast=2.5, small=60.0), before) == []
    lines = report.compare_with_baseline(summary(recipe=1.0, fast=2.3), before)
    assert [line.partition(", 512")[0] for line in lines] == [
        "slower than the baseline: fast",
        "slower than the baseline: small",
    ]


def test_a_goal_is_met_missed_or_not_measured() -> None:
    ratios = {report.REFERENCE: 1.0, report.FAST: 2.9, report.SMALL: 41.0}
    result = {
        **summary(**ratios),
        "cache": {"median": 4.0},
        "agreement": {"bfloat16": {"srcc": 0.99, "largest": 0.009}},
    }
    met = {what: answer for what, _, _, answer in report.goals(result)}
    assert met["official encoder: images/s of the official recipe's"] is False
    assert met["bundled model: images/s of the official recipe's"] is True
    assert met["bundled model: images/s of NIQE's at 512 x 512"] is None
    assert met["cache hit, 4 x 1024 x 1024: milliseconds"] is True
    assert met["bfloat16: SRCC with float32"] is False
    assert met["bfloat16: largest difference"] is True


def test_the_command_checks_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rounds", "0"]) == 1
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err


def test_the_towers_operations_are_those_that_torch_counts(gpu: ModuleType) -> None:
    model = contenders.random_model(contenders.TINY)
    size = contenders.TINY["image_size"]
    # By plain products: the fused kernels' operations are counted by some versions of torch on some processors only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encoder(torch.rand(1, 3, size, size))
    assert gpu.tower_operations(contenders.TINY, contenders.EMBED) == counter.get_total_flops()


def test_the_gpu_script_says_where_it_is_skipped() -> None:
    code = "import runpy, sys, torch; torch.cuda.is_available = lambda: False; sys.argv = sys.argv[1:]; " \
           "runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "bench" / "gpu.py")], capture_output=True, text=True, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "skipped: there is no CUDA device here\n"), done.stderr


def test_the_gpu_script_measures_all_its_parts(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    result = gpu.measure(torch.device("cpu"), tiny=True)
    assert [row["batch"] for row in result["tower"]] == [1, 2]
    assert {row["from"] for row in result["end_to_end"]} == {"uint8 on the card", "PIL"}
    assert result["language"]["share"] > 0
    gpu.show(result)
    assert "Qwen2.5-VL-7B writes for" in capsys.readouterr().out
