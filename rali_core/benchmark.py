"""Speed, memory and start of a model on this machine, beside the authors' architecture: what `rali bench` measures.

The authors' architecture (CLIP ViT-L/14 at 336 pixels) has random weights: it costs the same, and nothing is
downloaded. Each model runs in a process of its own. All are loaded and warmed up first; then they take turns, round by
round, so that whatever else the machine does slows all alike. What counts are ratios within a round, and their medians.

`bench/speed` in the repository measures other quality measures in the same way, with the same functions.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .constants import CLIP_MEAN, CLIP_STD, OFFICIAL_IMAGE_SIZE, DtypeName
from .encoder import EncoderConfig
from .model import RaliModel
from .preprocess import PreprocessConfig

OFFICIAL_SHAPE = {"image_size": OFFICIAL_IMAGE_SIZE, "layers": 24, "width": 1024, "head_width": 64, "patch_size": 14}
EMBED_DIM, PCA_DIM, PROTOTYPES = 768, 512, 250
OFFICIAL = "official architecture, float32"
SLOW_S = 20.0
"""A model whose single pass takes longer, in seconds, is measured in the first round only."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """What is scored.

    Attributes:
        size: Side of the square images in pixels.
        batch: How many at once.
        kind: `"pil"` images or one `"tensor"`.
    """

    size: int = 512
    batch: int = 1
    kind: str = "pil"

    def __str__(self) -> str:
        return f"{self.size} x {self.size}, batch {self.batch}, {self.kind}"


CASES = (Case(), Case(batch=4), Case(kind="tensor"))


class Benchmarked(Protocol):
    """A way to score."""

    dtype: str | None

    def score(self, images: list[Image.Image] | Tensor) -> list[float]:
        """Score images of one size: PIL images, or a float tensor (B, 3, H, W) in [0, 1]."""


class BenchmarkedModel:
    """A model of this package, to be measured.

    Args:
        scorer: A `RaliScorer`.
    """

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer
        self.dtype: str | None = scorer.dtype

    def score(self, images: list[Image.Image] | Tensor) -> list[float]:
        """By `RaliScorer.score`, the batch in one pass."""
        self.scorer.batch_size = len(images)
        return cast("list[float]", self.scorer.score(images).scores.tolist())


def random_head(embed_dim: int = EMBED_DIM) -> dict[str, Tensor]:
    """A head of the published size with seeded random numbers."""
    generator = torch.Generator().manual_seed(0)
    pca_dim = min(PCA_DIM, embed_dim)
    return {
        "mean": torch.zeros(embed_dim),
        "scale": torch.ones(embed_dim),
        "components": torch.randn(pca_dim, embed_dim, generator=generator),
        "prototypes": torch.randn(PROTOTYPES, pca_dim, generator=generator),
        "scores": torch.linspace(0, 1, PROTOTYPES),
        "logit_scale": torch.tensor(1 / 0.07),
    }


def random_model(shape: Mapping[str, Any] = OFFICIAL_SHAPE) -> RaliModel:
    """The authors' architecture, or one of another shape, with random weights."""
    model = RaliModel(
        EncoderConfig(EMBED_DIM, dict(shape), quick_gelu=True),
        PreprocessConfig(shape["image_size"], CLIP_MEAN, CLIP_STD, eight_bit=True),
        pca_dim=PCA_DIM,
        prototypes=PROTOTYPES,
    )
    model.head.load_state_dict(random_head())
    return model.eval()


def make_benchmarked(name: str, model: str | None) -> BenchmarkedModel:
    """`OFFICIAL`, or `"model, DTYPE"` for a model's name or file; None is the bundled one."""
    from .checkpoint import ModelInfo
    from .scorer import RaliScorer

    if name == OFFICIAL:
        return BenchmarkedModel(RaliScorer(random_model(), ModelInfo("random", "Apache-2.0"), device="cpu"))
    dtype = cast(DtypeName, name.removeprefix("model, "))
    return BenchmarkedModel(RaliScorer.from_pretrained(model, device="cpu", dtype=dtype, coverage="center"))


def make_images(case: Case) -> list[Image.Image] | Tensor:
    """Seeded images of coarse and fine structure."""
    generator = np.random.default_rng(case.size)
    made = []
    for _ in range(case.batch):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((case.size, case.size))
        noise = generator.integers(-8, 9, (case.size, case.size, 1))
        made.append(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))
    if case.kind == "pil":
        return [Image.fromarray(pixels) for pixels in made]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255.0


def environment(threads: int | None) -> dict[str, str]:
    """Of a measured process: this package can be imported, nothing is downloaded, and so many threads."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **limits, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class Worker:
    """A scorer's process.

    Args:
        name: Its name in the results.
        command: A process that calls `serve`.
        threads: Of the computation; by default the libraries' choice.

    Attributes:
        error: Why it cannot be measured, or None.
        load: Seconds from its imports to the loaded model.
    """

    def __init__(self, name: str, command: Sequence[str], *, threads: int | None = None) -> None:
        self.name = name
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment(threads),
        )  # fmt: skip
        first = self._read()
        self.error: str | None = first.get("error")
        self.load: float = first.get("load", float("nan"))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def measure(self, case: Case) -> dict[str, Any]:
        """Score the case once, for a new case after a warm-up; see `serve` for the result."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(vars(case)), file=self._process.stdin, flush=True)
        except OSError:
            return {"error": "its process ended"}
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"its process ended (exit status {self._process.wait()}); was the memory enough?"}
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(make: Callable[[], Benchmarked]) -> None:
    """Main loop of a worker: load, then score the cases on standard input, one JSON object per line, until it ends.

    Each answer is a JSON object: `wall` and `processor` seconds, `peak` resident bytes and those `before` the model was
    loaded, `dtype`, the number of `scores`; or `error`.
    """
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not mix with the answers
    warnings.simplefilter("ignore")

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    before, begun = current_memory(), time.perf_counter()
    try:
        scorer = make()
    except Exception as error:  # the others are measured all the same
        answer(error=f"{type(error).__name__}: {error}"[:300])
        return
    answer(load=time.perf_counter() - begun)
    inputs: dict[Case, Any] = {}
    for line in sys.stdin:
        case = Case(**json.loads(line))
        try:
            if case not in inputs:
                inputs = {case: make_images(case)}  # one at a time: large ones would count as the scorer's memory
                scorer.score(inputs[case])
            wall, processor = time.perf_counter(), time.process_time()
            scores = scorer.score(inputs[case])
            seconds = time.perf_counter() - wall, time.process_time() - processor
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}"[:300])
            continue
        answer(wall=seconds[0], processor=seconds[1], scores=len(scores), peak=peak_memory(), before=before,
               dtype=scorer.dtype)  # fmt: skip


def compare(
    commands: Mapping[str, Sequence[str]], cases: Sequence[Case], *, reference: str, rounds: int,
    threads: int | None = None, log: Log = print,
) -> dict[str, Any]:  # fmt: skip
    """Measure scorers in turn.

    Args:
        commands: The command of each scorer's process by name; those that cannot start are left out.
        cases: What each scores.
        reference: The scorer that ratios refer to; one of the names.
        rounds: Number of times that each scores each case.
        threads: Of each scorer.
        log: Called with lines of progress.

    Returns:
        `missing`: reasons by name; `load`: seconds by name; `cases`: per case and name images per second (median, min,
        max), processor seconds per image, and `ratio` to the reference: the rounds' median.
    """
    result: dict[str, Any] = {"missing": {}, "load": {}, "rounds": rounds, "cases": []}
    with ExitStack() as stack:
        workers = []
        for name, command in commands.items():
            log(f"loading {name}")
            worker = stack.enter_context(Worker(name, command, threads=threads))
            if worker.error is None:
                workers.append(worker)
                result["load"][name] = worker.load
            else:
                result["missing"][name] = worker.error
        for case in cases:
            log(f"{case}")
            times: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
            for _ in range(rounds):
                for worker in workers:
                    runs = times[worker.name]
                    if not runs or ("error" not in runs[0] and runs[0]["wall"] <= SLOW_S):
                        runs.append(worker.measure(case))
            result["cases"].append({**vars(case), "scorers": _summarise(times, case, reference)})
    return result


def _summarise(times: Mapping[str, list[dict[str, Any]]], case: Case, reference: str) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    base = [run for run in times.get(reference, []) if "error" not in run]
    for name, runs in times.items():
        errors = [run["error"] for run in runs if "error" in run]
        if errors:
            summary[name] = {"error": errors[0]}
            continue
        summary[name] = {
            "rate": spread([case.batch / run["wall"] for run in runs]),
            "processor": statistics.median(run["processor"] for run in runs) / case.batch,
            "dtype": runs[0]["dtype"],
        }
        if base:
            pairs = list(zip(base, runs, strict=False))
            summary[name]["ratio"] = statistics.median(theirs["wall"] / ours["wall"] for theirs, ours in pairs)
            summary[name]["processor_ratio"] = statistics.median(
                theirs["processor"] / max(ours["processor"], 1e-9) for theirs, ours in pairs
            )
    return summary


def compare_memory(
    commands: Mapping[str, Sequence[str]], *, reference: str, case: Case, threads: int | None = None
) -> dict[str, Any]:
    """Largest resident set of each scorer alone: load, score the case twice; and the same without Python and torch.

    Returns:
        By name `peak` and `above_torch` in bytes, and `ratio` and `ratio_above_torch` to the reference's.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, command in commands.items():
        with Worker(name, command, threads=threads) as worker:
            run: dict[str, Any] = {"error": worker.error} if worker.error else worker.measure(case)
        if "error" not in run:
            found[name] = {"peak": run["peak"], "above_torch": run["peak"] - run["before"]}
    base = found.get(reference)
    for values in found.values():
        if base and base["peak"]:
            values["ratio"] = values["peak"] / base["peak"]
            values["ratio_above_torch"] = values["above_torch"] / base["above_torch"]
    return found


def cold_start(*, rounds: int, model: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """Whole processes, in turn: importing torch, and scoring one JPEG by the command."""
    torch_only = [sys.executable, "-c", "import torch"]
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), 1)
        score = [*command_line(), "score", str(next(Path(folder).iterdir())), *(["--model", model] if model else [])]
        times: dict[str, list[float]] = {"import torch": [], "rali score one.jpg": []}
        for number in range(rounds + 1):
            for name, command in (("import torch", torch_only), ("rali score one.jpg", score)):
                begun = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=environment(threads))
                if number:  # the first fills the file cache
                    times[name].append(time.perf_counter() - begun)
    ratios = [ours / theirs for theirs, ours in zip(*times.values(), strict=True)]
    return {"seconds": {name: spread(values) for name, values in times.items()}, "ratio": spread(ratios)}


def command_line() -> list[str]:
    """The `rali` command of this package."""
    return [sys.executable, "-c", f"import sys; from {__package__}.cli import main; sys.exit(main())"]


def make_folder(folder: Path, count: int) -> None:
    """Seeded JPEGs of 1024 x 768 that are as large as photographs at this quality."""
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((1024, 768))
        noise = generator.integers(-8, 9, (768, 1024, 1))
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


def folder_run(count: int, *, model: str | None = None, threads: int | None = None) -> dict[str, float]:
    """A folder of JPEGs end to end against the model alone on prepared input, in turns of 64 files, in float32.

    Returns:
        Images per second of the `model` alone and of the `whole`, and `share`, whole / model.
    """
    code = f"import sys; from {__name__} import score_folder; score_folder(sys.argv[1], sys.argv[2] or None)"
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), count)
        done = subprocess.run(
            [sys.executable, "-c", code, folder, model or ""], check=True, capture_output=True, text=True,
            env=environment(threads),
        )  # fmt: skip
    rates: dict[str, float] = json.loads(done.stdout)
    return {**rates, "share": rates["whole"] / rates["model"]}


def score_folder(folder: str, model: str | None, step: int = 64) -> None:
    """The process of `folder_run`: prints the images per second as JSON."""
    from .images import load_image
    from .scorer import RaliScorer

    files = sorted(str(file) for file in Path(folder).iterdir())
    scorer = RaliScorer.from_pretrained(model, device="cpu", coverage="center")
    with torch.inference_mode():
        crops = [scorer.model.preprocess(load_image(file)[None], coverage="center")[0] for file in files[:step]]
    scorer.score_crops(crops[:8])
    alone = whole = 0.0
    for start in range(0, len(files), step):
        part = files[start : start + step]
        begun = time.perf_counter()
        for first in range(0, len(part), scorer.batch_size):
            scorer.score_crops(crops[first : first + min(scorer.batch_size, len(part) - first)])
        alone += time.perf_counter() - begun
        begun = time.perf_counter()
        scorer.score(part)
        whole += time.perf_counter() - begun
    print(json.dumps({"model": len(files) / alone, "whole": len(files) / whole}))


def measure_model(
    model: str | None = None, *, rounds: int = 5, images: int = 200, threads: int | None = None, quick: bool = False,
    log: Log = print,
) -> dict[str, Any]:  # fmt: skip
    """Measure a model on this machine.

    Args:
        model: Name or file; by default the bundled one.
        rounds: Number of times that each scorer scores each case.
        images: Files of the folder run.
        threads: Of each process; by default as torch chooses.
        quick: Speed only.
        log: Called with lines of progress.

    Returns:
        JSON: `machine`, `compare` (see there), and unless `quick` `memory`, `cold_start` and `folder`.
    """
    code = f"import sys; from {__name__} import make_benchmarked, serve; " \
           "serve(lambda: make_benchmarked(sys.argv[1], sys.argv[2] or None))"  # fmt: skip
    names = (OFFICIAL, "model, float32", "model, auto")
    commands = {name: [sys.executable, "-c", code, name, model or ""] for name in names}
    result: dict[str, Any] = {"machine": describe_machine(), "model": model}
    result["compare"] = compare(commands, CASES, reference=OFFICIAL, rounds=rounds, threads=threads, log=log)
    if not quick:
        log("memory, one model at a time")
        result["memory"] = compare_memory(commands, reference=OFFICIAL, case=Case(), threads=threads)
        log("start")
        result["cold_start"] = cold_start(rounds=rounds, model=model, threads=threads)
        log(f"a folder of {images} files")
        result["folder"] = folder_run(images, model=model, threads=threads)
    return result


def format_case(case: Mapping[str, Any], reference: str) -> str:
    """A table of one case, as text."""
    lines = [
        f"{case['size']} x {case['size']}, batch {case['batch']}, {case['kind']}",
        f"{'':<40}{'images/s':>10}{'min':>9}{'max':>9}{'CPU s/image':>13}{'x ' + reference:>33}{'x by CPU s':>12}",
    ]
    for name, values in case["scorers"].items():
        if "error" in values:
            lines.append(f"{name:<40}{values['error']}")
            continue
        rate = values["rate"]
        shown = f"{name} ({values['dtype']})" if name.endswith("auto") else name
        ratio = f"{values['ratio']:>33.2f}{values['processor_ratio']:>12.2f}" if "ratio" in values else ""
        lines.append(
            f"{shown:<40}{rate['median']:>10.3f}{rate['min']:>9.3f}{rate['max']:>9.3f}{values['processor']:>13.4f}{ratio}"
        )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes; 0 if the system does not report it (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def current_memory() -> int:
    """Resident set now, in bytes; the peak so far if the system reports only that."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return peak_memory()


def describe_machine(packages: Sequence[str] = ("torch", "timm", "numpy", "pillow")) -> dict[str, Any]:
    """Processor, number of usable cores, system, and the versions of Python and of packages."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in sorted(packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = lines[0] if lines else processor
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor,
        "cores": usable,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }
