"""What each part of the recipe is worth: the method's ablation table, redone for the recipe of a configuration.

    python bench/ablation.py configs/small.toml
    python bench/ablation.py configs/small.toml --limit 2000 --steps 100      # sooner, on a part of the data

Every variant runs the configuration's stages up to `fit` with one part changed; what the configured training has made
already is used, and left as it is. RACT and the joint tuning, which come after, are left out. Figures are of the
validation images, which no variant trained on (not of the test split), scored from the cached middle squares. A stopped
run goes on where it was. Prints a Markdown table, and writes it with all settings to `ablation.json` in the folder
`ablation` beside the stages.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from rali_core.training.config import TrainConfig, read_config, to_json
from rali_core.training.evaluate import Agreement, measure_agreement
from rali_core.training.ract import compress_domains, fit_domains
from rali_core.training.recipe import Recipe
from rali_core.training.tokens import UpperBlocks


def make_variants(full: TrainConfig) -> dict[str, TrainConfig]:
    """The recipe up to `fit`, and each variant with one part changed; those that align alike share a work folder."""
    folder = full.work_dir / "ablation"
    described = full.work_dir / "describe" / "descriptions.jsonl"
    return {
        "full": full,
        "without PCA": replace(full, compress=replace(full.compress, pca_dim=0)),
        "without bins": replace(full, compress=replace(full.compress, bins=1)),
        "without fitting": replace(full, fit=replace(full.fit, epochs=0)),
        "without alignment": replace(
            full, work_dir=folder / "unaligned", align=replace(full.align, enabled=False),
        ),
        "without the teacher": replace(full, fit=replace(full.fit, teacher="none")),
        "without known distortions in fitting": replace(
            full, fit=replace(full.fit, order_weight=0.0, steady_weight=0.0)
        ),
        "one description of each image": replace(
            full, work_dir=folder / "one-seed", data=replace(full.data, descriptions=described),
            describe=replace(full.describe, source="file", seeds=1),
        ),
        "score words for descriptions": replace(
            full, work_dir=folder / "score-words", describe=replace(full.describe, source="score")
        ),
    }  # fmt: skip


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def measure(config: TrainConfig, full: Recipe) -> Agreement:
    """Run a variant's stages, make and fit its head, and measure it on the validation images.

    The pictures at known levels of distortion that the fitting may use are those of the full recipe.
    """
    recipe = Recipe(config, report=say)
    recipe.run([*(["describe"] if config.align.enabled else []), "align"])
    domain = recipe.domain(recipe.reference)
    upper = UpperBlocks(recipe.aligned_tower(), config.backbone.frozen_blocks).eval()
    folder = config.work_dir / "ablation"
    folder.mkdir(exist_ok=True)
    compressed = compress_domains(
        upper, [domain], config=config.compress, folder=folder, seed=config.seed, report=say
    )  # fmt: skip
    head = fit_domains(
        upper, compressed, [domain], config=config.fit, ordered=full.ordered(upper), folder=folder, seed=config.seed,
        report=say,
    )  # fmt: skip
    with torch.inference_mode():
        predicted = head(domain.embed_validation(upper)).numpy()
    return measure_agreement(predicted, domain.validation_scores, resamples=1000)


def main() -> None:
    """Train and measure all variants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--limit", type=int, help="training images (default: the configuration's)")
    parser.add_argument("--steps", type=int, help="steps of the alignment (default: the configuration's)")
    parser.add_argument("--work-dir", type=Path, help="needed with the two above (default: the configuration's)")
    parser.add_argument("--only", action="append", help="variant to run (may be given several times; default: all)")
    options = parser.parse_args()
    full = read_config(options.config)
    full = replace(full, ract=None, joint=(), tokens_dir=full.tokens_dir or full.work_dir / "tokens")
    if options.limit or options.steps:
        if options.work_dir is None:
            parser.error("--limit and --steps need a --work-dir: the configuration's holds another training")
        full = replace(
            full, data=replace(full.data, limit=options.limit or full.data.limit),
            align=replace(full.align, steps=options.steps or full.align.steps),
        )  # fmt: skip
    if options.work_dir is not None:
        full = replace(full, work_dir=options.work_dir, tokens_dir=options.work_dir / "tokens")
    full = replace(full, output=full.work_dir / "ablation" / "unused.safetensors")
    variants = make_variants(full)
    unknown = set(options.only or ()) - set(variants)
    if unknown:
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(variants)}")
    file = full.work_dir / "ablation" / "ablation.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    recipe = Recipe(full, report=say)
    for name in options.only or variants:
        agreement = measure(variants[name], recipe)
        results[name] = {"settings": to_json(variants[name]), **agreement.to_dict()}
        file.write_text(json.dumps(results, indent=1))
        say(f"{name}: SRCC {agreement.srcc:.4f} PLCC {agreement.plcc:.4f}")
    print("| variant | SRCC (95 % interval) | PLCC (95 % interval) |\n|---|---|---|")
    for name in variants:
        if name in results:
            cells = [
                "{:.4f} ({:.3f} to {:.3f})".format(results[name][key], *results[name][f"{key}_interval"])
                for key in ("srcc", "plcc")
            ]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
