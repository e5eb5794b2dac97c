"""ComfyUI's own page in headless Chromium: what a user sees and does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
SHOTS = Path(os.environ.get("RALI_SCREENSHOTS", REPOSITORY / "build" / "screenshots"))
PANEL = ".rali-scores"


@pytest.fixture(scope="module")
def browser(comfy_home: Path) -> Iterator[Any]:  # noqa: ARG001  without a ComfyUI there is nothing to browse
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        sync_playwright = None
    if not chromium or sync_playwright is None:
        missing = "Chromium" if not chromium else "playwright"
        if os.environ.get("RALI_COMFY"):
            raise FileNotFoundError(f"{missing} is needed for the page's tests")
        pytest.skip(f"no {missing}")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium, headless=True, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


class Page:
    """The page, opened.

    Args:
        browser: Chromium.
        url: The server.
        vue: Which of the two node renderers.
    """

    def __init__(self, browser: Any, server: Any, *, vue: bool = False) -> None:
        self.server = server
        settings = {
            "Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False,
            "Comfy.Workflow.Persist": False, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": vue,
        }  # fmt: skip
        assert server.post("/api/settings", settings)[0] == 200
        self.context = browser.new_context(viewport={"width": 1600, "height": 1000})
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(server.url, wait_until="domcontentloaded")
        self.page.wait_for_function("() => window.app?.graph && window.app?.extensionManager")
        self.page.wait_for_function("() => !document.querySelector('.p-progressspinner')")
        self.page.wait_for_timeout(1500)
        self.do("Comfy.NewBlankWorkflow")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and "rali" in message.text.lower():
            self.problems.append(message.text)

    def do(self, command: str) -> None:
        """Run one of the page's commands."""
        self.page.evaluate("(name) => app.extensionManager.command.execute(name)", command)
        self.page.wait_for_timeout(800)

    def add(self, kind: str, x: int, y: int, **widgets: Any) -> int:
        """Put a node on the canvas; its id."""
        number: int = self.page.evaluate(
            """([kind, x, y, widgets]) => {
                const node = LiteGraph.createNode(kind); node.pos = [x, y]; app.graph.add(node);
                for (const widget of node.widgets ?? []) if (widget.name in widgets) widget.value = widgets[widget.name];
                return node.id; }""",
            [kind, x, y, widgets],
        )
        return number

    def wire(self, source: int, output: int, target: int, name: str) -> None:
        """Connect two nodes."""
        self.page.evaluate(
            """([source, output, target, name]) => {
                const to = app.graph.getNodeById(target);
                app.graph.getNodeById(source).connect(output, to, to.inputs.findIndex(x => x.name === name)); }""",
            [source, output, target, name],
        )

    def run(self) -> None:
        """Press Run, as the button does, and wait for the end."""
        self.page.evaluate(
            """() => { window.raliEnd = null; for (const kind of ["execution_success", "execution_error"])
                app.api.addEventListener(kind, () => { window.raliEnd = kind; }); }"""
        )
        self.do("Comfy.QueuePrompt")
        self.page.wait_for_function("() => window.raliEnd")
        assert self.page.evaluate("() => window.raliEnd") == "execution_success"
        self.page.wait_for_timeout(1500)

    def numbers(self) -> list[float]:
        """The scores that can be seen on nodes."""
        found = self.page.locator(f"{PANEL}:visible [data-rali-score]")
        return [float(found.nth(i).get_attribute("data-rali-score")) for i in range(found.count())]

    def shot(self, name: str) -> Path:
        """Keep a picture of the page."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")
        return SHOTS / f"{name}.png"

    def close(self) -> None:
        """Close the page; it must not have complained about us."""
        self.context.close()
        assert self.problems == []


@pytest.fixture(scope="module")
def pictures(new_server: Any, photographs: dict[str, Image.Image], tools: dict[str, Any]) -> dict[str, str]:
    good = photographs["astronaut"]
    for name in ("good.png", "example.png"):
        new_server.picture(name, good)
    new_server.picture("bad.png", tools["degrade"](good, 5))
    return {"good": "good.png", "bad": "bad.png"}


def scored_graph(page: Page, pictures: dict[str, str]) -> None:
    one = page.add("LoadImage", 60, 80, image=pictures["good"])
    two = page.add("LoadImage", 60, 480, image=pictures["bad"])
    batch = page.add("ImageBatch", 420, 80)
    score = page.add("RALI_Score", 720, 80)
    page.wire(one, 0, batch, "image1")
    page.wire(two, 0, batch, "image2")
    page.wire(batch, 0, score, "images")


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_scores_are_seen_on_the_node_also_on_a_cached_run_and_after_reloading(
    browser: Any, new_server: Any, pictures: dict[str, str], vue: bool
) -> None:
    name = "vue" if vue else "canvas"
    page = Page(browser, new_server, vue=vue)
    scored_graph(page, pictures)
    page.run()
    scores = page.numbers()
    page.shot(f"score-{name}")
    assert len(scores) == 2
    assert page.page.locator(f"{PANEL}:visible .rali-note").first.inner_text().startswith("mean 0.")
    page.run()
    assert page.numbers() == scores
    saved = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    node = next(node for node in saved["nodes"] if node["type"] == "RALI_Score")
    assert len(node["widgets_values"]) == 3  # aggregation, threshold, coverage; the panel is not a value
    page.close()

    again = Page(browser, new_server, vue=vue)
    assert again.numbers() == []
    again.page.evaluate("(saved) => app.loadGraphData(saved)", saved)
    again.page.wait_for_timeout(2000)
    again.shot(f"reloaded-{name}")
    assert again.numbers() == scores
    again.close()


def test_pass_and_fail_are_told_apart(browser: Any, new_server: Any, pictures: dict[str, str]) -> None:
    page = Page(browser, new_server)
    scored_graph(page, pictures)
    page.run()
    low, high = sorted(page.numbers())
    middle = (low + high) / 2
    page.page.evaluate(
        "(limit) => { app.graph._nodes.find(n => n.type === 'RALI_Score').widgets.find(w => w.name === 'threshold')"
        ".value = limit; }",
        middle,
    )
    page.run()
    found = page.page.locator(f"{PANEL}:visible [data-rali-passed]")
    verdicts = {
        found.nth(i).get_attribute("data-rali-score"): found.nth(i).get_attribute("data-rali-passed") for i in range(2)
    }
    page.shot("pass-and-fail")
    assert verdicts == {f"{low:.3f}": "false", f"{high:.3f}": "true"}
    page.close()


def test_the_node_is_found_by_search(browser: Any, new_server: Any) -> None:
    page = Page(browser, new_server)
    page.page.mouse.dblclick(800, 500)
    page.page.wait_for_timeout(1500)
    page.page.keyboard.type("RALI Score", delay=60)
    page.page.wait_for_timeout(2500)
    page.shot("search")
    page.page.keyboard.press("Enter")
    page.page.wait_for_timeout(1000)
    page.page.mouse.click(800, 500)
    page.page.wait_for_timeout(1000)
    assert page.page.evaluate("() => app.graph._nodes.map(n => n.type)") == ["RALI_Score"]
    assert page.page.locator(f"{PANEL}:visible").first.inner_text() == "press Run to see scores"
    page.close()


def test_the_node_is_dragged_from_the_sidebar(browser: Any, new_server: Any) -> None:
    page = Page(browser, new_server)
    page.do("Workspace.ToggleSidebarTab.node-library")
    page.page.wait_for_timeout(1500)
    box = page.page.locator("input[placeholder*='earch']:visible").first
    box.fill("RALI Contact")
    page.page.wait_for_timeout(2500)
    page.shot("sidebar")
    entry = page.page.get_by_text("RALI Contact Sheet").first
    place = entry.bounding_box()
    page.page.mouse.move(place["x"] + 20, place["y"] + place["height"] / 2)
    page.page.mouse.down()
    page.page.mouse.move(700, 400, steps=10)
    page.page.mouse.move(900, 500, steps=10)
    page.page.mouse.up()
    page.page.wait_for_timeout(1500)
    if not page.page.evaluate("() => app.graph._nodes.length"):
        page.page.mouse.click(900, 500)
        page.page.wait_for_timeout(1000)
    page.shot("dragged")
    assert page.page.evaluate("() => app.graph._nodes.map(n => n.type)") == ["RALI_ContactSheet"]
    page.close()


def test_a_template_opens_from_the_template_browser(browser: Any, new_server: Any, pictures: dict[str, str]) -> None:
    assert pictures
    listed = new_server.get("/api/workflow_templates")
    assert len(listed["ComfyUI-RALI"]) >= 6
    page = Page(browser, new_server)
    page.do("Comfy.BrowseTemplates")
    page.page.wait_for_timeout(4000)
    page.page.get_by_text("ComfyUI-RALI").first.click()
    page.page.wait_for_timeout(2500)
    page.shot("templates")
    page.page.get_by_text("RALI - score an image").first.click()
    page.page.wait_for_timeout(4000)
    page.shot("template-opened")
    assert sorted(page.page.evaluate("() => app.graph._nodes.map(n => n.type)")) == ["LoadImage", "RALI_Score"]
    page.run()
    assert len(page.numbers()) == 1
    page.close()


@pytest.mark.parametrize("file", sorted((REPOSITORY / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_every_workflow_loads_with_all_its_wires(browser: Any, new_server: Any, file: Path) -> None:
    saved = json.loads(file.read_text(encoding="utf-8"))
    page = Page(browser, new_server)
    page.page.evaluate("(saved) => app.loadGraphData(saved)", saved)
    page.page.wait_for_timeout(2000)
    page.page.evaluate("() => app.canvas.ds && app.canvas.fitViewToSelectionAnimated?.()")
    page.do("Comfy.Canvas.FitView")
    page.page.wait_for_timeout(1000)
    page.shot("workflow-" + file.stem.replace(" ", "-"))
    loaded = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    assert {node["type"] for node in loaded["nodes"]} == {node["type"] for node in saved["nodes"]}
    assert len(loaded["links"]) == len(saved["links"])
    values = {node["id"]: node.get("widgets_values") for node in loaded["nodes"]}
    for node in saved["nodes"]:
        assert list(values[node["id"]] or []) == node["widgets_values"], node["type"]
    # The checkpoint is the user's own: the page marks its loader where the file is not there.
    marked = page.page.evaluate("() => app.graph._nodes.filter(n => n.has_errors).map(n => n.type)")
    assert set(marked) <= {"CheckpointLoaderSimple"}
    page.close()
