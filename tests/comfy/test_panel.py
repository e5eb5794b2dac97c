"""What nodes report: to scripts through the prompt API's history, and to the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rali_core.scorer import RaliScorer

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


def compared(tools: dict[str, Any], server: Any, photographs: dict[str, Image.Image]) -> dict[str, Any]:
    """Three images, the second of them the good one, into Score and Best of N."""
    node, good = tools["node"], photographs["astronaut"].resize((320, 320))
    names = [
        server.upload(f"panel{level}.png", tools["degrade"](good, level) if level else good) for level in (4, 0, 6)
    ]
    return {
        **{f"l{i}": node("LoadImage", image=name) for i, name in enumerate(names, start=1)},
        "c": node("Test_Collect", **{f"image{i}": [f"l{i}", 0] for i in (1, 2, 3)}),
        "s": node("RALI_Score", images=["c", 1], aggregation="mean", threshold=0.5, coverage="model's own"),
        "b": node("RALI_BestOfN", images=["c", 1], k=2, order="worst first", scores_weight=1.0, coverage="model's own"),
        "p": node("PreviewImage", images=["b", 0]),
    }


def test_the_history_holds_scores_bands_percentiles_and_what_was_chosen(
    server: Any, photographs: dict[str, Image.Image], tools: dict[str, Any], bundled_scorer: Any
) -> None:
    run = server.run(compared(tools, server, photographs)).check()
    shown, best = run.outputs["s"]["rali"][0], run.outputs["b"]["rali"][0]
    scores = shown["scores"]
    order = sorted(range(3), key=lambda index: -scores[index])
    assert order[0] == 1  # the image that was not damaged
    assert shown["indexes"] == ",".join(map(str, order))
    assert shown["order"] == order
    calibration = bundled_scorer.info.calibration
    assert shown["bands"] == list(calibration.bands(shown["scores"]))
    assert set(shown["percentiles"]) == set(calibration.population_names)
    for name, shares in shown["percentiles"].items():
        assert shares == pytest.approx(calibration.percentiles(shown["scores"], name).tolist(), abs=0.06)
    assert shown["headline"]["score"] == pytest.approx(sum(scores) / 3, abs=1e-5)
    assert shown["report"].splitlines()[0].startswith(f"1. image 1: {scores[1]:.4f} {shown['bands'][1]}")
    assert (best["chosen"], best["note"]) == ([order[2], order[1]], "kept 2 of 3")  # worst first
    assert best["order"] == [order[1], order[2], order[0]]  # the chosen ones first, the better of them before the other
    strip = server.folder / "temp" / shown["thumbnails"]["filename"]
    with Image.open(strip) as image:
        assert image.size == (3 * shown["thumbnails"]["size"], shown["thumbnails"]["size"])


def test_a_model_with_probes_says_what_is_wrong_with_each_image(
    server: Any, photographs: dict[str, Image.Image], tools: dict[str, Any], probing_file: Path, teller: str
) -> None:
    prompt = compared(tools, server, photographs)
    prompt["m"] = tools["node"]("RALI_LoadModel", model=teller, dtype="auto", device="auto")
    prompt["s"]["inputs"]["model"] = ["m", 0]
    files = [server.folder / "input" / prompt[f"l{number}"]["inputs"]["image"] for number in (1, 2, 3)]
    result = RaliScorer.from_pretrained(probing_file, device="cpu", attributes=True).score(files)
    expected = [list(told.words) for told in result.attributes if told]
    assert any(expected)
    for threshold in (0.5, 0.6):  # the second time from the cache of scores
        prompt["s"]["inputs"]["threshold"] = threshold
        shown = server.run(prompt).check().outputs["s"]["rali"][0]
        assert shown["words"] == expected
        assert shown["scores"] == pytest.approx(result.scores.tolist(), abs=1e-5)
        lines = {int(re.findall(r"image (\d)", line)[0]): line for line in shown["report"].splitlines()[:3]}
        for index, words in enumerate(expected):
            said = f"{shown['bands'][index]}{': ' * bool(words)}{', '.join(words)}{';' if words else ','} better than"
            assert said in lines[index]


def test_the_documented_script_prints_the_scores(
    server: Any, photographs: dict[str, Image.Image], tools: dict[str, Any], tmp_path: Path
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "comfyui.md").read_text(), re.DOTALL)
    assert len(script.splitlines()) == 15
    (tmp_path / "workflow_api.json").write_text(json.dumps(compared(tools, server, photographs)))
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "script.py", server.url]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600).stdout
    assert "node s: mean 0." in printed
    assert "node b: kept 2 of 3" in printed
    assert "1. image 1: 0." in printed


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_every_input_and_output_has_a_translated_name_and_tooltip(server: Any, language: str) -> None:
    names = json.loads((REPOSITORY / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    info = server.get("/object_info")
    ours = [kind for kind in info if kind.startswith("RALI_")]
    assert set(ours) == set(names)
    assert len(ours) == 18
    for kind in ours:
        shown, known = info[kind], names[kind]
        inputs = {**shown["input"].get("required", {}), **shown["input"].get("optional", {})}
        assert set(known["inputs"]) == set(inputs), kind
        assert list(known["outputs"]) == [str(place) for place in range(len(shown["output"]))], kind
        for entry in (known, *known["inputs"].values(), *known["outputs"].values()):
            assert all(entry.values()), kind
            if "tooltip" in entry:
                assert not entry["tooltip"].isascii(), kind
