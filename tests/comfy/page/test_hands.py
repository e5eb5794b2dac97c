"""With mouse and keyboard only: find the node, place it, wire it, press Run, drop a saved image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

PANEL = ".rali-scores:visible"
WORDS = {
    "RALI Score": "image quality, sharpness, aesthetic, 画质, 质量, 评分, 画質, 品質, スコア",
    "RALI Filter": "filter images, 过滤图像, 画像フィルター",
    "RALI Best of N": "auto select, pick best, 择优, ベスト",
}
NODE_OF_TYPE = "app.graph._nodes.find(node => node.type === '{}')?.id"


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_a_node_dragged_from_the_sidebar_and_wired_shows_a_score_when_run_is_pressed(
    open_page: Callable[..., Any], images: dict[str, str], vue: bool
) -> None:
    page, name = open_page(vue=vue), "vue" if vue else "canvas"
    image = page.add("LoadImage", 400, 200, image=images["good"])
    page.do("Workspace.ToggleSidebarTab.node-library")
    page.page.get_by_placeholder("Search...").fill("RALI Score")
    entry = page.page.get_by_text("RALI Score", exact=True).first
    entry.hover()
    page.shot(f"sidebar-{name}")
    box = entry.bounding_box()
    page.drag((box["x"] + 20, box["y"] + box["height"] / 2), (1200, 400))
    page.wait("app.graph._nodes.some(node => node.type === 'RALI_Score')")
    assert page.kinds() == ["LoadImage", "RALI_Score"]
    page.do("Workspace.ToggleSidebarTab.node-library")
    score = page.page.evaluate("() => " + NODE_OF_TYPE.format("RALI_Score"))
    page.page.locator(PANEL, has_text="Nothing is connected to images").wait_for()
    page.drag(
        page.place(image, "node.getConnectionPos(false, 0)"),
        page.place(score, "node.getConnectionPos(true, node.inputs.findIndex(x => x.name === 'images'))"),
    )
    page.wait("app.graph.links.size === 1")
    page.shot(f"wired-{name}")
    links = page.page.evaluate("() => [...app.graph.links.values()].map(x => [x.origin_id, x.target_id])")
    assert [[str(number) for number in link] for link in links] == [[str(image), str(score)]]
    page.run()
    assert len(page.numbers(1)) == 1
    page.shot(f"run-{name}")


def test_the_node_is_found_by_search(open_page: Callable[..., Any]) -> None:
    page = open_page()
    box = page.page.get_by_placeholder("Add a node")
    page.double_click_until(box, (800, 500))
    for found, words in WORDS.items():
        for word in words.split(", "):
            box.fill(word)
            page.page.locator("#result-item-0[aria-selected=true]", has_text=found).wait_for()
    # Among the others: the page puts nodes with the word in their names, and core nodes that are used often, first.
    for word in ("score", "quality", "rate", "grade"):
        box.fill(word)
        page.page.get_by_test_id("result-item").filter(has_text="RALI Score").first.wait_for()
    page.shot("search-word")
    box.fill("RALI Score")
    page.page.locator("#result-item-0[aria-selected=true]", has_text="RALI Score").wait_for()
    page.shot("search")
    box.press("Enter")
    box.wait_for(state="hidden")
    page.wait("app.graph._nodes.length === 1")
    page.page.mouse.click(800, 500)  # the new node follows the mouse until a click
    page.wait("!app.graph._nodes[0].flags.ghost")
    assert page.kinds() == ["RALI_Score"]


@pytest.mark.parametrize("file_format", ["png", "webp"])
def test_a_saved_image_dropped_on_the_page_brings_its_workflow_back(
    open_page: Callable[..., Any], images: dict[str, str], server: Any, file_format: str
) -> None:
    page = open_page()
    image = page.add("LoadImage", 60, 80, image=images["good"])
    score = page.add("RALI_Score", 420, 80, threshold=0.123)
    save = page.add("RALI_SaveImage", 780, 80, format=file_format, filename_prefix=f"dropped/{file_format}")
    page.wire(image, 0, score, "images")
    page.wire(score, 0, save, "images")
    page.wire(score, 2, save, "scores")
    page.run()
    shown = page.numbers(2)  # on RALI Score and on RALI Save Image
    page.shot(f"saved-{file_format}")
    (first,) = (server.folder / "output" / "dropped").glob(f"{file_format}*.{file_format}")
    first.unlink()
    page.page.evaluate(
        "(id) => { app.graph.getNodeById(id).widgets.find(w => w.name === 'quality').value = 55; }", save
    )
    page.run()
    (second,) = (server.folder / "output" / "dropped").glob(f"{file_format}*.{file_format}")
    page.clear()
    page.drop(second)
    page.wait("app.graph._nodes.length === 3 && app.graph.links.size === 3")
    page.shot(f"dropped-{file_format}")
    assert page.kinds() == ["LoadImage", "RALI_SaveImage", "RALI_Score"]
    threshold = f"app.graph.getNodeById({NODE_OF_TYPE.format('RALI_Score')}).widgets.find(w => w.name === 'threshold')"
    assert page.page.evaluate(f"() => {threshold}.value") == pytest.approx(0.12)  # the widget's step is 0.01
    assert page.numbers(2) == shown  # from the server's history: the file's workflow holds none
    if file_format == "png":
        with Image.open(second) as saved:
            assert "rali_scores" not in saved.info["workflow"]
            assert f"{shown[0]:.3f}" not in saved.info["workflow"]
