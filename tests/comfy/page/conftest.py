"""ComfyUI's own page in headless Chromium: what a user sees and does."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[3]
SHOTS = Path(os.environ.get("RALI_SCREENSHOTS", REPOSITORY / "build" / "screenshots"))
PANEL = ".rali-scores:visible"
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
AT_REST = """() => {
    const before = window.raliGraph;
    window.raliGraph = JSON.stringify(app.graph.serialize());
    return window.raliGraph === before && [...document.images].every(image => image.complete); }"""
DROP = """async ([name, type, data]) => {
    const bytes = Uint8Array.from(atob(data), x => x.charCodeAt(0)), transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    const canvas = document.querySelector("#graph-canvas"), box = canvas.getBoundingClientRect();
    for (const kind of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(kind, {
        dataTransfer: transfer, bubbles: true, cancelable: true, clientX: box.x + 900, clientY: box.y + 800 })); }"""


@pytest.fixture(scope="session")
def browser(comfy_home: Path) -> Iterator[Any]:  # noqa: ARG001  without a ComfyUI there is nothing to browse
    """Chromium; its absence is an error where RALI_COMFY asks for these tests."""
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
    """The page, opened on an empty graph.

    Args:
        browser: Chromium.
        server: A running ComfyUI.
        vue: Which of the two node renderers.
        settings: Further settings of the page.
    """

    def __init__(self, browser: Any, server: Any, *, vue: bool = False, **settings: Any) -> None:
        self.vue = vue
        settings = {
            "Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False, "Comfy.Locale": "en",
            "Comfy.Workflow.Persist": False, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": vue,
            "Comfy.RightSidePanel.IsOpen": False, **settings,
        }  # fmt: skip
        assert server.post("/api/settings", settings)[0] == 200
        self.context = browser.new_context(viewport={"width": 1600, "height": 1000})
        self.page = self.context.new_page()
        self.page.set_default_timeout(300_000)  # for a machine that does other work as well; nothing waits in vain
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._console)
        self.url = server.url
        self.reload()

    def _console(self, message: Any) -> None:
        # The page asks the registry about each pack whose nodes it shows; here it reaches nothing but its own server.
        asked = "Content Security Policy" in message.text and "api.comfy.org" in message.text
        if message.type in ("error", "warning") and "rali" in message.text.lower() and not asked:
            self.problems.append(message.text)

    def reload(self) -> None:
        """Reload the page, on an empty graph."""
        self.page.goto(self.url, wait_until="domcontentloaded")
        # Set after the spinner and before it goes: the page opens its own first workflow in between.
        self.wait("window.app?.extensionManager?.spinner === false")
        self.clear()

    def wait(self, condition: str) -> None:
        """Wait until JavaScript finds it true."""
        self.page.wait_for_function(f"() => {condition}")

    def settle(self) -> None:
        """Wait until the page has drawn what it knows."""
        self.page.evaluate(DRAWN)

    def rest(self) -> None:
        """Wait until images are loaded and the graph stays as it is: Vue lays nodes out when it has the time."""
        self.page.wait_for_function(AT_REST, polling=1000)

    def do(self, command: str) -> None:
        """Run one of the page's commands, to its end."""
        self.page.evaluate("(name) => app.extensionManager.command.execute(name)", command)
        self.settle()

    def double_click_until(self, box: Any, place: tuple[int, int], *, tries: int = 20) -> None:
        """Double-click the canvas until `box` shows; on a busy machine two clicks may come too far apart for one."""
        for _ in range(tries):
            self.page.mouse.dblclick(*place)
            with suppress(Exception):  # playwright's own TimeoutError; it is imported by the browser alone
                box.wait_for(timeout=10_000)
            if box.is_visible():
                return
        raise AssertionError(f"nothing opened after {tries} double clicks at {place}")

    def clear(self) -> None:
        """Begin an empty workflow."""
        self.do("Comfy.NewBlankWorkflow")
        self.wait("app.graph._nodes.length === 0")

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow, and wait until each of its nodes is drawn."""
        self.page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
        self.wait(f"app.graph._nodes.length === {len(workflow['nodes'])}")
        if self.vue:
            self.wait(f"document.querySelectorAll('[data-node-id]').length === {len(workflow['nodes'])}")
        self.settle()

    def save(self, name: str) -> None:
        """Save the workflow under a name, as a user does it."""
        with self.page.expect_response(lambda reply: "/userdata/" in reply.url and reply.request.method == "POST"):
            self.page.keyboard.press("Control+s")
            self.page.get_by_role("dialog").get_by_role("textbox").fill(name)
            self.page.keyboard.press("Enter")

    def kinds(self) -> list[str]:
        """Types of the nodes on the canvas."""
        found: list[str] = self.page.evaluate("() => app.graph._nodes.map(node => node.type).sort()")
        return found

    def add(self, kind: str, x: int, y: int, /, **widgets: Any) -> int:
        """Put a node on the canvas; its id."""
        number: int = self.page.evaluate(
            """([kind, x, y, widgets]) => {
                const node = LiteGraph.createNode(kind); node.pos = [x, y]; app.graph.add(node);
                for (const widget of node.widgets ?? []) if (widget.name in widgets) {
                    widget.value = widgets[widget.name]; widget.callback?.(widget.value); }
                return node.id; }""",
            [kind, x, y, widgets],
        )
        return number

    def wire(self, source: int, output: int, target: int, name: str) -> None:
        """Connect two nodes without the mouse."""
        self.page.evaluate(
            """([source, output, target, name]) => {
                const to = app.graph.getNodeById(target);
                app.graph.getNodeById(source).connect(output, to, to.inputs.findIndex(x => x.name === name)); }""",
            [source, output, target, name],
        )

    def place(self, node: int, expression: str) -> tuple[float, float]:
        """Where on the screen a point of a node is; the expression gives it on the canvas."""
        x, y = self.page.evaluate(
            f"(id) => {{ const node = app.graph.getNodeById(id); return app.canvasPosToClientPos({expression}); }}",
            node,
        )
        return x, y

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press, move, let go."""
        self.settle()
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 20, steps=10)
        self.page.mouse.move(*end, steps=10)
        self.page.mouse.up()
        self.settle()

    def drop(self, file: Path) -> None:
        """Drop a file onto the canvas."""
        kind = f"image/{file.suffix[1:]}"
        self.page.evaluate(DROP, [file.name, kind, base64.b64encode(file.read_bytes()).decode()])

    def run(self, ending: str = "execution_success") -> None:
        """Press Run and wait for this end."""
        self.page.evaluate(
            """() => { window.raliEnd = null; for (const kind of ["execution_success", "execution_error"])
                app.api.addEventListener(kind, () => { window.raliEnd = kind; }); }"""
        )
        self.page.get_by_test_id("queue-button").click()
        self.wait("window.raliEnd")
        assert self.page.evaluate("() => window.raliEnd") == ending
        self.settle()

    def state(self, name: str) -> None:
        """Wait until the only panel that can be seen says this of itself, and nothing else looks current."""
        self.page.locator(f"{PANEL}[data-rali-state={name}]").first.wait_for()
        assert self.page.locator(f"{PANEL}:not([data-rali-state={name}])").count() == 0

    def seen(self, attribute: str, count: int) -> list[str]:
        """An attribute of the `count` score lines that can be seen on nodes, once there are so many."""
        found = self.page.locator(f"{PANEL} [data-rali-score]:visible")
        if count:
            found.nth(count - 1).wait_for()
        assert found.count() == count
        return [found.nth(index).get_attribute(attribute) for index in range(count)]

    def numbers(self, count: int) -> list[float]:
        """The `count` scores that can be seen on nodes."""
        return [float(text) for text in self.seen("data-rali-score", count)]

    def shot(self, name: str) -> Path:
        """Keep an image of the page."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.settle()
        self.page.screenshot(path=SHOTS / f"{name}.png")
        return SHOTS / f"{name}.png"

    def close(self) -> None:
        """Close the page; it must not have complained about us."""
        self.context.close()
        assert self.problems == []


@pytest.fixture
def open_page(browser: Any, server: Any) -> Iterator[Callable[..., Page]]:
    """Opens pages, and closes them at the end of the test."""
    opened: list[Page] = []

    def begin(**settings: Any) -> Page:
        opened.append(Page(browser, server, **settings))
        return opened[-1]

    yield begin
    for page in opened:
        page.close()


@pytest.fixture(scope="session")
def images(server: Any, photographs: dict[str, Image.Image], tools: dict[str, Any]) -> dict[str, str]:
    """Names of a good and a bad image in the input folder; `example.png`, which the templates name, is there too."""
    good = photographs["astronaut"]
    for name in ("good.png", "example.png"):
        server.upload(name, good)
    server.upload("bad.png", tools["degrade"](good, 5))
    return {"good": "good.png", "bad": "bad.png"}
