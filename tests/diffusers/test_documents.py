"""The examples of docs/diffusers.md, with a tiny pipeline and a tiny model."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import diffusers
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDS_STABLE_BLOCKS = "StableDiffusionXLAutoBlocks"


def test_the_python_examples_run(sd15: Any, tiny_scorer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rali_core.scorer.RaliScorer.from_pretrained", lambda *_, **__: tiny_scorer)
    found = re.findall(
        r"```python\n(.*?)```", (REPOSITORY / "docs" / "diffusers.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(found) == 6
    names: dict[str, Any] = {"pipe": sd15, "prompt": "a cat", "scorer": tiny_scorer}
    for block in found:
        if NEEDS_STABLE_BLOCKS not in block or hasattr(diffusers, NEEDS_STABLE_BLOCKS):
            Path("example.py").write_text(block, encoding="utf-8")
            names = runpy.run_path("example.py", names)  # not exec: the registry's own check objects to it
    assert list(tmp_path.rglob("best*.png"))
