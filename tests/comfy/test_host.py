"""The pack among others: other packs' names, another folder name, its cost at start, a missing model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CLASHING = '''
"""A pack that behaves badly: it puts itself on sys.path, under the names that other packs have inside."""
import sys, pathlib
sys.path.insert(0, str(pathlib.Path(__file__).parent))
for name in ("rali_core", "web", "locales"):
    sys.modules.pop(name, None)
import rali_core
assert rali_core.WHOSE == "theirs"
NODE_CLASS_MAPPINGS = {}
'''


@pytest.fixture
def start(comfy_home: Path, tmp_path: Path, tools: dict[str, Any]) -> Iterator[Callable[..., Any]]:
    """Starts a ComfyUI of its own, with the pack under a given folder name."""
    started = []

    def begin(name: str, prepare: Callable[[Path], None]) -> Any:
        server = tools["Server"](comfy_home, "0.30.0", tmp_path)
        prepare(tools["install_pack"](tmp_path / "custom_nodes", name))
        started.append(server)
        return server.start()

    yield begin
    for server in started:
        server.stop()


def test_renamed_and_beside_a_pack_that_takes_its_names_it_works(start: Callable[..., Any]) -> None:
    def clash(pack: Path) -> None:
        for name in ("aaa_clash", "zzz_clash"):
            other = pack.parent / name
            for inner in ("nodes", "rali_core"):
                (other / inner).mkdir(parents=True)
                (other / inner / "__init__.py").write_text('WHOSE = "theirs"\n')
            (other / "__init__.py").write_text(CLASHING)

    server = start("my own.name for it", clash)
    assert not [line for line in server.text().splitlines() if "IMPORT FAILED" in line and "my own" in line]
    server.folder.joinpath("models", "rali").mkdir(parents=True)
    from PIL import Image

    server.picture("grey.png", Image.new("RGB", (300, 200), (90, 120, 150)))
    prompt = {
        "l": {"class_type": "LoadImage", "inputs": {"image": "grey.png"}},
        "s": {
            "class_type": "RALI_Score",
            "inputs": {"images": ["l", 0], "aggregation": "mean", "threshold": 0.5, "coverage": "model's own"},
        },
    }
    assert len(server.run(prompt).check().scores("s")) == 1
    seconds = re.search(r"([\d.]+) seconds.*my own\.name for it", server.text())
    assert seconds is not None
    assert float(seconds[1]) <= 0.1  # printed with one decimal


def test_without_its_model_the_server_starts_and_the_node_says_what_to_do(start: Callable[..., Any]) -> None:
    server = start("ComfyUI-RALI", lambda pack: (pack / "weights" / "rali-small.safetensors").unlink())
    from PIL import Image

    server.picture("grey.png", Image.new("RGB", (30, 20)))
    prompt = {
        "l": {"class_type": "LoadImage", "inputs": {"image": "grey.png"}},
        "s": {
            "class_type": "RALI_Score",
            "inputs": {"images": ["l", 0], "aggregation": "mean", "threshold": 0.5, "coverage": "model's own"},
        },
    }
    run = server.run(prompt)
    assert run.ending == "execution_error"
    assert "put a RALI .safetensors file into models/rali and choose it in RALI Load Model" in run.error
    assert server.get("/system_stats")


def test_folders_of_extra_model_paths_are_honoured(
    comfy_home: Path, tmp_path: Path, tools: dict[str, Any], tiny_file: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "extra.safetensors").write_bytes(tiny_file.read_bytes())
    (elsewhere / "extra.pt").write_bytes(b"a pickle")
    (tmp_path / "extra.yaml").write_text(f"mine:\n  base_path: {tmp_path}\n  rali: elsewhere\n")
    base = tmp_path / "base"
    server = tools["Server"](comfy_home, "0.30.0", base, ("--extra-model-paths-config", str(tmp_path / "extra.yaml")))
    tools["install_pack"](base / "custom_nodes")
    try:
        server.start()
        found = server.get("/object_info/RALI_LoadModel")["RALI_LoadModel"]["input"]["required"]["model"]
        assert (found[1]["options"] if isinstance(found[0], str) else found[0])[1:] == ["extra.safetensors"]
    finally:
        server.stop()
