"""Fixtures: releases of the official layout, the reference, and a process in which hostile files are opened."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def load_by_path(path: Path) -> ModuleType:
    """A module beside the tests: under pytest's importlib mode they are no package."""
    spec = importlib.util.spec_from_file_location(f"official_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    return load_by_path(HERE / "release_maker.py")


@pytest.fixture(scope="session")
def parity() -> ModuleType:
    return load_by_path(ROOT / "bench" / "parity.py")


@pytest.fixture(scope="session")
def release(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small release as transformers 5 saves it; not to be changed."""
    return maker.make_release(tmp_path_factory.mktemp("official") / "release")


@pytest.fixture
def release_copy(release: Path, tmp_path: Path) -> Path:
    """A copy of the small release that a test may change."""
    return Path(shutil.copytree(release, tmp_path / "release"))


@pytest.fixture(scope="session")
def tiny_release(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest release there can be, for tests that read thousands; not to be changed."""
    size = {
        "vision": {**maker.SMALL["vision"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 14},
        "text": {**maker.SMALL["text"], "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1},
        "projection_dim": 8,
        "pca_dim": 4,
        "prototypes": 5,
    }  # fmt: skip
    folder = maker.make_release(tmp_path_factory.mktemp("tiny") / "release", size=size)
    (folder / "best" / "model.safetensors").unlink()  # ckpt.pt holds the encoder
    return folder


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of a process that can import the package under test, however it came to be importable here."""
    import rali_core

    package = str(Path(rali_core.__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="session")
def run_guarded(environment: dict[str, str]) -> Callable[..., list[dict]]:
    """Run `guarded.py`; gives what it wrote, and fails where the process did not end well."""

    def run(command: str, out: Path, *arguments: object, timeout: float = 900) -> list[dict]:
        words = [sys.executable, str(HERE / "guarded.py"), command, str(out), *map(str, arguments)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"exit status {done.returncode}, last words:\n{done.stderr[-2000:]}"
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run
