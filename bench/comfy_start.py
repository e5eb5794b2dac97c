"""What this pack adds to ComfyUI's start, in CPU time, beside an empty pack and beside the start as a whole.

    .ci/comfy_setup FOLDER
    python bench/comfy_start.py FOLDER [--version 0.30.0] [--repeats 5]

One start before the measured ones compiles the files, as a user's first start does.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
EMPTY = """
from comfy_api.latest import ComfyExtension

class Empty(ComfyExtension):
    async def get_node_list(self):
        return []

async def comfy_entrypoint():
    return Empty()
"""


def lay_out(base: Path) -> None:
    """The stopwatch in the folder that is searched first, then an empty pack and this one."""
    shutil.copytree(REPOSITORY / "tests" / "comfy" / "packs" / "stopwatch", base / "custom_nodes" / "stopwatch")
    (base / "packs" / "empty").mkdir(parents=True)
    (base / "packs" / "empty" / "__init__.py").write_text(EMPTY)
    (base / "packs" / "ComfyUI-RALI").symlink_to(REPOSITORY)
    (base / "paths.yaml").write_text(f"mine:\n  base_path: {base}\n  custom_nodes: packs\n")


def start(home: Path, version: str, base: Path) -> dict[str, float]:
    """Start ComfyUI until it would serve; milliseconds of CPU time by pack, and of the whole process."""
    # Where Python may not keep what it compiled, each start would compile all files again.
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [
            home / "venv" / "bin" / "python", "main.py", "--cpu", "--quick-test-for-ci", "--disable-api-nodes",
            "--base-directory", base, "--extra-model-paths-config", base / "paths.yaml",
            "--database-url", f"sqlite:///{base / 'comfyui.db'}",
        ],
        cwd=home / f"ComfyUI-{version}", env=settings, check=True, capture_output=True, text=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    packs = [json.loads(text) for text in re.findall(r"stopwatch: (\{.*\})", done.stdout + done.stderr)]
    cost = {Path(pack["pack"]).name: pack["milliseconds"] for pack in packs}
    cost["all of ComfyUI"] = 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return cost


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=lambda text: Path(text).resolve(), help="the folder made by .ci/comfy_setup")
    parser.add_argument("--version", default="0.30.0")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        start(options.home, options.version, Path(folder))
        runs = [start(options.home, options.version, Path(folder)) for _ in range(options.repeats)]
    print(f"{'CPU time of the start':<24}{'median ms':>10}{'min':>9}{'max':>9}{'share':>8}")
    for part in ("empty", "ComfyUI-RALI", "all of ComfyUI"):
        cost = [run[part] for run in runs]
        share = statistics.median(run[part] / run["all of ComfyUI"] for run in runs)
        print(f"{part:<24}{statistics.median(cost):>10.1f}{min(cost):>9.1f}{max(cost):>9.1f}{share:>8.1%}")


if __name__ == "__main__":
    main()
