"""How long it takes from nothing to the first score, part by part, each part as a multiple of `import torch`.

    python bench/cold_start.py [--repeats 5]

Every repeat runs each contender once, in its own process, one after the other, so that a busy machine slows all alike.
"""

import argparse
import json
import statistics
import subprocess
import sys

PARTS = """
import json, time
marks = {}
start = time.perf_counter()
import torch
marks["import torch"] = time.perf_counter() - start
start = time.perf_counter()
import open_clip
marks["import open_clip"] = time.perf_counter() - start
start = time.perf_counter()
from rali_core import RaliScorer
marks["import rali_core"] = time.perf_counter() - start
start = time.perf_counter()
scorer = RaliScorer.from_pretrained(device="cpu")
marks["load the bundled model"] = time.perf_counter() - start
picture = torch.rand(3, 512, 512)
start = time.perf_counter()
scorer.score(picture)
marks["first score, 512 x 512"] = time.perf_counter() - start
print(json.dumps(marks))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", PARTS], check=True, capture_output=True, text=True).stdout)
        for _ in range(repeats)
    ]
    print(f"{'part':<26}{'median s':>9}{'min':>8}{'max':>8}{'x torch':>9}")
    for part in runs[0]:
        seconds = [run[part] for run in runs]
        ratio = statistics.median(run[part] / run["import torch"] for run in runs)
        print(f"{part:<26}{statistics.median(seconds):>9.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}{ratio:>9.2f}")


if __name__ == "__main__":
    main()
