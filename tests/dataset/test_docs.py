from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rali_core.cli import main
from rali_core.cli.main import build_parser
from rali_core.dataset import DatasetResult

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_examples_run_on_a_scored_folder(
    photos: Path, score: Callable[..., DatasetResult], tmp_path: Path
) -> None:
    score(photos, "photos-scored")
    examples = [block for block in blocks("python") if "ray" not in block]  # tests/dataset/test_ray.py has a cluster
    assert len(examples) == 3
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(examples)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "11 of 20" in done.stdout, "7 images in one folder, 13 in the other, half of each rounded up"
    assert "broken.png" in done.stdout


def test_every_command_in_the_document_is_one_that_exists() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line.split("#")[0].split(">")[0].partition("rali ")[2] for line in lines if "rali dataset" in line]
    assert len(commands) == 11
    for command in commands:
        options = build_parser().parse_args(shlex.split(command))
        assert options.command == "dataset"


def test_the_list_that_filter_prints_is_a_source(
    photos: Path, score: Callable[..., DatasetResult], tmp_path: Path
) -> None:
    score(photos)
    listed = tmp_path / "good.txt"
    assert main(["dataset", "filter", str(tmp_path / "out"), "--top-k", "3", "--list", str(listed)]) == 0
    assert score(listed, "again").images == 3
