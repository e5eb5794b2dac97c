"""Does memory stay flat? Thousands of images through the command, prompts through ComfyUI, runs of `best_of_n`.

    python bench/soak.py WORK_DIR                                       # 10,000 images, 200 prompts, 100 runs
    python bench/soak.py WORK_DIR --images 300 --prompts 10 --runs 5    # a small trial
    python bench/soak.py WORK_DIR --parts score best_of_n               # without ComfyUI

score      `rali score` in this process: images of several formats and sizes, some blank, some broken.
comfy      A ComfyUI (`.ci/comfy_setup`, RALI_COMFY) with this pack: prompts with all kinds of nodes; every tenth is
           interrupted while it runs, and for a while the model file is missing. After each of these the next must work.
best_of_n  A tiny pipeline, other seeds in every run, batches and early pruning in turn.

All with tiny random models, so that the time goes into the code around them. Resident memory is written to
WORK_DIR/soak.json and drawn in WORK_DIR/soak.png. Exit status 1 where something failed, or where memory in the last
quarter is more than --allowed MB above that in the second quarter.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from dataset_run import flatness, make_tiny_model
from image_formats import sound_files
from PIL import Image

from rali_core.benchmark import current_memory

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("score", "comfy", "best_of_n")
SAMPLE_SECONDS = 0.5
Samples = list[tuple[float, float]]


def load(path: Path) -> ModuleType:
    """A module by its file: the tests' harness, the examples' pipelines."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def sampled() -> Iterator[Samples]:
    """This process' memory twice a second, in MB, until the block ends."""
    samples: Samples = []
    begun, ended = time.monotonic(), threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            samples.append((time.monotonic() - begun, current_memory() / 2**20))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def make_images(folder: Path, count: int) -> dict[str, int]:
    """Seeded files: photographs of a kind in five formats, 2 % blank, 2 % cut; how many of which."""
    made: Counter[str] = Counter()
    broken = [content[: len(content) // 2] for kinds in sound_files().values() for content in list(kinds.values())[:1]]
    for number in range(count):
        random = np.random.default_rng(number)
        kind = "blank" if number % 50 == 7 else "broken" if number % 50 == 13 else "sound"
        made[kind] += 1
        suffix = (".jpg", ".png", ".webp", ".bmp", ".tif")[number % 5]
        path = folder / f"{number // 1000:03d}" / f"{number:06d}{suffix}"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "broken":
            path.write_bytes(broken[number // 50 % len(broken)])
            continue
        width, height = (int(value) for value in random.integers(40, 200, 2))
        cells = random.integers(0, 256, (1, 1, 3) if kind == "blank" else (6, 6, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((width, height)).save(path)
    return dict(made)


def soak_score(work: Path, count: int) -> dict[str, Any]:
    """`rali score` over a folder, its table into a file."""
    from rali_core.cli import main as rali

    folder = work / "images"
    made = make_images(folder, count)
    command = ["score", str(folder), "-r", "--model", str(work / "tiny.safetensors"), "--csv", str(work / "scores.csv")]
    out, err = io.StringIO(), io.StringIO()
    with sampled() as samples, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = rali(command)
    rows = (work / "scores.csv").read_text(encoding="utf-8").splitlines()
    problems = []
    if status != int(made.get("broken", 0) > 0):
        problems.append(f"exit status {status}: {err.getvalue()[-500:]}")
    if len(rows) != count + 1:
        problems.append(f"{len(rows) - 1} rows for {count} images")
    blank = sum("no content" in row for row in rows)
    if blank < made.get("blank", 0):
        problems.append(f"{blank} of {made['blank']} blank images have no content")
    return {"what": f"{count:,} images through rali score", "samples": samples, "made": made, "problems": problems}


def soak_best_of_n(work: Path, runs: int) -> dict[str, Any]:
    """`best_of_n` again and again in this process."""
    from rali_core import RaliScorer
    from rali_core.diffusers_hook import SuccessiveHalving, best_of_n

    pipe = load(ROOT / "docs" / "examples" / "tiny_pipelines.py").tiny_sd15()
    pipe.set_progress_bar_config(disable=True)
    scorer = RaliScorer.from_pretrained(work / "tiny.safetensors", device="cpu")
    samples: Samples = []
    problems = []
    begun = time.monotonic()
    for run in range(runs):
        seeds = [4 * run + offset for offset in range(4)]
        prune = SuccessiveHalving() if run % 2 else None
        try:
            result = best_of_n(
                pipe, n=4, seeds=seeds, scorer=scorer, prune=prune, prompt="a lighthouse", num_inference_steps=8,
                height=64, width=64,
            )  # fmt: skip
            if result.seeds[0] not in seeds:
                problems.append(f"run {run}: seed {result.seeds[0]} was not asked for")
        except Exception as error:
            problems.append(f"run {run}: {type(error).__name__}: {error}")
        samples.append((time.monotonic() - begun, current_memory() / 2**20))
    return {"what": f"{runs} runs of best_of_n", "samples": samples, "problems": problems}


def prompt_of(tools: ModuleType, number: int, *, count: int = 12) -> dict[str, Any]:
    """A prompt of many nodes on its own images."""
    node = tools.node
    own = {"model": ["m", 0], "coverage": "model's own"}
    return {
        "m": node("RALI_LoadModel", model="tiny.safetensors", dtype="auto", device="auto"),
        "o": node("Test_Odd", kind="nan" if number % 5 == 0 else "noise", count=count, seed=number),
        "s": node("RALI_Score", images=["o", 0], aggregation="mean", threshold=0.5, **own),
        "b": node("RALI_BestOfN", images=["s", 0], scores=["s", 2], k=3, order="best first", scores_weight=1.0, **own),
        "q": node("RALI_QualityMap", images=["b", 0], mode=("tiles", "patch tokens")[number % 2], tile_size=32,
                  weak_mode="weakest share", weak_limit=0.25, stretch_colours=True, model=["m", 0]),
        "c": node("RALI_ContactSheet", images=["b", 0], columns=2, cell=96, **own),
        "p": node("Test_Probe", value=["q", 1], value2=["c", 0]),
    }  # fmt: skip


def soak_comfy(work: Path, prompts: int) -> dict[str, Any]:
    """Prompts through a real ComfyUI, queued one behind the other."""
    tools = load(ROOT / "tests" / "comfy" / "conftest.py")
    home = Path(os.environ.get("RALI_COMFY") or Path.home() / ".cache" / "rali-comfy")
    base = work / "comfy"
    shutil.rmtree(base, ignore_errors=True)
    server = tools.Server(home, tools.NEW, base, ("--cache-classic",))
    tools.install_pack(base / "custom_nodes")
    shutil.copytree(tools.HELPERS / "probe", base / "custom_nodes" / "probe")
    model = base / "models" / "rali" / "tiny.safetensors"
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "tiny.safetensors", model)
    samples: Samples = []
    problems: list[str] = []
    endings: Counter[str] = Counter()
    gone = range(prompts // 2, prompts // 2 + max(prompts // 40, 1))

    def interrupt(host: Any, kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == "s":
            host.post("/interrupt", {})

    server.start()
    begun = time.monotonic()
    try:
        for number in range(prompts):
            if number == gone.start:
                model.unlink()
            elif number == gone.stop:
                shutil.copy(work / "tiny.safetensors", model)
            stops = number % 10 == 9 and number not in gone
            prompt = prompt_of(tools, number, count=400 if stops else 12)
            run = server.run(prompt, on_message=interrupt if stops else None)
            ending = run.ending if run.status == 200 else "refused"
            endings[ending] += 1
            expected = "refused" if number in gone else "execution_interrupted" if stops else "execution_success"
            if ending != expected:
                problems.append(f"prompt {number}: expected {expected}, got {ending}: {run.error[:300]}")
            samples.append((time.monotonic() - begun, server.memory() * 1e6 / 2**20))
    finally:
        server.stop()
    return {
        "what": f"{prompts} prompts through ComfyUI {tools.NEW}", "samples": samples, "endings": dict(endings),
        "problems": problems,
    }  # fmt: skip


def draw(parts: dict[str, dict[str, Any]], path: Path) -> None:
    """Memory over time, a panel each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(parts)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts.values(), strict=True):
        times, values = zip(*part["samples"], strict=True)
        axes.plot(times, values, color="#3b6ea5")
        axes.set(ylim=(0, 1.15 * max(values)), ylabel="resident memory, MB")
        axes.set_title(part["what"], loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run the parts, write, draw, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--allowed", type=float, default=50.0, metavar="MB", help="growth that is no leak (default: 50)"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    make_tiny_model(options.work / "tiny.safetensors", width=32, image_size=32)
    made: dict[str, dict[str, Any]] = {}
    for part in options.parts:
        run, count = {
            "score": (soak_score, options.images), "comfy": (soak_comfy, options.prompts),
            "best_of_n": (soak_best_of_n, options.runs),
        }[part]  # fmt: skip
        made[part] = run(options.work, count)
        made[part].update(flatness(made[part]["samples"]) if len(made[part]["samples"]) > 1 else {})
        shown = {key: value for key, value in made[part].items() if key != "samples"}
        print(json.dumps(shown, indent=1), flush=True)
        (options.work / "soak.json").write_text(json.dumps(made, indent=1) + "\n")
    drawn = {name: part for name, part in made.items() if part["samples"]}
    if drawn:
        draw(drawn, options.work / "soak.png")
    growth = {
        name: round(part["last_quarter_mb"] - part["second_quarter_mb"], 1)
        for name, part in made.items()
        if "last_quarter_mb" in part
    }
    print("growth from the second to the last quarter, MB:", growth)
    failed = [problem for part in made.values() for problem in part["problems"]]
    print("\n".join(failed))
    return int(bool(failed) or any(value > options.allowed for value in growth.values()))


if __name__ == "__main__":
    sys.exit(main())
