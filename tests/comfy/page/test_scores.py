"""Scores on the nodes, in both of the page's node renderers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PANEL = ".rali-scores:visible"
SET_THRESHOLD = """(limit) => { const node = app.graph._nodes.find(node => node.type === "RALI_Score");
    node.widgets.find(widget => widget.name === "threshold").value = limit; }"""
RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])


def scored_graph(page: Any, pictures: dict[str, str]) -> None:
    one = page.add("LoadImage", 60, 80, image=pictures["good"])
    two = page.add("LoadImage", 60, 480, image=pictures["bad"])
    batch = page.add("ImageBatch", 420, 80)
    score = page.add("RALI_Score", 720, 80)
    page.wire(one, 0, batch, "image1")
    page.wire(two, 0, batch, "image2")
    page.wire(batch, 0, score, "images")


@RENDERERS
def test_scores_are_seen_on_the_node_also_on_a_cached_run_and_when_the_saved_workflow_is_opened(
    open_page: Callable[..., Any], pictures: dict[str, str], vue: bool
) -> None:
    name = "vue" if vue else "canvas"
    page = open_page(vue=vue)
    scored_graph(page, pictures)
    page.run()
    scores = page.numbers(2)
    page.shot(f"score-{name}")
    assert scores[0] > scores[1]
    assert page.page.locator(f"{PANEL} .rali-note").first.inner_text().startswith("mean 0.")
    page.run()
    assert page.numbers(2) == scores

    page.page.evaluate(SET_THRESHOLD, sum(scores) / 2)
    page.run()
    assert page.numbers(2) == scores
    assert page.seen("data-rali-passed", 2) == ["true", "false"]
    page.shot(f"pass-and-fail-{name}")
    saved = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    node = next(node for node in saved["nodes"] if node["type"] == "RALI_Score")
    assert len(node["widgets_values"]) == 3  # aggregation, threshold, coverage; the panel is not a value
    page.save(f"scored-{name}")

    again = open_page(vue=vue)
    assert again.numbers(0) == []
    again.do("Workspace.ToggleSidebarTab.workflows")
    again.page.get_by_test_id("workflows-sidebar").get_by_text(f"scored-{name}").first.click()
    assert again.numbers(2) == scores
    assert again.seen("data-rali-passed", 2) == ["true", "false"]
    again.shot(f"reloaded-{name}")
