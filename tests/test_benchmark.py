from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from rali_core import benchmark
from rali_core.benchmark import Case
from rali_core.cli import main

ROOT = Path(__file__).resolve().parent.parent


def load(path: Path, name: str) -> ModuleType:
    """A script or package of bench/, which is on no path."""
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def encoder_rate() -> ModuleType:
    return load(ROOT / "bench" / "encoder_rate.py", "encoder_rate")  # by the name that gpu.py imports


@pytest.fixture(scope="module")
def gpu(encoder_rate: ModuleType) -> ModuleType:  # noqa: ARG001
    return load(ROOT / "bench" / "gpu.py", "gpu_benchmark")


@pytest.fixture(scope="module")
def speed() -> dict[str, ModuleType]:
    """The modules of bench/speed by name."""
    load(ROOT / "bench" / "speed" / "__init__.py", "speed_benchmark")
    names = ("baselines", "measure", "report", "suite")
    return {name: importlib.import_module(f"speed_benchmark.{name}") for name in names}


def test_scorers_take_turns_and_one_that_cannot_be_made_does_not_end_the_others(
    speed: dict[str, ModuleType],
) -> None:
    commands = speed["suite"].commands(["tiny recipe", "no such scorer", "tiny ours"])
    cases = [Case(64), Case(96, 3, "tensor")]
    quiet = {"reference": "tiny recipe", "threads": 1}
    result = benchmark.compare(commands, cases, rounds=3, log=lambda _: None, **quiet)  # type: ignore[arg-type]
    assert result["missing"].keys() == {"no such scorer"}
    assert "ValueError: there is no scorer" in result["missing"]["no such scorer"]
    for case, summary in zip(cases, result["cases"], strict=True):
        assert (summary["size"], summary["batch"], summary["kind"]) == (case.size, case.batch, case.kind)
        recipe, ours = (summary["scorers"][name] for name in ("tiny recipe", "tiny ours"))
        assert recipe["ratio"] == recipe["processor_ratio"] == 1.0
        assert ours["rate"]["min"] <= ours["rate"]["median"] <= ours["rate"]["max"]
        assert "tiny ours" in benchmark.format_case(summary, "tiny recipe")
    memory = benchmark.compare_memory(commands, case=Case(64), **quiet)  # type: ignore[arg-type]
    assert memory.keys() == {"tiny recipe", "tiny ours"}
    assert memory["tiny ours"]["ratio"] == memory["tiny ours"]["peak"] / memory["tiny recipe"]["peak"]


def test_the_command_measures_a_model_of_the_users(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # The official architecture takes a minute a round here: the tiny file stands in for it in the processes, too.
    monkeypatch.setattr(benchmark, "OFFICIAL", "model, bfloat16")
    monkeypatch.setattr(benchmark, "CASES", (Case(64),))
    figures = tmp_path / "figures.json"
    command = ["bench", "--model", str(tiny_file), "--rounds", "1", "--images", "2", "--threads", "1"]
    assert main([*command, "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    assert "model, auto (" in printed
    assert "peak memory: model, float32:" in printed
    assert "x `import torch`" in printed
    assert "folder: " in printed
    result = json.loads(figures.read_text())
    assert set(result["compare"]["cases"][0]["scorers"]) == {"model, bfloat16", "model, float32", "model, auto"}
    assert result["folder"]["share"] == result["folder"]["whole"] / result["folder"]["model"]


def test_the_time_of_a_folder_is_measured_by_the_number_of_files(
    tiny_file: Path, tmp_path: Path, speed: dict[str, ModuleType]
) -> None:
    growth = speed["measure"].folder_growth([1, 3], model=str(tiny_file), threads=1)
    assert [entry["images"] for entry in growth] == [1, 3]
    assert all(entry["seconds"] > 0 for entry in growth)
    plots = speed["report"].draw({"growth": growth}, tmp_path)
    assert list(plots) == ["benchmark-images.png"]
    assert (tmp_path / "benchmark-images.png").stat().st_size > 1000


def test_a_baselines_network_scores_images_and_tensors(speed: dict[str, ModuleType]) -> None:
    pixels = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    images = [Image.fromarray(one) for one in pixels.mul(255).byte().permute(0, 2, 3, 1).numpy()]
    peer = speed["baselines"].make("tiny backbone")
    assert peer.score(images) == pytest.approx(peer.score(pixels), abs=1e-4)
    assert len(set(peer.score(pixels))) == 2


def test_the_baseline_recipe_is_the_same_network(speed: dict[str, ModuleType]) -> None:
    baselines = speed["baselines"]
    recipe = baselines.OfficialRecipe(baselines.TINY)
    ours = benchmark.random_model(baselines.TINY)
    count = sum(parameter.numel() for parameter in recipe._model.vision_model.parameters())
    projection = recipe._model.visual_projection.weight.numel()
    assert sum(parameter.numel() for parameter in ours.encoder.parameters()) == count + projection


def test_the_report_is_one_table_of_what_was_measured(speed: dict[str, ModuleType]) -> None:
    result = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    text = speed["report"].format_markdown(result, "python -m bench", {"benchmark-size.png": "by size"})
    assert text.count("\n|---|") == 1
    case = result["compare"]["cases"][0]["scorers"]["official recipe"]
    assert f"| official recipe | {case['rate']['median']:.2f} | 1.00 |" in text
    assert "![by size](benchmark-size.png)" in text


def summary(**ratios: float) -> dict[str, Any]:
    values = {name: {"ratio": ratio, "processor_ratio": ratio} for name, ratio in ratios.items()}
    return {"compare": {"cases": [{"size": 512, "batch": 1, "kind": "pil", "scorers": values}]}}


def test_cases_slower_than_the_baseline_are_listed(speed: dict[str, ModuleType]) -> None:
    report = speed["report"]
    before = summary(recipe=1.0, fast=3.0, small=50.0)
    assert report.compare_with_baseline(summary(recipe=1.0, fast=2.5, small=60.0), before) == []
    lines = report.compare_with_baseline(summary(recipe=1.0, fast=2.3), before)
    assert [line.partition(", 512")[0] for line in lines] == [
        "slower than the baseline: fast",
        "slower than the baseline: small",
    ]


def test_the_command_checks_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rounds", "0"]) == 1
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err


def test_the_encoders_operations_are_those_of_its_matrix_products(encoder_rate: ModuleType) -> None:
    shape = encoder_rate.TINY_SHAPE
    width, patches = shape["width"], (shape["image_size"] // shape["patch_size"]) ** 2
    tokens = patches + 1
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    last = tokens * 2 * width**2 + 10 * width**2 + 2 * tokens * width  # one query; keys and values of all tokens
    embedding = patches * 3 * shape["patch_size"] ** 2 * width
    products = embedding + (shape["layers"] - 1) * block + last + width * benchmark.EMBED_DIM
    assert encoder_rate.encoder_operations(benchmark.random_model(shape)) == 2 * products


def test_a_share_of_the_matrix_rate_is_what_the_batch_took(
    encoder_rate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds a pass of eight images, half a second a product."""
    model = benchmark.random_model(encoder_rate.TINY_SHAPE)

    def seconds(work: Any, device: torch.device) -> float:  # noqa: ARG001
        return 2.0 if len(work()) == 8 else 0.5

    monkeypatch.setattr(encoder_rate, "seconds", seconds)
    row = encoder_rate.measure_batch(model, 10**6, 8, sides=(16, 256), rounds=2)
    rate = 2 * 256**3 / 0.5
    assert row == {"batch": 8, "images_per_s": 4.0, "gflop_per_s": rate / 1e9, "share": 8 * 10**6 / 2.0 / rate}


def test_the_gpu_script_says_where_it_is_skipped() -> None:
    code = "import runpy, sys, torch; torch.cuda.is_available = lambda: False; sys.argv = sys.argv[1:]; " \
           "sys.path.insert(0, 'bench'); runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "bench" / "gpu.py")], capture_output=True, text=True, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "skipped: there is no CUDA device here\n"), done.stderr


def test_the_gpu_script_measures_all_its_parts(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    result = gpu.measure(torch.device("cpu"), tiny=True)
    (model,) = result["models"]
    assert [row["batch"] for row in model["batches"]] == [1, 2]
    assert 0 < sum(row["share"] for row in model["operators"]) <= 1
    sources = {row["from"] for row in result["end_to_end"]}
    assert {"uint8 on the card", "PIL images", "JPEG files"} < sources
    assert result["language"]["share"] > 0
    gpu.show(result)
    printed = capsys.readouterr().out
    assert "Qwen2.5-VL-7B writes for" in printed
    assert "best share of the matrix rate, official encoder: " in printed
