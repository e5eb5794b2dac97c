"""The page of docs/try in Chromium: its scores are those of the library, and nothing leaves the machine."""

from __future__ import annotations

import base64
import importlib.util
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.calibration import Calibration
from rali_core.checkpoint import ModelInfo, save_model
from rali_core.constants import CLIP_MEAN, CLIP_STD
from rali_core.encoder import EncoderConfig
from rali_core.model import RaliModel
from rali_core.preprocess import PreprocessConfig
from rali_core.scorer import RaliScorer

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[3]
SHOTS = Path(os.environ.get("RALI_SCREENSHOTS", REPOSITORY / "build" / "screenshots"))
TURNED = 6  # EXIF: the top is on the right
DROP = """([name, data]) => {
    const bytes = Uint8Array.from(atob(data), x => x.charCodeAt(0)), transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
    for (const kind of ["dragover", "drop"]) document.body.dispatchEvent(
        new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true })); }"""


@pytest.fixture(scope="module")
def maker() -> Any:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install '.[export]'")
    spec = importlib.util.spec_from_file_location("make_browser_page", REPOSITORY / "tools" / "make_browser_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP encoder, and a head that spreads its scores."""
    vision = {"image_size": 96, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = RaliModel(
            EncoderConfig(16, vision), PreprocessConfig(96, CLIP_MEAN, CLIP_STD), pca_dim=8, prototypes=12,
            coverage="tiles",
        )  # fmt: skip
        head = {"scale": torch.rand(16) + 0.5, "components": torch.linalg.qr(torch.randn(16, 8))[0].T,
                "prototypes": torch.randn(12, 8), "scores": torch.linspace(0, 1, 12)}  # fmt: skip
        made.head.load_state_dict({**made.head.state_dict(), **head, "logit_scale": torch.tensor(8.0)})
    calibration = Calibration.from_scores({"photographs": (np.linspace(0.3, 0.7, 101), "made up")})
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, made.eval(), ModelInfo("tiny", "Apache-2.0", calibration=calibration))
    return path


@pytest.fixture(scope="module")
def address(comfy_home: Path, maker: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the finished page is served."""
    runtime = comfy_home / "onnxruntime-web"
    if not (runtime / maker.RUNTIME).is_file():
        pytest.skip(f"no {maker.RUNTIME} in {runtime}: run .ci/comfy_setup with npm installed")
    folder = tmp_path_factory.mktemp("try")
    maker.make_page(folder, model=str(model), precision="float32", runtime=runtime)
    with maker.make_server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[str], Any]]:
    """Opens a page in a window of its own; at the end it must have asked no other server for anything."""
    context = browser.new_context(viewport={"width": 900, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(300_000)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))

    def go(address: str) -> Any:
        page.goto(address)
        return page

    yield go
    context.close()
    assert asked
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {asked[0].split("/")[2]}


def wide_gamut() -> bytes:
    """An ICC profile with the primaries of Display P3 and a gamma of 2.2."""

    def fixed(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    tags = {b"wtpt": fixed(0.9642, 1.0, 0.8249), b"rXYZ": fixed(0.5151, 0.2412, -0.0011),
            b"gXYZ": fixed(0.2919, 0.6922, 0.0419), b"bXYZ": fixed(0.1572, 0.0666, 0.7841),
            b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}  # fmt: skip
    table, content = b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">2I", 132 + 12 * len(tags) + len(content), len(tag))
        content += tag
    body = struct.pack(">I", len(tags)) + table + content
    head = struct.pack(">I4xI", 128 + len(body), 0x02400000) + b"mntrRGB XYZ "
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)[8:]
    return head.ljust(128, b"\0") + body


@pytest.fixture
def images(photographs: dict[str, Image.Image], tmp_path: Path) -> list[Path]:
    """Files of many kinds, all of which both Pillow and Chromium read."""
    astronaut, cat, coffee = (photographs[name].reduce(2) for name in ("astronaut", "cat", "coffee"))
    fading = cat.copy()
    fading.putalpha(Image.linear_gradient("L").resize(cat.size))
    exif = Image.Exif()
    exif[0x0112] = TURNED
    for name, image, options in (
        ("photo.jpg", astronaut, {"quality": 92}),
        ("turned.jpg", coffee, {"exif": exif}),
        ("wide-gamut.jpg", astronaut, {"icc_profile": wide_gamut(), "quality": 95}),
        ("wide-gamut.png", cat, {"icc_profile": wide_gamut()}),
        ("fading.png", fading, {}),
        ("fading.webp", fading, {"lossless": True}),
        ("palette.png", fading.quantize(64), {}),
        ("grey.png", coffee.convert("L"), {}),
        ("lossy.webp", cat, {"quality": 60}),
        ("animation.gif", astronaut, {"save_all": True, "append_images": [cat]}),
        ("strip.png", coffee.resize((900, 60)), {}),
        ("tiny.png", cat.resize((9, 9)), {}),
        ("black.png", Image.new("RGB", (64, 48)), {}),
    ):
        image.save(tmp_path / name, **options)
    return [path for path in tmp_path.iterdir() if path.is_file()]


def test_scores_are_those_of_the_library_and_the_list_is_ranked(
    visit: Callable[[str], Any], address: str, model: Path, images: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    page = visit(address)
    page.locator("body[data-ready], #status.problem").first.wait_for()
    assert page.locator("#status").inner_text() == "Ready."
    page.locator("#files").set_input_files([*images, broken])
    page.get_by_text(f"{len(images)} scored, best first; 1 could not be scored.").wait_for()
    lines = page.locator("#results li").all()
    names = [line.locator(".name").inner_text().split(",")[0] for line in lines]
    assert names[-1] == "broken.png"
    assert lines[-1].locator(".note").inner_text() == "not scored: this browser cannot read it as an image"

    result = RaliScorer.from_pretrained(model, device="cpu").score([tmp_path / name for name in names[:-1]])
    seen = np.array([float(line.get_attribute("data-score")) for line in lines[:-1]])
    assert dict(zip(names, seen, strict=False)) == pytest.approx(
        dict(zip(names, result.scores.tolist(), strict=False)), abs=1e-3
    )
    assert np.ptp(seen) > 0.2, "or the comparison tells little"
    assert seen.tolist() == sorted(seen, reverse=True)
    for line, band, percentile, reason in zip(lines, result.bands, result.percentiles, result.reasons, strict=False):
        assert line.locator(".band").inner_text() == band
        told = line.locator(".note").inner_text()
        if reason:
            assert told == reason
        else:
            assert float(told.removeprefix("better than ").removesuffix(" % of photographs")) == pytest.approx(
                float(percentile), abs=1
            )
        meter = line.get_by_role("meter")
        assert float(meter.get_attribute("aria-valuenow")) == pytest.approx(
            float(line.get_attribute("data-score")), abs=1e-4
        )
        share = meter.evaluate("bar => bar.firstChild.offsetWidth / bar.offsetWidth")
        assert share == pytest.approx(float(line.get_attribute("data-score")), abs=0.01)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_function("[...document.images].every(x => x.complete)")
    page.screenshot(path=SHOTS / "browser-page.png", full_page=True)


def test_the_keyboard_suffices_and_images_can_be_dropped(
    visit: Callable[[str], Any], address: str, images: list[Path]
) -> None:
    page = visit(address)
    page.locator("body[data-ready], #status.problem").first.wait_for()
    assert page.locator("#status").inner_text() == "Ready."
    assert page.get_by_text("Nothing leaves this machine").is_visible()
    choosers: list[Any] = []
    # From now on Chromium hands its dialog over; that takes a moment.
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.keyboard.press("Tab")
    for _ in range(20):
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
        if choosers:
            break
    assert choosers, "the keyboard opened no dialog"
    assert choosers[0].is_multiple()
    choosers[0].set_files(images[0])
    page.get_by_text("1 scored, best first.").wait_for()
    dropped = next(path for path in images if path.name == "grey.png")
    page.evaluate(DROP, [dropped.name, base64.b64encode(dropped.read_bytes()).decode()])
    page.get_by_text("2 scored, best first.").wait_for()
    assert page.locator("#results li").count() == 2
    assert page.get_by_role("meter", name="score of grey.png").is_visible()


def test_without_a_model_beside_it_the_page_says_how_to_get_one(visit: Callable[[str], Any], maker: Any) -> None:
    with maker.make_server(REPOSITORY / "docs" / "try", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = visit(f"http://localhost:{server.server_address[1]}/")
        page.get_by_text("There is no model beside this page. `python tools/make_browser_page.py`").wait_for()
        server.shutdown()
