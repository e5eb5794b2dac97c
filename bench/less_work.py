"""What is lost and what is saved when a plain DINOv2 encoder does less: fewer patches, or smaller images.

    python bench/less_work.py configs/rali-small.toml --model weights/rali-small.safetensors [--images 500]

Nothing is trained for it. Agreement with the human scores is that of the held-out validation images of the
configuration's scored sets (no test split is used), in float32; operations are those that torch counts; time is that of
one pass of four images, in turns with the whole model's, a median of ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_rate import seconds
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rali_core.evaluation import measure_agreement
from rali_core.images import load_image
from rali_core.labels import scores_of
from rali_core.model import RaliModel, with_image_size
from rali_core.scorer import RaliScorer
from rali_core.training.config import read_config
from rali_core.training.run import Run
from rali_core.vision_transformer import DinoEncoder

SHARES = {
    "a half of the patches behind block 6": (1, 2), "a quarter behind block 6": (1, 4),
    "a sixth behind block 6": (1, 6), "a half from the start": (2, 1), "a third from the start": (3, 1),
    "a half from the start, a quarter of these behind block 6": (2, 4),
    "a third from the start, a quarter of these behind block 6": (3, 4),
    "a quarter from the start, a half of these behind block 6": (4, 2),
}  # fmt: skip
"""By name, of how many patches one is kept: from the first block on, and once more behind block 6."""
MIDDLE = 6
SIZES = (434, 350, 294)
"""Sides of the input in pixels, odd numbers of patches."""
BATCH, ROUNDS = 4, 7

Embed = Callable[[Tensor], Tensor]


def every(tokens: Tensor, step: int) -> Tensor:
    """The class token and every `step`-th other one; (B, N, W)."""
    return torch.cat([tokens[:, :1], tokens[:, 1::step]], dim=1)


def keep_some(model: RaliModel, first: int, later: int) -> Embed:
    """An encoder that leaves patches out, see `SHARES`."""
    assert isinstance(model.encoder, DinoEncoder)
    trunk = model.encoder.trunk

    def embed(inputs: Tensor) -> Tensor:
        tokens = every(trunk.forward_first(inputs, 0), first)
        for block in trunk.blocks[:MIDDLE]:
            tokens = block(tokens)
        return trunk.forward_rest(every(tokens, later), MIDDLE)

    return embed


def make_variants(model: RaliModel) -> dict[str, tuple[RaliModel, Embed]]:
    """By name the model whose preprocessing and head are used, and what makes the embeddings."""
    variants: dict[str, tuple[RaliModel, Embed]] = {"all of the model": (model, model.embed)}
    variants |= {name: (model, keep_some(model, *kept)) for name, kept in SHARES.items()}
    for size in SIZES:
        smaller = with_image_size(model, size)
        variants[f"images of {size} pixels"] = (smaller, smaller.embed)
    return variants


def operations(model: RaliModel, embed: Embed) -> int:
    """Of one image, see `encoder_rate.encoder_operations`."""
    size = model.preprocess_config.image_size
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        embed(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def time_ratios(variants: dict[str, tuple[RaliModel, Embed]]) -> dict[str, float]:
    """Time of each variant's pass as a share of the first one's in the same round."""
    took: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, (model, embed) in variants.items():
            size = model.preprocess_config.image_size
            inputs = torch.randn(BATCH, 3, size, size)
            took[name].append(seconds(lambda inputs=inputs, embed=embed: embed(inputs), inputs.device))  # type: ignore[misc]
    whole = took[next(iter(took))]
    return {name: statistics.median(a / b for a, b in zip(each, whole, strict=True)) for name, each in took.items()}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--model", metavar="FILE", help="default: the bundled model")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="of each set at most (default: 500)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    model = RaliScorer.from_pretrained(options.model, device="cpu", dtype="float32").model
    variants = make_variants(model)
    data = [data for data in Run(read_config(options.config)).data if data.scores in ("absolute", "mapped")]
    result: dict[str, dict[str, Any]] = {name: {} for name in variants}
    with torch.inference_mode():
        ratios = time_ratios(variants)
        for name, (other, embed) in variants.items():
            result[name] |= {"operations": operations(other, embed), "time": ratios[name]}
        for part in data:
            rows = part.validation[: options.images]
            scores: dict[str, list[float]] = {name: [] for name in variants}
            for row in rows:
                pixels = load_image(row.path).unsqueeze(0)
                for name, (other, embed) in variants.items():
                    scores[name].append(float(other.head(embed(other.preprocess(pixels, coverage="center")[0]))))
            human: NDArray[np.float64] = scores_of(rows)
            whole = np.array(scores["all of the model"])
            for name, given in scores.items():
                agreement = measure_agreement(np.array(given), human)
                moved = float(np.mean(np.array(given) - whole))
                result[name][part.name] = {"srcc": agreement.srcc, "plcc": agreement.plcc, "moved": moved}
    show(result, [part.name for part in data])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def show(result: dict[str, dict[str, Any]], names: list[str]) -> None:
    """Print the table."""
    most = result["all of the model"]["operations"]
    heads = "".join(f" | {name}: SRCC / PLCC, moved by" for name in names)
    print(f"| | operations | time{heads} |\n|---|---|---{'|---' * len(names)}|")
    for name, row in result.items():
        told = "".join(
            f" | {row[part]['srcc']:.3f} / {row[part]['plcc']:.3f}, {row[part]['moved']:+.3f}" for part in names
        )
        print(f"| {name} | {row['operations'] / most:.2f} | {row['time']:.2f}{told} |")


if __name__ == "__main__":
    main()
