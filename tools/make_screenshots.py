"""Photograph ComfyUI's page: the templates' thumbnails, the help pages' images and those of docs/comfyui.md.

    .ci/comfy_setup FOLDER                               once: ComfyUI, its environment and Chromium
    python tools/make_screenshots.py FOLDER [PART ...]    needs playwright; PART: only images with it in their name

A separate ComfyUI is started, in a temporary folder, with a link to this checkout in custom_nodes: the
image of the template browser, made last, shows the thumbnails that were made just before.
example.png and a damaged copy of it are put into ComfyUI's input folder. The checkpoint that the templates name is an
empty file: it is shown, not loaded. Where a template generates, a node of the tests' pack stands in for it, and what is
"generated" are photographs of scikit-image, some of them damaged.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import make_figures
import numpy as np
from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tests" / "comfy" / "packs" / "probe"
STAND_IN = {"CheckpointLoaderSimple": {0: 0, 2: 2}, "CLIPTextEncode": {0: 1}}
"""Outputs of nodes that need a checkpoint, to those of Test_PhotographDiffusion."""
VERSION = "0.30.0"
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
# Notifications appear and disappear by time.
QUIET = ".p-toast, [data-testid='queue-notification-banner'] { display: none !important; }"
ENDED = """() => { window.ended = null; for (const kind of ["execution_success", "execution_error"])
    app.api.addEventListener(kind, () => { window.ended = kind; }); }"""
BOX = """(kinds) => { const all = app.graph._nodes.filter(n => !kinds || kinds.includes(n.type));
    const left = Math.min(...all.map(n => n.pos[0])), top = Math.min(...all.map(n => n.pos[1] - 30));
    const right = Math.max(...all.map(n => n.pos[0] + n.size[0]));
    const bottom = Math.max(...all.map(n => n.pos[1] + n.size[1]));
    return [app.canvasPosToClientPos([left, top]), app.canvasPosToClientPos([right, bottom])]; }"""
# As after a click: the page checks whether the graph has changed.
NOTICE = "() => { app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState(); }"
CHOOSE = """(name) => { const [widget] = app.graph._nodes[0].widgets; widget.value = name; widget.callback?.(name); }"""
ZOOM = """([scale, x, y]) => { const view = app.canvas.ds; view.scale = scale; view.offset[0] = x; view.offset[1] = y;
    app.canvas.setDirty(true, true); }"""

# node: (nodes [kind, x, y, widgets], wires [from, output, to, input], whether it can run here, what the image shows)
Scene = tuple[list[tuple[str, int, int, dict[str, Any]]], list[tuple[int, int, int, str]], bool, list[str] | None]
LOADED_IMAGES: list[tuple[str, int, int, dict[str, Any]]] = [
    ("LoadImage", 0, 0, {"image": "example.png"}),
    ("LoadImage", 0, 420, {"image": "damaged.png"}),
    ("BatchImagesNode", 360, 0, {}),
]
BATCH: list[tuple[int, int, int, str]] = [(0, 0, 2, "images.image0"), (1, 0, 2, "images.image1")]


def scene(kind: str, shown: int = 0, widgets: dict[str, Any] | None = None, more: Any = ()) -> Scene:
    """Two images, the node, and a preview of one of its outputs where that is an image (`shown` counts from 1)."""
    nodes = [*LOADED_IMAGES, (kind, 700, 0, widgets or {})]
    wires = [*BATCH, (2, 0, 3, "images"), *more]
    if shown:
        nodes.append(("PreviewImage", 1060, 0, {}))
        wires.append((3, shown - 1, 4, "images"))
    return nodes, wires, True, [kind, "PreviewImage"] if shown else [kind]


SCENES: dict[str, Scene] = {
    "RALI_LoadModel": ([("RALI_LoadModel", 600, 0, {})], [], False, None),
    "RALI_Score": scene("RALI_Score"),
    "RALI_BestOfN": scene("RALI_BestOfN", 1),
    "RALI_Filter": scene("RALI_Filter", 1),
    "RALI_Gate": scene("RALI_Gate", 1, {"aggregation": "mean", "threshold": 0.3}, [(2, 0, 3, "value")]),
    "RALI_BestOfNSampler": ([("RALI_BestOfNSampler", 600, 0, {})], [], False, None),
    "RALI_BestOfNCustom": ([("RALI_BestOfNCustom", 600, 0, {})], [], False, None),
    "RALI_RetryStart": ([("RALI_RetryStart", 600, 0, {})], [], False, None),
    "RALI_RetryEnd": ([("RALI_RetryEnd", 600, 0, {})], [], False, None),
    "RALI_QualityMap": scene("RALI_QualityMap", 2, {"tile_size": 128}),
    "RALI_ContactSheet": scene("RALI_ContactSheet", 1, {"columns": 2}),
    "RALI_CombineScores": (
        [*LOADED_IMAGES, ("RALI_Score", 700, 0, {}), ("RALI_CombineScores", 1060, 0, {}), ("PreviewAny", 1420, 0, {})],
        [*BATCH, (2, 0, 3, "images"), (3, 2, 4, "scores_a"), (3, 2, 4, "scores_b"), (4, 2, 5, "source")],
        True,
        ["RALI_Score", "RALI_CombineScores"],
    ),
    "RALI_SaveImage": scene("RALI_SaveImage"),
    "RALI_ScoreFolder": (
        [("RALI_ScoreFolder", 600, 0, {"include": "sample*.png"}), ("PreviewImage", 960, 0, {})],
        [(0, 3, 1, "images")],
        True,
        ["RALI_ScoreFolder", "PreviewImage"],
    ),
    "RALI_ScoreVideo": (
        [
            ("LoadVideo", 0, 0, {"file": "example.mp4"}),
            ("RALI_ScoreVideo", 360, 0, {}),
            ("PreviewImage", 720, 0, {}),
            ("PreviewImage", 720, 420, {}),
        ],
        [(0, 0, 1, "video"), (1, 1, 2, "images"), (1, 3, 3, "images")],
        True,
        ["RALI_ScoreVideo", "PreviewImage"],
    ),
    "RALI_LoadScore": (
        [("RALI_LoadScore", 600, 0, {"file": "example.png [input]", "score_if_missing": True})],
        [],
        True,
        None,
    ),
    "RALI_DrawScore": scene("RALI_DrawScore", 1),
}
BUILD = """([nodes, wires]) => {
    const made = nodes.map(([kind, x, y, widgets]) => {
        const node = LiteGraph.createNode(kind); node.pos = [x, y]; app.graph.add(node);
        for (const widget of node.widgets ?? []) if (widget.name in widgets) {
            widget.value = widgets[widget.name]; widget.callback?.(widget.value); }
        return node; });
    for (const [from, output, to, input] of wires)
        made[from].connect(output, made[to], made[to].inputs.findIndex(x => x.name === input)); }"""


RESULTS = {
    "RALI - XY plot with scores": ["RALI_ContactSheet", "PreviewImage"],
    "RALI - combine with another scorer": ["RALI_CombineScores", "RALI_BestOfN", "RALI_SaveImage"],
    "RALI - inpaint the weak regions": ["RALI_Score", "RALI_QualityMap", "PreviewImage"],
    "RALI - refine the best": ["RALI_BestOfN", "KSampler", "RALI_SaveImage"],
    "RALI - score an image": ["LoadImage", "RALI_Score"],
    "RALI - scores for a script": ["MarkdownNote", "LoadImage", "RALI_Score"],
}
"""What a template's thumbnail shows where it is not all of the pack's nodes, previews and saved images."""


def swap_model(route: Any) -> None:
    """Queue a prompt of the page with the stand-in instead of the checkpoint."""
    if route.request.method != "POST":
        route.continue_()
        return
    body = json.loads(route.request.post_data)
    prompt = body["prompt"]
    kinds = {number: node["class_type"] for number, node in prompt.items()}
    left = {number: node for number, node in prompt.items() if kinds[number] not in STAND_IN}
    for node in left.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and kinds.get(value[0]) in STAND_IN:
                node["inputs"][name] = ["model", STAND_IN[kinds[value[0]]][value[1]]]
    body["prompt"] = {"model": {"class_type": "Test_PhotographDiffusion", "inputs": {}}, **left}
    route.continue_(post_data=json.dumps(body))


@contextmanager
def running_comfy(home: Path) -> Iterator[str]:
    """Start the ComfyUI that `.ci/comfy_setup` put into `home`, with this checkout as its only pack; its address."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        base = Path(folder)
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / "ComfyUI-RALI").symlink_to(ROOT)
        (base / "custom_nodes" / "probe").symlink_to(PROBE)
        (base / "models" / "checkpoints").mkdir(parents=True)
        (base / "models" / "checkpoints" / CHECKPOINT).touch()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [
            home / "venv" / "bin" / "python", "main.py", "--cpu", "--port", port, "--disable-auto-launch",
            "--disable-api-nodes", "--base-directory", base, "--database-url", f"sqlite:///{base / 'comfyui.db'}",
        ]  # fmt: skip
        with (base / "server.log").open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)), cwd=home / f"ComfyUI-{VERSION}", stdout=log, stderr=subprocess.STDOUT
            )
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"ComfyUI ended at start:\n{(base / 'server.log').read_text()[-4000:]}")
                try:
                    urllib.request.urlopen(f"{url}/system_stats").close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


class Camera:
    """A page on an empty graph.

    Args:
        browser: Chromium.
        url: The server.
        images: What is put into its input folder, by name.
    """

    def __init__(self, browser: Any, url: str, images: dict[str, Image.Image]) -> None:
        settings = {
            "Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False, "Comfy.Locale": "en",
            "Comfy.Workflow.Persist": False, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": True,
            "Comfy.RightSidePanel.IsOpen": False, "Comfy.Graph.CanvasInfo": False,
        }  # fmt: skip
        self.page = browser.new_context(viewport={"width": 3400, "height": 1700}, base_url=url).new_page()
        self.page.set_default_timeout(600_000)
        self.page.request.post("/api/settings", data=settings)
        for name, image in images.items():
            self.upload(name, image)
        with tempfile.TemporaryDirectory() as folder:
            make_figures.write_clip(Path(folder, "example.mp4"))
            self.upload_file("example.mp4", "video/mp4", Path(folder, "example.mp4").read_bytes())
        self.page.route("**/api/prompt", swap_model)
        self.page.goto("/")
        # The page opens its own first workflow while its spinner turns.
        self.page.wait_for_function("() => window.app?.extensionManager?.spinner === false")
        self.page.add_style_tag(content=QUIET)

    def upload(self, name: str, image: Image.Image) -> None:
        """Put an image into ComfyUI's input folder, as the page's upload button does."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        self.upload_file(name, "image/png", buffer.getvalue())

    def upload_file(self, name: str, kind: str, content: bytes) -> None:
        """As `upload`, of any file."""
        file = {"name": name, "mimeType": kind, "buffer": content}
        self.page.request.post("/upload/image", multipart={"image": file, "overwrite": "true"})

    def do(self, command: str) -> None:
        """One of the page's commands."""
        self.page.evaluate("(name) => app.extensionManager.command.execute(name)", command)
        self.settle()

    def settle(self) -> None:
        """Wait until all nodes, and their images, are drawn."""
        self.page.wait_for_function(
            "() => document.querySelectorAll('[data-node-id]').length === app.graph._nodes.length"
            " && [...document.querySelectorAll('[data-node-id] img')].every(image => image.complete)"
        )
        self.page.evaluate(DRAWN)

    def run(self) -> None:
        """Press Run and wait for the end."""
        self.page.evaluate(ENDED)
        self.do("Comfy.QueuePrompt")
        self.page.wait_for_function("() => window.ended")
        if self.page.evaluate("() => window.ended") != "execution_success":
            raise RuntimeError("the workflow failed: look at ComfyUI's log")
        self.settle()

    def photograph(self, kinds: list[str] | None = None, margin: int = 24) -> Image.Image:
        """The nodes of these types (None: all) at the page's zoom."""
        (x1, y1), (x2, y2) = self.page.evaluate(BOX, kinds)
        whole = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        return whole.crop((round(x1) - margin, round(y1) - margin, round(x2) + margin, round(y2) + margin))

    def zoom(self, scale: float, x: float, y: float) -> None:
        """Set the zoom and position."""
        self.page.evaluate(ZOOM, [scale, x, y])
        self.settle()


def make_thumbnail(camera: Camera, file: Path) -> None:
    """What a workflow gives, on 640 x 384."""
    workflow = json.loads(file.read_text(encoding="utf-8"))
    if "inpaint" in file.stem:
        (loader,) = (node for node in workflow["nodes"] if node["type"] == "LoadImage")
        loader["widgets_values"][0] = "half.png"
    camera.do("Comfy.NewBlankWorkflow")
    camera.page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    camera.settle()
    camera.run()
    camera.zoom(0.9, 200, 150)
    ours = {node["type"] for node in workflow["nodes"] if node["type"].startswith("RALI_")}
    image = camera.photograph(RESULTS.get(file.stem, [*ours, "PreviewImage", "SaveImage"]))
    # Chromium draws what is outside the window nowhere: the largest graph has to fit.
    side = max(image.width, image.height * 640 / 384)
    canvas = Image.new("RGB", (round(side), round(side * 384 / 640)), image.getpixel((3, 3)))
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    canvas.resize((640, 384), Image.Resampling.LANCZOS).save(file.with_suffix(".jpg"), quality=82)


def make_help_image(camera: Camera, kind: str) -> None:
    """One node after a run."""
    nodes, wires, runs, shown = SCENES[kind]
    camera.do("Comfy.NewBlankWorkflow")
    camera.page.evaluate(BUILD, [nodes, wires])
    camera.settle()
    if runs:
        camera.run()
    camera.zoom(1.3, 200, 120)
    image = camera.photograph(shown)
    image.save(ROOT / "web" / "docs" / "images" / f"{kind}.webp", quality=85)
    if kind == "RALI_Score":
        camera.zoom(1.0, 200, 150)
        camera.photograph().save(ROOT / "docs" / "images" / "comfyui-score.jpg", quality=88)


def make_walkthrough(camera: Camera) -> None:
    """The four images of docs/comfyui.md."""
    nodes, wires, _, _ = SCENES["RALI_Score"]
    camera.do("Comfy.NewBlankWorkflow")
    camera.page.evaluate(BUILD, [nodes, wires])
    camera.settle()
    camera.zoom(1.0, 200, 150)

    def keep(name: str, kinds: list[str]) -> None:
        camera.page.evaluate(NOTICE)
        camera.settle()
        camera.photograph(kinds).save(ROOT / "docs" / "images" / f"comfyui-{name}.jpg", quality=88)

    keep("1-new", ["RALI_Score"])
    camera.run()
    keep("2-scores", ["RALI_Score"])
    camera.page.evaluate(CHOOSE, "damaged.png")
    keep("3-changed", ["LoadImage", "RALI_Score"])
    camera.run()
    camera.page.evaluate("() => { app.graph._nodes.at(-1).collapse(); }")
    keep("4-collapsed", ["BatchImagesNode", "RALI_Score"])


def make_template_image(camera: Camera) -> None:
    """The template browser, for docs/comfyui.md."""
    camera.page.set_viewport_size({"width": 1600, "height": 1000})
    camera.do("Comfy.NewBlankWorkflow")
    camera.do("Comfy.BrowseTemplates")
    folders = camera.page.request.get("/api/workflow_templates").json()
    ours = next(name for name, files in folders.items() if "RALI - score an image" in files)
    camera.page.get_by_text(ours, exact=True).first.click()
    loaded = "[...document.querySelectorAll('img')].filter(x => x.src.startsWith('blob:') && x.naturalWidth === 640)"
    camera.page.wait_for_function(f"() => {loaded}.length >= 6")
    camera.page.evaluate(DRAWN)
    image = Image.open(io.BytesIO(camera.page.screenshot())).convert("RGB")
    image.resize((1100, 688), Image.Resampling.LANCZOS).save(ROOT / "docs/images/comfyui-templates.jpg", quality=88)


def damage(image: Image.Image, radius: float, deviation: float) -> Image.Image:
    """A blurred and noisy copy."""
    noise = np.random.default_rng(0).normal(0.0, deviation, (image.height, image.width, 3))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    return Image.fromarray((blurred + noise).clip(0, 255).astype(np.uint8))


def make_inputs() -> dict[str, Image.Image]:
    """The images of ComfyUI's input folder, by name."""
    good = Image.fromarray(data.astronaut())
    damaged = damage(good, 4, 20)
    half = good.copy()
    half.paste(damaged.crop((0, 0, good.width // 2, good.height)), (0, 0))
    made = {"example.png": good, "damaged.png": damaged, "half.png": half}
    for name, array in (("a", data.chelsea()), ("b", data.coffee()), ("c", data.rocket())):
        image = Image.fromarray(array)
        side = min(image.size)
        square = image.crop((0, 0, side, side)).resize((512, 512), Image.Resampling.LANCZOS)
        made |= {f"sample-{name}{level}.png": damage(square, 1.5 * level, 6 * level) for level in (0, 1, 2)}
    return made


def main(home: str, *only: str) -> None:
    """Make all images, or those whose name contains one of `only`."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with running_comfy(Path(home).resolve()) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        camera = Camera(browser, url, make_inputs())
        for kind in SCENES:
            if not only or any(part in kind for part in only):
                make_help_image(camera, kind)
                print(kind, flush=True)
        for file in sorted((ROOT / "workflows").glob("*.json")):
            if not only or any(part in file.stem for part in only):
                make_thumbnail(camera, file)
                print(file.stem, flush=True)
        if not only or "walkthrough" in only:
            make_walkthrough(camera)
        if not only or "templates" in only:
            make_template_image(camera)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
