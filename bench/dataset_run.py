"""Data-set scoring at size: memory over time, rate against the model alone, kills and resumes.

    python bench/dataset_run.py WORK_DIR                              # 100,000 JPEGs, the bundled model: hours on a CPU
    python bench/dataset_run.py WORK_DIR --images 3000 --tiny         # a small model with random weights: minutes

Makes the JPEGs, then
1. times the model alone on prepared input, before and after the run;
2. scores the set once without interruption, and notes the memory of every process twice a second (WORK_DIR/memory.png);
3. scores it again into another folder, with SIGKILL at random moments, until it is done, and compares the rows;
4. with --worker-counts, scores a part of it with other numbers of decoding processes.
Writes WORK_DIR/figures.json and prints it.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from PIL import Image

from rali_core.calibration import Calibration
from rali_core.checkpoint import ModelInfo, save_model
from rali_core.constants import CLIP_MEAN, CLIP_STD
from rali_core.encoder import EncoderConfig
from rali_core.images import load_image
from rali_core.model import RaliModel
from rali_core.preprocess import PreprocessConfig
from rali_core.scorer import RaliScorer

SAMPLE_SECONDS = 0.5
FOLDER_SIZE = 1000


def make_images(folder: Path, count: int, side: int) -> None:
    """Seeded JPEGs of varied shapes around `side` pixels, a thousand to a folder."""
    for number in range(count):
        path = folder / f"{number // FOLDER_SIZE:04d}" / f"{number:07d}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(number)
        cells = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        width, height = (int(value) for value in generator.integers(side * 3 // 4, side * 5 // 4, 2))
        Image.fromarray(cells).resize((width, height)).save(path, quality=int(generator.integers(30, 95)))


def make_tiny_model(path: Path, width: int, image_size: int) -> None:
    """A vision transformer with seeded random weights; its scores differ between images and mean nothing."""
    torch.manual_seed(0)
    shape = {"image_size": image_size, "layers": 4, "width": width, "head_width": 32, "patch_size": image_size // 8}
    model = RaliModel(
        EncoderConfig(embed_dim=32, vision_cfg=shape),
        PreprocessConfig(image_size, CLIP_MEAN, CLIP_STD),
        pca_dim=16,
        prototypes=20,
    )
    head = {
        "mean": torch.zeros(32), "scale": torch.ones(32), "components": torch.linalg.qr(torch.randn(32, 16))[0].T,
        "prototypes": torch.randn(20, 16), "scores": torch.linspace(0, 1, 20), "logit_scale": torch.tensor(10.0),
    }  # fmt: skip
    model.head.load_state_dict(head)
    calibration = Calibration.from_scores({"made up": (np.linspace(0.2, 0.8, 100), "made up for the benchmark")})
    save_model(path, model.eval(), ModelInfo("benchmark", "Apache-2.0", calibration=calibration))


def model_rate(model: str | None, paths: list[Path], batch_size: int, seconds: float) -> float:
    """Images per second of the model alone: input prepared before, batches as in the run."""
    scorer = RaliScorer.from_pretrained(model, batch_size=batch_size)
    with torch.inference_mode():
        crops = [
            scorer.model.preprocess(load_image(path).unsqueeze(0), coverage=scorer.coverage)[0]
            for path in paths[: 4 * batch_size]
        ]
    scorer.score_crops(crops[:batch_size])
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = done % len(crops)
        done += len(scorer.score_crops(crops[start : start + batch_size]))
    return done / (time.perf_counter() - begun)


def start(
    source: Path, out: Path, options: argparse.Namespace, *, workers: int | None = None
) -> subprocess.Popen[bytes]:
    """`rali dataset score` in its own process."""
    command = [sys.executable, "-c", "import sys; from rali_core.cli import main; sys.exit(main())"]
    command += ["dataset", "score", str(source), str(out)]
    command += ["--shard-size", str(options.shard_size), "--batch-size", str(options.batch_size)]
    command += ["--model", options.model] if options.model else []
    command += ["--workers", str(workers or options.workers)] if workers or options.workers else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def rows_done(out: Path) -> int:
    """Images in complete shards."""
    return sum(pq.read_metadata(path).num_rows for path in out.glob("part-*.parquet"))


def watch(process: subprocess.Popen[bytes]) -> dict[str, list[tuple[float, float]]]:
    """Resident memory in MB of the process and everything below it, by name, until it ends."""
    begun = time.monotonic()
    memory: dict[str, list[tuple[float, float]]] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            everyone = [root, *root.children(recursive=True)]
        except psutil.Error:
            break
        for one in everyone:
            try:
                role = "main" if one == root else "decoding" if one.parent() != root else "helper"
                sample = (time.monotonic() - begun, one.memory_info().rss / 2**20)
            except (psutil.Error, AttributeError):
                continue
            memory.setdefault(f"{role} {one.pid}", []).append(sample)
        time.sleep(SAMPLE_SECONDS)
    return memory


def flatness(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Mean memory in the second and the last quarter of a process' life, and its highest."""
    values = np.array([value for _, value in samples])
    quarter = max(len(values) // 4, 1)
    return {
        "second_quarter_mb": round(float(values[quarter : 2 * quarter].mean()), 1) if len(values) > 1 else 0.0,
        "last_quarter_mb": round(float(values[-quarter:].mean()), 1),
        "highest_mb": round(float(values.max()), 1),
    }


def draw(memory: dict[str, list[tuple[float, float]]], path: Path, title: str) -> None:
    """Memory of every process over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, samples in sorted(memory.items()):
        times, values = zip(*samples, strict=True)
        axes.plot(times, values, label=name, linewidth=2 if name.startswith("main") else 1)
    axes.set(xlabel="seconds", ylabel="resident memory, MB", title=title, ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)


def kill_and_resume(source: Path, out: Path, options: argparse.Namespace, seconds: float) -> dict[str, object]:
    """Kill the run at random moments of its expected life, then let it finish."""
    moments = random.Random(options.seed)
    kills = []
    for _ in range(options.kills):
        process = start(source, out, options)
        children: list[psutil.Process] = []
        deadline = time.monotonic() + moments.uniform(0.0, 2 * seconds / max(options.kills, 1))
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else children
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        kills.append({"done": rows_done(out), "processes_left": len(alive)})
    begun = time.monotonic()
    status = start(source, out, options).wait()
    return {"kills": kills, "last_run_status": status, "last_run_seconds": round(time.monotonic() - begun, 1)}


def compare(first: Path, second: Path) -> dict[str, int]:
    """Rows that are in one result only, twice, or different in anything but the time."""

    def load(folder: Path) -> tuple[int, dict[str, tuple[object, ...]]]:
        count, rows = 0, {}
        for path in folder.glob("part-*.parquet"):
            table = pq.read_table(path).drop_columns(["scored_at"])
            count += table.num_rows
            rows |= {row["id"]: tuple(row.values()) for row in table.to_pylist()}
        return count, rows

    (count_a, a), (count_b, b) = load(first), load(second)
    return {
        "rows": count_a, "twice": count_a - len(a) + count_b - len(b), "missing": len(a.keys() ^ b.keys()),
        "different": sum(a[name] != b[name] for name in a.keys() & b.keys()),
    }  # fmt: skip


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK_DIR", help="an empty folder, or one of an earlier run")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=96, help="pixels, about")
    parser.add_argument("--model", help="as for rali (default: the bundled one)")
    parser.add_argument("--tiny", action="store_true", help="a small model with random weights instead")
    parser.add_argument("--tiny-width", type=int, default=64)
    parser.add_argument("--tiny-size", type=int, default=64)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model-seconds", type=float, default=20.0)
    parser.add_argument("--worker-counts", type=int, nargs="*", default=[])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.tiny:
        options.model = str(options.work / "tiny.safetensors")
        make_tiny_model(Path(options.model), options.tiny_width, options.tiny_size)
    source = options.work / "images"
    make_images(source, options.images, options.side)
    paths = sorted(source.rglob("*.jpg"))[: options.images]

    figures: dict[str, object] = {"images": len(paths), "torch_threads": torch.get_num_threads()}
    before = model_rate(options.model, paths, options.batch_size, options.model_seconds)
    begun = time.monotonic()
    process = start(source, options.work / "whole", options)
    memory = watch(process)
    seconds = time.monotonic() - begun
    after = model_rate(options.model, paths, options.batch_size, options.model_seconds)
    scored = [path.stat().st_mtime for path in sorted((options.work / "whole").glob("part-*.parquet"))]
    # From the first shard to the last: starting the processes is not part of the rate.
    span = max(scored) - min(scored)
    rate = (len(paths) - options.shard_size) / span if span > 0 else float("nan")
    draw(memory, options.work / "memory.png", f"{len(paths):,} JPEGs, {rate:.0f} per second")
    figures |= {
        "status": process.returncode, "seconds": round(seconds, 1), "images_per_second": round(rate, 2),
        "model_alone_before": round(before, 2), "model_alone_after": round(after, 2),
        "share_of_model_rate": round(rate / ((before + after) / 2), 3),
        "memory": {name: flatness(samples) for name, samples in memory.items() if len(samples) > 8},
    }  # fmt: skip
    if options.kills:
        figures["killed"] = kill_and_resume(source, options.work / "killed", options, seconds)
        figures["comparison"] = compare(options.work / "whole", options.work / "killed")
    for workers in options.worker_counts:
        out = options.work / f"workers-{workers}"
        begun = time.monotonic()
        start(source, out, options, workers=workers).wait()
        times = [path.stat().st_mtime for path in out.glob("part-*.parquet")]
        figures[f"images_per_second_with_{workers}_workers"] = round(
            (len(paths) - options.shard_size) / (max(times) - min(times)), 2
        )
    (options.work / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
