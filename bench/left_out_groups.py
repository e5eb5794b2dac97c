"""How well a head ranks the images of a generator that it never saw: each group of a set is left out in turn.

    python bench/left_out_groups.py configs/rali-small.toml agiqa-3k --encoder weights/rali-small.safetensors

Cheaper than whole trainings, and to be named beside the figures: the encoder is that of a finished model, and only the
head is made again, without blank images and distortions, from the training images of the absolute and
correlated sets and of the other groups. If the encoder was tuned on the group's images, it has seen them; give one that
was not for a figure without. Scores are those of the group's training and held-out images; no test split is used. A
last line leaves out the whole set.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rali_core.evaluation import measure_agreement
from rali_core.labels import scores_of
from rali_core.training.compress import Embedded, compress_embeddings, join_sets
from rali_core.training.config import TrainConfig, read_config
from rali_core.training.fit import fit_head
from rali_core.training.run import Run


def make_scores(
    config: TrainConfig, absolute: list[Embedded], mapped: dict[str, Embedded], correlation: list[Embedded],
    images: torch.Tensor,
) -> NDArray[np.float32]:  # fmt: skip
    """Make a head of absolute, mapped and correlated sets, and score embeddings of images with it."""
    embeddings, scores, sets = join_sets(absolute, mapped)
    head = compress_embeddings(
        embeddings, scores, config=config.compress, seed=config.seed, sets=sets,
        unscored=[part for part, _ in correlation],
    )  # fmt: skip
    fit_head(head, (embeddings, scores), correlation, None, None, config=config.fit, seed=config.seed)
    with torch.no_grad():
        predicted: NDArray[np.float32] = head(images).numpy()
    return predicted


def main() -> None:
    """Leave out each group and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG.toml")
    parser.add_argument("name", metavar="SET", help='a set with scores = "mapped" and a group_column')
    parser.add_argument("--encoder", metavar="MODEL.safetensors", required=True)
    parser.add_argument("--limit", type=int, metavar="N", help="at most N images of each set and part")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = read_config(options.config)
    encoder = Path(options.encoder).resolve()
    config = replace(
        config, backbone=replace(config.backbone, file=str(encoder)),
        work_dir=config.work_dir.with_name(f"{config.work_dir.name}-{encoder.stem}"),
    )  # fmt: skip
    run = Run(config, limit=options.limit)
    chosen = next((data for data in run.data if data.name == options.name and data.scores == "mapped"), None)
    if chosen is None or None in {row.group for row in chosen.training}:
        parser.error(f'{options.name} is no set with scores = "mapped" and a group_column')
    model = run.model()
    by_role: dict[str, list[Embedded]] = {"absolute": [], "correlation": []}
    for data in run.data:
        if data.scores in by_role:
            by_role[data.scores].append(run.embed_training(model, data))
    absolute, correlation = by_role["absolute"], by_role["correlation"]
    embeddings, scores = run.embed_training(model, chosen)
    images = torch.cat([torch.from_numpy(embeddings), run.embed_validation(model, chosen)])
    human = np.concatenate([scores, scores_of(chosen.validation)])
    groups = np.array([row.group for row in (*chosen.training, *chosen.validation)])
    print(f"| left out of {chosen.name} | images | SRCC within | PLCC within |\n|---|---|---|---|")
    within = []
    for group in np.unique(groups):
        kept, rows = groups[: len(scores)] != group, groups == group
        mapped = {chosen.name: (embeddings[kept], scores[kept])}
        predicted = make_scores(config, absolute, mapped, correlation, images[torch.from_numpy(rows)])
        agreement = measure_agreement(predicted, human[rows])
        within.append((agreement.srcc, agreement.plcc))
        print(f"| {group} | {rows.sum()} | {agreement.srcc:.3f} | {agreement.plcc:.3f} |", flush=True)
    print("| mean | | {:.3f} | {:.3f} |".format(*np.mean(within, axis=0)))
    agreement = measure_agreement(make_scores(config, absolute, {}, correlation, images), human)
    print(f"| all of it: SRCC and PLCC over the set | {len(human)} | {agreement.srcc:.3f} | {agreement.plcc:.3f} |")


if __name__ == "__main__":
    main()
