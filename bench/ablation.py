"""What each part of a configured training is worth: the configuration with one part changed, trained and measured.

    python bench/ablation.py configs/rali-small.toml --limit 1500 --json ablation.json
    python bench/ablation.py configs/rali-small.toml --encoder weights/rali-small.safetensors

With `--encoder` the encoder is that of a finished model, and only the head is made again: minutes instead of hours, but
what a part does for the encoder is not seen. Figures are those of the held-out validation images, with 95 % bootstrap
intervals in the JSON file; no test split is used. Each variant has its own work_dir, which begins with the training's
embeddings and tokens, and is not deleted.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rali_core.evaluation import measure_agreement, srcc_within_groups
from rali_core.labels import scores_of
from rali_core.training.config import TrainConfig, check, read_config, to_json
from rali_core.training.pipeline import STAGES, Run, run_stage
from rali_core.training.publish import load_head

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {},
    "without align": {"align": {"steps": 0}},
    "without tune": {"tune": {"steps": 0}},
    "without PCA": {"compress": {"pca_dim": 0}},
    "without bins": {"compress": {"bins": 1}},
    "without the sets' component": {"compress": {"set_scale": 0.0}},
    "without fit": {"fit": {"epochs": 0}},
    "one description": {"describe": {"seeds": 1}},
    "score words only": {"describe": {"source": "score"}},
    "without distortions": {"distortions": {"triplets": 0}},
    "without blank images": {"distortions": {"blank": 0}},
    "without consistency": {"tune": {"consistency_images": 0}, "fit": {"consistency_weight": 0.0}},
}
"""Name to section to changed settings; a variant without each further data set is added to these."""


def make_variants(config: TrainConfig) -> dict[str, TrainConfig]:
    """The configurations of all variants."""
    idle = () if config.align.steps else ("describe", "align")  # these sections change nothing
    variants = {
        name: replace(
            config, **{section: replace(getattr(config, section), **keys) for section, keys in changes.items()}
        )
        for name, changes in VARIANTS.items()
        if not any(section in idle for section in changes)
    }
    for data in config.data[1:]:
        rest = tuple(other for other in config.data if other is not data)
        variants[f"without {data.name}"] = replace(config, data=rest)
        if data.scores != "none" and config.align.steps:
            text_only = tuple(replace(other, scores="none") if other is data else other for other in config.data)
            variants[f"{data.name} as text only"] = replace(config, data=text_only)
        if data.scores in ("absolute", "mapped"):
            for role in sorted({"absolute", "mapped", "correlation"} - {data.scores}):
                sets = tuple(replace(other, scores=role) if other is data else other for other in config.data)  # type: ignore[arg-type]
                variants[f"{data.name} as {role}"] = replace(config, data=sets)
    settled = to_json(config)
    return {name: variant for name, variant in variants.items() if name == "full" or to_json(variant) != settled}


def run_variant(config: TrainConfig, base: Path | None, measured: TrainConfig, limit: int | None) -> dict[str, Any]:
    """Train a variant and measure it on the validation images of all sets of the full configuration."""
    run = Run(config, limit=limit)
    folder, start = run.config.work_dir, base or Run(measured, limit=limit).config.work_dir
    if (start / "embeddings").is_dir() and not (folder / "embeddings").exists():
        shutil.copytree(start / "embeddings", folder / "embeddings")
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    for path in (start / "tokens").glob("*"):
        if not (folder / "tokens" / path.name).exists():
            (folder / "tokens" / path.name).symlink_to(path.resolve())
    if base is not None:
        for stage in STAGES:
            if (base / stage).is_dir() and not (folder / stage).exists():
                shutil.copytree(base / stage, folder / stage)
    for stage in STAGES:
        if stage != "describe" or config.align.steps:
            run_stage(run, stage)
    model = run.model(run.path("tune", "encoder.safetensors"))
    head = load_head(run.path("fit", "head.safetensors"))
    figures: dict[str, Any] = {}
    everything = Run(replace(measured, work_dir=config.work_dir), limit=limit)
    for data in everything.data:
        with torch.no_grad():
            scores = head(everything.embed_validation(model, data)).numpy()
        figures[data.name] = measure_agreement(scores, scores_of(data.validation), resamples=1000).to_dict()
        groups = [row.group for row in data.validation if row.group is not None]
        if len(groups) == len(data.validation):
            within = srcc_within_groups(scores, scores_of(data.validation), groups)
            figures[data.name]["mean_srcc_within_groups"] = float(np.mean(list(within.values())))
    return figures


def main() -> None:
    """Run all or some variants and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG.toml")
    parser.add_argument("--encoder", metavar="MODEL.safetensors", help="make only the head again, on this encoder")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N images of each set and part")
    parser.add_argument("--only", action="append", metavar="NAME", help="a variant (may be given several times)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = read_config(options.config)
    config = replace(config, fit=replace(config.fit, attribute_images=0))
    if options.encoder:
        file = str(Path(options.encoder).resolve())
        config = replace(
            config, backbone=replace(config.backbone, file=file, intermediate_block=None),
            align=replace(config.align, steps=0), tune=replace(config.tune, steps=0),
        )  # fmt: skip
        check(config)
    root = config.work_dir.with_name(config.work_dir.name + "-ablation")
    variants, results, base = make_variants(config), {}, None
    for name in options.only or variants:
        variant = replace(variants[name], work_dir=root / name.replace(" ", "-"))
        results[name] = run_variant(variant, base, config, options.limit)
        base = base or Run(variant, limit=options.limit).config.work_dir
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    names = [data.name for data in config.data]
    print("| variant | " + " | ".join(f"{name}: SRCC / PLCC" for name in names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for name, figures in results.items():
        shown = " | ".join(f"{figures[data]['srcc']:.3f} / {figures[data]['plcc']:.3f}" for data in names)
        print(f"| {name} | {shown} |")


if __name__ == "__main__":
    main()
