"""Help pages and translated names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[3]
NODES = sorted(path.stem for path in (REPOSITORY / "web" / "docs").glob("*.md"))


def test_every_nodes_help_page_opens_with_its_image(open_page: Callable[..., Any]) -> None:
    assert len(NODES) >= 18
    page = open_page()
    for kind in NODES:
        page.clear()
        node = page.add(kind, 200, 200)
        page.settle()
        page.page.mouse.click(*page.place(node, "[node.pos[0] + 60, node.pos[1] - 15]"))
        page.page.get_by_test_id("info-button").first.click()
        page.wait(f"[...document.querySelectorAll('img')].some(x => x.src.endsWith('/{kind}.webp') && x.naturalWidth)")
        title = (REPOSITORY / "web" / "docs" / f"{kind}.md").read_text(encoding="utf-8").splitlines()[0][2:]
        page.page.get_by_role("heading", name=title).first.wait_for()
        page.shot(f"help-{kind}")


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_nodes_have_their_translated_names(open_page: Callable[..., Any], language: str) -> None:
    path = REPOSITORY / "locales" / language / "nodeDefs.json"
    names = json.loads(path.read_text(encoding="utf-8"))["RALI_Filter"]
    page = open_page(**{"Comfy.Locale": language})
    node = page.add("RALI_Filter", 200, 200)
    page.shot(f"language-{language}")
    seen = page.page.evaluate(
        "(id) => { const node = app.graph.getNodeById(id); return [node.title, ...node.inputs.map(x => x.localized_name),"
        " ...node.widgets.map(x => x.label)]; }",
        node,
    )
    assert seen[0] == names["display_name"] != "RALI Filter"
    assert {entry["name"] for entry in names["inputs"].values()} <= set(seen)


PROPER_NAMES = {"RALI_LoadModel": {"model", "dtype", "device"}, "RALI_SaveImage": {"format"}}
SAMPLING = {"sampler_name", "scheduler"}
LABELS = """(id) => app.graph.getNodeById(id).widgets.filter(each => each.type === "combo" && each.name !== "image")
    .flatMap(each => each.options.values.map(value => [each.name, value, each.options.getOptionLabel?.(value) ?? value]))"""


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_every_choice_has_its_translation(open_page: Callable[..., Any], language: str) -> None:
    page, found = open_page(**{"Comfy.Locale": language}), 0
    for kind in NODES:
        node = page.add(kind, 200, 200)
        for name, value, label in page.page.evaluate(LABELS, node):
            if name not in SAMPLING | PROPER_NAMES.get(kind, set()) and name != "control_after_generate":
                assert not label.isascii(), f"{kind}.{name}: {value}"
                found += 1
        page.clear()
    assert found > 60


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_choices_are_shown_by_their_plain_names_and_keep_their_values(open_page: Callable[..., Any], vue: bool) -> None:
    page = open_page(vue=vue)
    node = page.add("RALI_Gate", 200, 200, mode="either-or")
    labels = {(name, value): label for name, value, label in page.page.evaluate(LABELS, node)}
    assert labels["mode", "either-or"] == "switch"
    assert labels["coverage", "model's own"] == "auto (model default)"
    if vue:
        page.page.locator("[data-node-id]").get_by_text("switch", exact=True).first.wait_for()
    page.shot(f"choices-{'vue' if vue else 'canvas'}")
    saved = page.page.evaluate("() => app.graph.serialize().nodes[0].widgets_values")
    assert "either-or" in saved
