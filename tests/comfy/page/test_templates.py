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


CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
STAND_IN = {"CheckpointLoaderSimple": {0: 0, 2: 2}, "CLIPTextEncode": {0: 1}}
"""Outputs of nodes that need a checkpoint, to those of the test pack's tiny random diffusion model."""


def with_tiny_model(prompt: dict[str, Any]) -> dict[str, Any]:
    """A prompt as the page queues it, with a tiny model instead of the checkpoint, two steps and 64 pixels."""
    kinds = {number: node["class_type"] for number, node in prompt.items()}
    made: dict[str, Any] = {"tiny": {"class_type": "Test_TinyDiffusion", "inputs": {}}}
    for number, node in prompt.items():
        if kinds[number] in STAND_IN:
            continue
        inputs = dict(node["inputs"])
        for name, value in inputs.items():
            if isinstance(value, list) and kinds.get(value[0]) in STAND_IN:
                inputs[name] = ["tiny", STAND_IN[kinds[value[0]]][value[1]]]
        inputs |= {"steps": 2} if "steps" in inputs else {}
        inputs |= {"width": 64, "height": 64} if kinds[number] == "EmptyLatentImage" else {}
        made[number] = {**node, "inputs": inputs}
    return made


def swap_model(route: Any) -> None:
    """Answers the page's requests to queue a prompt."""
    if route.request.method != "POST":
        route.continue_()
        return
    body = json.loads(route.request.post_data)
    route.continue_(post_data=json.dumps({**body, "prompt": with_tiny_model(body["prompt"])}))


def browse(page: Any) -> None:
    """Open the template browser at this pack's templates."""
    page.page.set_viewport_size({"width": 1600, "height": 2400})  # what is out of sight is not loaded
    page.do("Comfy.BrowseTemplates")
    page.page.get_by_text("ComfyUI-RALI").first.click()
    page.wait(f"{THUMBNAILS}.length >= {len(FILES)}")


def test_every_template_opens_from_the_template_browser_and_runs(
    open_page: Callable[..., Any], server: Any, images: dict[str, str]
) -> None:
    assert images
    listed = server.get("/api/workflow_templates")
    assert sorted(listed["ComfyUI-RALI"]) == [path.stem for path in FILES]
    (server.folder / "models" / "checkpoints").mkdir(exist_ok=True)
    (server.folder / "models" / "checkpoints" / CHECKPOINT).touch()  # shown, not loaded
    page = open_page()
    page.page.route("**/api/prompt", swap_model)
    for file in FILES:
        nodes = json.loads(file.read_text(encoding="utf-8"))["nodes"]
        page.clear()
        browse(page)
        if file is FILES[0]:
            page.shot("templates")
        page.page.get_by_text(file.stem).first.click()
        page.wait(f"app.graph._nodes.length === {len(nodes)}")
        assert page.kinds() == sorted(node["type"] for node in nodes)
        page.do("Comfy.Canvas.FitView")
        page.run()
        page.state("current")
        page.shot("template-" + file.stem.replace(" ", "-"))


def test_the_page_offers_to_download_a_templates_checkpoint(open_page: Callable[..., Any], server: Any) -> None:
    (server.folder / "models" / "checkpoints" / CHECKPOINT).unlink(missing_ok=True)
    page = open_page()
    browse(page)
    page.page.get_by_text("RALI - generate 8, keep the best").first.click()
    page.page.get_by_text(CHECKPOINT).first.wait_for()
    page.page.get_by_role("button", name="View details").first.click()
    page.page.get_by_role("button", name=f"Download {CHECKPOINT}").wait_for()
    page.shot("template-checkpoint")


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
