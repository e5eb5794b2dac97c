"""The pack in its host: among others, under another name, from the registry's archive, without a model, for long."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

CLASHING = '''
"""A pack that behaves badly: it puts itself on sys.path, under the names that other packs have inside."""
import sys, pathlib
sys.path.insert(0, str(pathlib.Path(__file__).parent))
for name in ("nodes", "rali_core", "web", "locales"):
    if "custom_nodes" in str(getattr(sys.modules.get(name), "__file__", "")):
        del sys.modules[name]
import rali_core
assert rali_core.WHOSE == "theirs"
NODE_CLASS_MAPPINGS = {}
'''
SCORE = {"aggregation": "mean", "threshold": 0.5, "coverage": "model's own"}


@pytest.fixture
def start(comfy_home: Path, tmp_path: Path, tools: dict[str, Any]) -> Iterator[Callable[..., Any]]:
    """Starts a separate ComfyUI in `tmp_path / "base"`, with an image in its input folder."""
    started = []

    def begin(*more: str, version: str = "0.30.0") -> Any:
        server = tools["Server"](comfy_home, version, tmp_path / "base", more)
        started.append(server)
        server.upload("noise.png", Image.effect_noise((300, 200), 60).convert("RGB"))
        return server.start()

    yield begin
    for server in started:
        server.stop()


def score_prompt(**more: Any) -> dict[str, Any]:
    return {
        "l": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "s": {"class_type": "RALI_Score", "inputs": {"images": ["l", 0], **SCORE, **more}},
    }


def choices(server: Any) -> list[str]:
    found = server.get("/object_info/RALI_LoadModel")["RALI_LoadModel"]["input"]["required"]["model"]
    return list(found[1]["options"] if isinstance(found[0], str) else found[0])


def test_a_renamed_pack_beside_packs_with_the_same_module_names_loads_its_own_modules(
    start: Callable[..., Any], tmp_path: Path, tools: dict[str, Any], tiny_file: Path
) -> None:
    for place in ("base/custom_nodes/aaa_clash", "packs/zzz_clash"):
        other = tmp_path / place
        for inner in ("nodes", "rali_core"):
            (other / inner).mkdir(parents=True)
            (other / inner / "__init__.py").write_text('WHOSE = "theirs"\n')
        (other / "__init__.py").write_text(CLASHING)
    tools["install_pack"](tmp_path / "packs", "my own.name for it")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "extra.safetensors").write_bytes(tiny_file.read_bytes())
    (tmp_path / "elsewhere" / "extra.pt").write_bytes(b"a pickle")
    paths = tmp_path / "extra.yaml"
    paths.write_text(f"mine:\n  base_path: {tmp_path}\n  rali: elsewhere\n  custom_nodes: packs\n")

    # Loaded after the stopwatch, because it is in the folder that is searched later.
    shutil.copytree(tools["HELPERS"] / "stopwatch", tmp_path / "base" / "custom_nodes" / "stopwatch")

    server = start("--extra-model-paths-config", str(paths))
    seen = [json.loads(text) for text in re.findall(r"stopwatch: (\{.*\})", server.text())]
    (ours,) = (pack for pack in seen if pack["pack"].endswith("my own.name for it"))
    assert ours["on the path"] == []
    own = ours["pack"].replace(".", "_x_")
    assert f"{own}.rali_core" in ours["imported"]
    searching = ("nodes._seed_search", "rali_core.seed_search", "rali_core.graph_loop", "rali_core.guidance")
    assert not {f"{own}.{name}" for name in searching} & set(ours["imported"])
    foreign = {name.split(".")[0] for name in ours["imported"] if not name.startswith(own)}
    # What costs time at start is importing; bench/comfy_start.py measures how much that is. xxhash is one small C file.
    assert foreign <= sys.stdlib_module_names | {"xxhash"}
    assert len(re.findall(r"seconds: .*(?:aaa|zzz)_clash", server.text())) == 2
    assert len(server.run(score_prompt()).check().scores("s")) == 1
    assert choices(server) == ["rali-small (bundled)", "extra.safetensors"]
    prompt = score_prompt(model=["m", 0])
    prompt["m"] = {
        "class_type": "RALI_LoadModel",
        "inputs": {"model": "extra.safetensors", "dtype": "auto", "device": "auto"},
    }
    assert len(server.run(prompt).check().scores("s")) == 1


def test_without_its_model_the_server_starts_and_the_node_says_what_to_do(
    start: Callable[..., Any], tmp_path: Path, tools: dict[str, Any]
) -> None:
    pack = tools["install_pack"](tmp_path / "base" / "custom_nodes")
    for model in (pack / "weights").glob("*.safetensors"):
        model.unlink()
    server = start()
    run = server.run(score_prompt())
    assert run.ending == "execution_error"
    assert "put a RALI .safetensors file into models/rali and choose it in RALI Load Model" in run.error
    assert server.get("/system_stats")


@pytest.fixture
def workflows() -> ModuleType:
    """The file of the templates' tests, which turns a template into a prompt."""
    spec = importlib.util.spec_from_file_location("workflow_tests", Path(__file__).with_name("test_workflows.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(comfy_home: Path, tmp_path: Path, tools: dict[str, Any]) -> Path:
    """What the registry would serve: made by the registry's own tool, out of what git tracks."""
    source = tmp_path / "source"
    tools["install_pack"](tmp_path, "source", tests=True)
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "1"}
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "as it is"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    comfy = [str(comfy_home / "cli" / "bin" / "comfy"), "--skip-prompt", "--no-enable-telemetry", "node"]
    done = subprocess.run(
        [*comfy, "validate"], cwd=source, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All validation checks passed" in done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    subprocess.run([*comfy, "pack"], cwd=source, check=True, capture_output=True, env=environment)
    with zipfile.ZipFile(source / "node.zip") as packed:
        sizes = {item.filename: item.compress_size for item in packed.infolist()}
    model = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    rest = sum(sizes.values()) - model
    print(f"the registry's archive: {len(sizes)} files, {rest / 1e6:.2f} MB and the model of {model / 1e6:.1f} MB")
    assert rest < 1_000_000, sorted(sizes.items(), key=lambda item: item[1])[-10:]
    return source / "node.zip"


def test_the_registrys_archive_is_valid_and_stays_within_its_memory_over_two_hundred_prompts(
    start: Callable[..., Any],
    tmp_path: Path,
    tools: dict[str, Any],
    tiny_file: Path,
    archive: Path,
    workflows: ModuleType,
) -> None:
    pack = tmp_path / "base" / "custom_nodes" / "rali-score"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(pack)
    assert not any((pack / name).exists() for name in ("tests", "bench", "docs", "rali_core/training"))
    for folder in ("web/docs", "web/js", "locales/ja", "workflows", "weights", "rali_core", "nodes"):
        assert any((pack / folder).iterdir()), folder
    shutil.copytree(tools["HELPERS"] / "probe", tmp_path / "base" / "custom_nodes" / "probe")
    (tmp_path / "base" / "models" / "rali").mkdir(parents=True)
    (tmp_path / "base" / "models" / "rali" / "tiny.safetensors").write_bytes(tiny_file.read_bytes())
    # Newer versions keep old results while there is memory for them; that is not what is asked here.
    server = start("--cache-classic")
    assert len(server.run(score_prompt()).check().scores("s")) == 1
    server.upload("example.png", Image.effect_noise((320, 200), 60).convert("RGB"))
    template = json.loads((pack / "workflows" / "RALI - score an image.json").read_text(encoding="utf-8"))
    server.run(workflows.to_prompt(template, server.get("/object_info"))).check()

    def prompt(seed: int) -> dict[str, Any]:
        loader = {"model": "tiny.safetensors", "dtype": "auto", "device": "auto"}
        ranking = {"k": 5, "order": "best first", "scores_weight": 1.0, "coverage": "model's own"}
        return {
            "o": {"class_type": "Test_Odd", "inputs": {"kind": "noise", "count": 40, "seed": seed}},  # 3 MB
            "m": {"class_type": "RALI_LoadModel", "inputs": loader},
            "s": {"class_type": "RALI_Score", "inputs": {"images": ["o", 0], "model": ["m", 0], **SCORE}},
            "b": {"class_type": "RALI_BestOfN", "inputs": {"images": ["s", 0], "scores": ["s", 2], **ranking}},
            "p": {"class_type": "Test_Probe", "inputs": {"value": ["b", 1]}},
        }

    def queue(seeds: range) -> None:
        for seed in seeds:
            assert server.post("/prompt", {"prompt": prompt(seed)})[0] == 200
        deadline = time.monotonic() + 1800
        while server.get("/prompt")["exec_info"]["queue_remaining"]:
            assert time.monotonic() < deadline, server.text()[-3000:]
            time.sleep(0.2)

    queue(range(40))
    before = server.memory()
    queue(range(1000, 1200))
    after = server.memory()
    print(f"memory before and after 200 prompts: {before:.0f} MB, {after:.0f} MB")
    assert after - before < 100  # the 200 batches together are 590 MB
    history = server.get("/history")
    assert sum(entry["status"]["status_str"] == "success" for entry in history.values()) >= 241
