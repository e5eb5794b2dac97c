"""Measure everything and write `docs/benchmarks.md`, or the two-minute comparison with the committed baseline.

    python -m bench                        # an hour or two on two idle cores; docs/benchmarks.{md,json} and plots
    python -m bench --image-folder FOLDER  # with the agreement of reduced precision on 200 of these images
    python -m bench --quick                # two minutes; prints what is slower than bench/baseline.json, never fails
    python -m bench --quick --write-baseline

A full run that was interrupted resumes with the parts that build/benchmark-parts.json lacks; delete the file to start
again. Run from the repository's root with the package and its extra `bench` installed.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from rali_core.benchmark import format_case

from .speed.baselines import REFERENCE
from .speed.report import compare_with_baseline, draw, format_markdown, format_table
from .speed.suite import run_full, run_quick

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "build" / "benchmark-parts.json"
BASELINE = Path(__file__).resolve().parent / "baseline.json"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write-baseline", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--image-folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    PARTS.parent.mkdir(exist_ok=True)

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if options.quick:
        result = run_quick(threads=options.threads, rounds=options.rounds or 3, log=log)
    else:
        result = run_full(
            threads=options.threads, rounds=options.rounds, images=options.images, image_folder=options.image_folder,
            parts=PARTS, log=log,
        )  # fmt: skip
    for case in result["compare"]["cases"]:
        print(format_case(case, REFERENCE), end="\n\n")
    for name, reason in result["compare"]["missing"].items():
        print(f"not measured: {name}: {reason}")
    if options.quick:
        print(f"cache hit, 4 x 1024 x 1024: {result['cache']['median']:.1f} ms")
        if options.write_baseline:
            BASELINE.write_text(json.dumps(result, indent=1) + "\n")
        elif BASELINE.is_file():
            slower = compare_with_baseline(result, json.loads(BASELINE.read_text()))
            print("\n".join(slower) or "nothing is slower than the baseline")
        return
    print(format_table(result))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "benchmarks.json").write_text(json.dumps(result, indent=1) + "\n")
    shown = [
        argument.name if Path(argument) == options.image_folder else argument for argument in map(Path, sys.argv[1:])
    ]
    command = shlex.join(["python", "-m", "bench", *map(str, shown)])
    text = format_markdown(result, command, draw(result, options.out))
    (options.out / "benchmarks.md").write_text(text)
    PARTS.unlink()


if __name__ == "__main__":
    main()
