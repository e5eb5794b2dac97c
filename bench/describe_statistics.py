"""Distribution of the describer's measurements on labelled photographs, and their rank correlation with the scores.

The thresholds in `rali_core/training/describe/words.py` and a table of `docs/training.md` come from this:

    python bench/describe_statistics.py labels.csv --limit 500
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from rali_core.training.data import read_labels
from rali_core.training.describe.measurements import measure_image
from rali_core.training.describe.words import ASPECTS

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels")
    parser.add_argument("--limit", type=int, default=500, help="training rows, drawn at random with seed 0")
    options = parser.parse_args()
    rows = [row for row in read_labels(options.labels) if row.split == "train"]
    chosen = np.random.default_rng(0).permutation(len(rows))[: options.limit]
    records = []
    for index in chosen:
        with Image.open(rows[index].path) as image:
            records.append(asdict(measure_image(image)))
    scores = np.array([rows[index].score for index in chosen])
    print(f"{len(records)} images; percentiles {', '.join(map(str, PERCENTILES))}; SRCC with the score")
    for name in records[0]:
        values = np.array([record[name] for record in records])
        shown = " ".join(f"{value:8.3f}" for value in np.percentile(values, PERCENTILES))
        print(f"{name:15s} {shown}  {spearmanr(values, scores).statistic:+.2f}")
    print("share of the images below each cut, in %")
    for aspect in ASPECTS:
        values = np.array([record[aspect.name] for record in records])
        print(f"{aspect.name:15s} " + "  ".join(f"{cut:g}: {100 * (values < cut).mean():.1f}" for cut in aspect.cuts))


if __name__ == "__main__":
    main()
