"""The template workflows on the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

FILES = sorted((Path(__file__).resolve().parents[3] / "workflows").glob("*.json"))
THUMBNAILS = "[...document.querySelectorAll('img')].filter(x => x.src.startsWith('blob:') && x.naturalWidth === 640)"


def test_a_template_opens_from_the_template_browser_and_runs(
    open_page: Callable[..., Any], server: Any, images: dict[str, str]
) -> None:
    assert images
    listed = server.get("/api/workflow_templates")
    assert sorted(listed["ComfyUI-RALI"]) == [path.stem for path in FILES]
    page = open_page()
    page.page.set_viewport_size({"width": 1600, "height": 2400})  # what is out of sight is not loaded
    page.do("Comfy.BrowseTemplates")
    page.page.get_by_text("ComfyUI-RALI").first.click()
    page.wait(f"{THUMBNAILS}.length >= {len(FILES)}")
    page.shot("templates")
    page.page.get_by_text("RALI - score an image").first.click()
    page.wait("app.graph._nodes.length === 3")
    page.shot("template-opened")
    assert sorted(page.kinds()) == ["LoadImage", "MarkdownNote", "RALI_Score"]
    page.run()
    assert len(page.numbers(1)) == 1


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_every_workflow_loads_with_all_its_wires_and_nothing_overlaps(
    open_page: Callable[..., Any], images: dict[str, str], vue: bool
) -> None:
    assert images
    page = open_page(vue=vue)
    for file in FILES:
        saved = json.loads(file.read_text(encoding="utf-8"))
        page.load(saved)
        page.do("Comfy.Canvas.FitView")
        page.shot(f"workflow-{'vue' if vue else 'canvas'}-" + file.stem.replace(" ", "-"))
        loaded = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
        assert sorted(node["type"] for node in loaded["nodes"]) == sorted(node["type"] for node in saved["nodes"])
        assert len(loaded["links"]) == len(saved["links"])
        values = {node["id"]: node.get("widgets_values") for node in loaded["nodes"]}
        for node in saved["nodes"]:
            assert list(values[node["id"]] or []) == node["widgets_values"], node["type"]
        # Checkpoint and video are the user's own: the page marks their loaders where the file is not there.
        marked = page.page.evaluate("() => app.graph._nodes.filter(n => n.has_errors).map(n => n.type)")
        assert set(marked) <= {"CheckpointLoaderSimple", "LoadVideo"}
        boxes = page.page.evaluate("() => app.graph._nodes.map(n => [n.type, n.pos[0], n.pos[1] - 30, ...n.size])")
        for (one, x1, y1, w1, h1), (two, x2, y2, w2, h2) in combinations(boxes, 2):
            apart = x1 + w1 <= x2 or x2 + w2 <= x1 or y1 + h1 + 30 <= y2 or y2 + h2 + 30 <= y1
            assert apart, f"{file.stem}: {one} and {two} overlap"
