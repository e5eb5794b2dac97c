"""From a table of human scores to a model file: tune, compress, fit, calibrate, measure, save."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..calibration import Calibration
from ..checkpoint import ModelInfo, save_model
from ..encoder import build_encoder
from ..model import RaliModel
from ..preprocess import Coverage
from ..scorer import RaliScorer
from .backbones import Backbone, load_backbone
from .compress import compress
from .data import LabelledImage, hash_file, read_labels, split_validation
from .evaluate import Report, format_agreement, measure_agreement
from .fit import build_head, fit_head
from .tokens import LowerBlocks, UpperBlocks, View, ViewKind, cache_embeddings, cache_tokens, plan_views
from .tune import TuneSettings, token_key, tune_upper_blocks

FIT_VIEWS: tuple[ViewKind, ...] = ("whole", "mirrored")
"""Views that the head is made from and fitted on; crops would cost half as much again."""

MINIMUM_IMAGES = 20
"""Fewer labelled training images cannot give a head that means anything."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the whole training; the defaults made the bundled model.

    Attributes:
        image_size: Side of the tower's input in pixels.
        frozen_blocks: Blocks of the tower that stay as they are.
        validation_fraction: Share of the training rows that is held out: it is validated and calibrated on.
        ordered_images: Training images that are also seen at two levels of a distortion.
        tune: Settings of the tower's tuning.
        pca_dim: P, dimension after PCA (the paper: 2/3 of the embedding).
        bins: Score bins.
        prototypes: K.
        temperature: Initial softmax temperature tau. The paper's 0.07 overfits here: 0.843 instead of 0.851 SRCC on
            the validation images.
        fit_epochs: Passes of the head's fitting.
        fit_batch_size: Views per step of it.
        fit_learning_rate: Its peak learning rate.
        coverage: The model's own setting for pictures that are not square.
        seed: Seed of every random choice.
    """

    image_size: int = 224
    frozen_blocks: int = 8
    validation_fraction: float = 0.1
    ordered_images: int = 3000
    tune: TuneSettings = field(default_factory=TuneSettings)
    pca_dim: int = 256
    bins: int = 240
    prototypes: int = 250
    temperature: float = 0.15
    fit_epochs: int = 6
    fit_batch_size: int = 256
    fit_learning_rate: float = 3e-3
    coverage: Coverage = "tiles"
    seed: int = 0


def train(
    labels: str | Path,
    backbone: str | Path,
    output: str | Path,
    *,
    work_dir: str | Path,
    root: str | Path | None = None,
    score_range: tuple[float, float] = (0.0, 1.0),
    name: str | None = None,
    limit: int | None = None,
    settings: TrainSettings | None = None,
    workers: int = 1,
    report: Report = print,
) -> dict[str, Any]:
    """Train a model from labelled images; goes on where an interrupted run in the same `work_dir` stopped.

    Args:
        labels: CSV with the columns `image`, `mos` and optionally `split` and `near_dup_in_train`.
        backbone: Pretrained tower, see `backbones.load_backbone`.
        output: Model file to write, `.safetensors`.
        work_dir: Folder for cached tokens (6.5 GB for 10,000 images at 224 pixels) and checkpoints.
        root: Folder of the images; by default that of `labels`.
        score_range: Worst and best score of the table's scale.
        name: The model's name; by default the output file's.
        limit: Use only the first so many training rows.
        settings: How to train.
        workers: Processes that decode images while the frozen blocks run; 0 decodes in this one.
        report: Called with lines of text.

    Returns:
        What the model file's `training` metadata holds: settings, data and measured figures.

    Raises:
        FileNotFoundError: Labels, images or backbone are missing.
        ValueError: They do not fit, or there are fewer than 20 training images.
    """
    settings = settings or TrainSettings()
    output, work_dir = Path(output), Path(work_dir)
    if output.suffix != ".safetensors":  # found out now, not after the training
        raise ValueError(f"a model file's name ends in .safetensors, got {output.name}")
    rows = read_splits(
        labels, root=root, score_range=score_range, limit=limit,
        validation_fraction=settings.validation_fraction, seed=settings.seed,
    )  # fmt: skip
    training_rows, validation_rows, test_rows = rows
    source = load_backbone(backbone, image_size=settings.image_size)
    report(f"{len(training_rows)} training, {len(validation_rows)} validation, {len(test_rows)} test images")
    work_dir.mkdir(parents=True, exist_ok=True)
    model = _train_model(source, training_rows, validation_rows, work_dir, settings, workers, report)
    return measure_and_save(
        model, output,
        name=name or output.stem, licence=source.source["licence"], source={"backbone": source.source},
        labels=labels, rows=rows,
        story={"settings": asdict(settings)}, report=report,
    )  # fmt: skip


Splits = tuple[list[LabelledImage], list[LabelledImage], list[LabelledImage]]
"""Training, validation and test images."""


def read_splits(
    labels: str | Path,
    *,
    root: str | Path | None,
    score_range: tuple[float, float],
    limit: int | None,
    validation_fraction: float,
    seed: int,
) -> Splits:
    """Read a table and hold out validation images; flagged near-duplicates are left out of the test images.

    Args:
        labels: See `data.read_labels`, as `root` and `score_range`.
        root: Folder of the images.
        score_range: Scale of the scores.
        limit: Use only the first so many training rows.
        validation_fraction: Share of the training rows that is held out.
        seed: Seed of that choice.

    Raises:
        ValueError: There are fewer than 20 training or 3 validation images.
    """
    rows = read_labels(labels, root=root, score_range=score_range)
    training, validation = split_validation(rows, fraction=validation_fraction, seed=seed)
    training = training[:limit]
    if len(training) < MINIMUM_IMAGES or len(validation) < 3:
        raise ValueError(
            f"expected at least {MINIMUM_IMAGES} training and 3 validation images, got {len(training)} and "
            f"{len(validation)}"
        )
    return training, validation, [row for row in rows if row.split == "test" and not row.near_duplicate]


def measure_and_save(
    model: RaliModel,
    output: Path,
    *,
    name: str,
    licence: str,
    source: dict[str, Any],
    labels: str | Path,
    rows: Splits,
    story: dict[str, Any],
    report: Report,
) -> dict[str, Any]:
    """Calibrate on the validation images, measure on these and on the test images, and write the model file.

    Args:
        model: The trained model, float32.
        output: Model file to write; its tower is stored in float16.
        name: The model's name.
        licence: Of the weights.
        source: Where the training started, for the metadata.
        labels: Table of the images, for its name and hash.
        rows: Training, validation and test images; fewer than three test images are not measured.
        story: What else the `training` metadata shall tell.
        report: Called with lines of text.

    Returns:
        The `training` metadata.
    """
    training_rows, validation_rows, test_rows = rows
    model.encoder.half()
    model.encoder.float()  # what is measured from here on is what the file holds
    scorer = RaliScorer(model, ModelInfo(name, licence))
    validation_scores = _score_rows(scorer, validation_rows)
    figures = {"validation": measure_agreement(validation_scores, _scores(validation_rows)).to_dict()}
    if len(test_rows) >= 3:
        test = measure_agreement(_score_rows(scorer, test_rows), _scores(test_rows), resamples=1000)
        figures["test"] = test.to_dict()
        report("test split without flagged near-duplicates:\n" + format_agreement(test))
    training = {
        **story,
        "labels_sha256": hash_file(labels),
        "images": {"training": len(training_rows), "validation": len(validation_rows), "test": len(test_rows)},
        "figures": figures,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    info = ModelInfo(
        name=name,
        licence=licence,
        calibration=Calibration.from_scores(
            validation_scores, f"scores of the {len(validation_rows)} validation images of {Path(labels).name}"
        ),
        training=training,
        source=source,
    )
    model.encoder.half()
    save_model(output, model, info)
    report(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return training


def _train_model(
    source: Backbone,
    training_rows: list[LabelledImage],
    validation_rows: list[LabelledImage],
    work_dir: Path,
    settings: TrainSettings,
    workers: int,
    report: Report,
) -> RaliModel:
    tower = build_encoder(source.encoder)
    tower.load_state_dict(source.state)
    lower = LowerBlocks(tower, settings.frozen_blocks).requires_grad_(False)
    upper = UpperBlocks(tower, settings.frozen_blocks).requires_grad_(True)
    views = plan_views(len(training_rows), pairs=min(settings.ordered_images, len(training_rows)), seed=settings.seed)
    key = token_key(source, settings.frozen_blocks)
    validation_views = [View(index, "whole") for index in range(len(validation_rows))]
    validation_tokens = cache_tokens(
        lower, validation_rows, validation_views, source.preprocess, work_dir / "validation-tokens.npy",
        key=key, workers=workers, report=report,
    )  # fmt: skip
    tokens = cache_tokens(
        lower, training_rows, views, source.preprocess, work_dir / "training-tokens.npy",
        key=key, workers=workers, report=report,
    )  # fmt: skip
    scores, validation_scores = _scores(training_rows), _scores(validation_rows)
    tune_upper_blocks(
        upper, tokens, views, scores,
        validation=(validation_tokens, validation_scores),
        settings=settings.tune, checkpoint=work_dir / "tune.pt", report=report,
    )  # fmt: skip
    labelled = np.array([index for index, view in enumerate(views) if view.kind in FIT_VIEWS])
    embeddings = cache_embeddings(upper, tokens, labelled, work_dir / "training-embeddings.safetensors", report=report)
    whole = np.array([position for position, index in enumerate(labelled) if views[index].kind == "whole"])
    compressed = compress(
        embeddings[whole].numpy(), scores,
        pca_dim=settings.pca_dim, bins=settings.bins, prototypes=settings.prototypes,
        temperature=settings.temperature, seed=settings.seed,
    )  # fmt: skip
    report(f"compress: {len(compressed.prototypes)} prototypes of dimension {compressed.prototypes.shape[1]}")
    targets = torch.from_numpy(scores[[views[index].image for index in labelled]]).float()
    validation_embeddings = cache_embeddings(
        upper, validation_tokens, np.arange(len(validation_tokens)),
        work_dir / "validation-embeddings.safetensors", report=report,
    )  # fmt: skip
    head = fit_head(
        build_head(compressed), embeddings, targets,
        validation=(validation_embeddings, validation_scores), epochs=settings.fit_epochs,
        batch_size=settings.fit_batch_size, learning_rate=settings.fit_learning_rate, seed=settings.seed,
        report=report,
    )  # fmt: skip
    model = RaliModel(
        source.encoder, source.preprocess,
        pca_dim=len(head.components), prototypes=len(head.scores), coverage=settings.coverage,
    )  # fmt: skip
    model.encoder.load_state_dict(tower.state_dict())
    model.head.load_state_dict(head.state_dict())
    return model.eval()


def _scores(rows: list[LabelledImage]) -> NDArray[np.float64]:
    return np.array([row.score for row in rows])


def _score_rows(scorer: RaliScorer, rows: list[LabelledImage]) -> NDArray[np.float32]:
    return scorer.score([row.path for row in rows]).scores
