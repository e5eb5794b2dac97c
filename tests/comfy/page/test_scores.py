"""Scores on the nodes, in both of the page's node renderers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PANEL = ".rali-scores:visible"
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
def test_scores_are_seen_on_the_node_also_on_a_cached_run_and_after_reloading(
    open_page: Callable[..., Any], pictures: dict[str, str], vue: bool
) -> None:
    name = "vue" if vue else "canvas"
    page = open_page(vue=vue)
    scored_graph(page, pictures)
    page.run()
    scores = page.numbers()
    page.shot(f"score-{name}")
    assert len(scores) == 2
    assert scores[0] > scores[1]
    assert page.page.locator(f"{PANEL} .rali-note").first.inner_text().startswith("mean 0.")
    page.run()
    assert page.numbers() == scores
    saved = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    node = next(node for node in saved["nodes"] if node["type"] == "RALI_Score")
    assert len(node["widgets_values"]) == 3  # aggregation, threshold, coverage; the panel is not a value

    again = open_page(vue=vue)
    assert again.numbers() == []
    again.page.evaluate("(saved) => app.loadGraphData(saved)", saved)
    again.wait("document.querySelectorAll('.rali-scores [data-rali-score]').length === 2")
    again.page.wait_for_timeout(500)
    again.shot(f"reloaded-{name}")
    assert again.numbers() == scores


@RENDERERS
def test_pass_and_fail_are_told_apart(open_page: Callable[..., Any], pictures: dict[str, str], vue: bool) -> None:
    page = open_page(vue=vue)
    scored_graph(page, pictures)
    page.run()
    low, high = sorted(page.numbers())
    page.page.evaluate(
        "(limit) => { app.graph._nodes.find(n => n.type === 'RALI_Score').widgets.find(w => w.name === 'threshold')"
        ".value = limit; }",
        (low + high) / 2,
    )
    page.run()
    found = page.page.locator(f"{PANEL} [data-rali-passed]")
    verdicts = {
        found.nth(i).get_attribute("data-rali-score"): found.nth(i).get_attribute("data-rali-passed") for i in range(2)
    }
    page.shot("pass-and-fail-" + ("vue" if vue else "canvas"))
    assert verdicts == {f"{low:.3f}": "false", f"{high:.3f}": "true"}
