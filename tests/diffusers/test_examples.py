from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tiny_scorer: Any, tmp_path: Path) -> Any:
    """`run(name, *arguments)`: an example as a user starts it, with a tiny RALI model file."""
    from rali_core.checkpoint import save_model

    file = tmp_path / "tiny.safetensors"
    save_model(file, tiny_scorer.model, tiny_scorer.info)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def start(name: str, *arguments: str) -> None:
        out = str(tmp_path / "out")
        monkeypatch.setattr("sys.argv", [name, *arguments, "--rali", str(file), "--output", out])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return start


def test_best_of_n_saves_the_best(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("best_of_n", "--n", "3", "--keep", "2", "--steps", "2")
    assert len(list((tmp_path / "out").glob("best-*.png"))) == 2
    assert capsys.readouterr().out.count("seed") >= 2


def test_prune_reports_what_it_saved(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("prune", "--model", "flux", "--size", "32", "--n", "4", "--steps", "5")
    out = capsys.readouterr().out
    assert out.count("pruned") == 3
    assert "of 20 denoiser calls" in out
    assert json.loads((tmp_path / "out" / "best-of-n.json").read_text())["report"]["fraction_saved"] > 0.4


def test_seed_search_stops_where_the_threshold_is_reached(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("seed_search", "--n", "2", "--steps", "1", "--threshold", "0.0")
    assert capsys.readouterr().out.count("round") == 1
    run("seed_search", "--n", "2", "--steps", "1", "--threshold", "2.0")
    assert capsys.readouterr().out.count("round") == 2


def test_filter_folder_copies_the_good_and_names_the_broken(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_scorer: Any
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        noise = generator.normal(128, 5 + 30 * number, (32, 32, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    scores = tiny_scorer.score(sorted(folder.glob("[0-9].png"))).scores
    limit = float(np.sort(scores)[1:3].mean())
    run("filter_folder", str(folder), "--at-least", str(limit))
    out = capsys.readouterr().out
    assert "2 of 5 images reach" in out
    assert "not scored" in out
    kept = {path.stem for path in (tmp_path / "out").glob("[0-9].png")}
    assert kept == {str(index) for index in np.flatnonzero(scores >= limit)}
    assert (tmp_path / "out" / "sheet.png").exists()


def test_optimise_latents_raises_the_score(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("optimise_latents", "--n", "1", "--steps", "2", "--updates", "4")
    before, after = capsys.readouterr().out.splitlines()[-1].removeprefix("score ").split(" -> ")
    assert float(after) > float(before)
    assert (tmp_path / "out" / "before-after.png").exists()
