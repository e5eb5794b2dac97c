"""What every training begins and ends with: reading the data; calibrating, measuring and saving the model."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..calibration import Calibration
from ..checkpoint import ModelInfo, save_model
from ..devices import device_of
from ..files import hash_file
from ..head import PrototypeHead
from ..model import RaliModel
from ..preprocess import Coverage
from ..scorer import RaliScorer
from .backbones import Backbone
from .config import DataConfig
from .data import LabelledImage, read_labels, scores_of, split_validation
from .evaluate import Report, format_agreement, measure_agreement

MINIMUM_IMAGES = 20
"""Fewer labelled training images cannot give a head that means anything."""


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


def read_configured(name: str, data: DataConfig, *, seed: int, report: Report) -> Splits:
    """Read the table of a configured data set, and report how many images it has.

    Args:
        name: The set's name in what is reported.
        data: What the configuration says of it.
        seed: As of `read_splits`.
        report: Called with a line of text.

    Raises:
        ValueError: As `read_splits`.
    """
    rows = read_splits(
        data.labels, root=data.images_root, score_range=data.score_range, limit=data.limit,
        validation_fraction=data.validation_fraction, seed=seed,
    )  # fmt: skip
    training, validation, test = map(len, rows)
    report(f"{name}: {training} training, {validation} validation, {test} test images")
    return rows


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
    measure_test: bool = True,
    validation_seen: bool = False,
    report: Report,
) -> dict[str, Any]:
    """Calibrate on the validation images, measure on these and on the test images, and write the model file.

    Args:
        model: The trained model, float32, on the device that shall do the measuring.
        output: Model file to write; its tower is stored in float16.
        name: The model's name.
        licence: Of the weights.
        source: Where the training started, for the metadata.
        labels: Table of the images, for its name and hash.
        rows: Training, validation and test images; fewer than three test images are not measured.
        story: What else the `training` metadata shall tell.
        measure_test: False for a model that another training goes on from: then the test images are not looked at.
        validation_seen: Whether the model has learnt the validation images too: their figures then say so.
        report: Called with lines of text.

    Returns:
        The `training` metadata.
    """
    training_rows, validation_rows, test_rows = rows
    model.encoder.half()
    model.encoder.float()  # what is measured from here on is what the file holds
    scorer = RaliScorer(model, ModelInfo(name, licence), device=device_of(model))
    validation_scores = _score_rows(scorer, validation_rows)
    figures: dict[str, dict[str, Any]] = {
        "validation": measure_agreement(validation_scores, scores_of(validation_rows)).to_dict()
    }
    if validation_seen:
        figures["validation"]["seen"] = True
    if measure_test and len(test_rows) >= 3:
        figures["test"] = measure_on_test(scorer, test_rows, report=report)
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
            validation_scores,
            f"scores of the {len(validation_rows)} validation images of {Path(labels).name}"
            + (", which its head has seen" if validation_seen else ""),
        ),
        training=training,
        source=source,
    )
    model.encoder.half()
    save_model(output, model, info)
    report(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return training


def measure_on_test(scorer: RaliScorer, rows: list[LabelledImage], *, report: Report) -> dict[str, Any]:
    """Figures of a model on at least three test images, as plain JSON types; also reported as a table."""
    agreement = measure_agreement(_score_rows(scorer, rows), scores_of(rows), resamples=1000)
    report("test split without flagged near-duplicates:\n" + format_agreement(agreement))
    return agreement.to_dict()


def assemble(source: Backbone, tower: nn.Module, head: PrototypeHead, *, coverage: Coverage) -> RaliModel:
    """A model of its parts, in evaluation mode.

    Args:
        source: The tower's configuration.
        tower: The tower.
        head: The head.
        coverage: The model's own setting for pictures that are not square.
    """
    model = RaliModel(
        source.encoder, source.preprocess,
        pca_dim=len(head.components), prototypes=len(head.scores), coverage=coverage,
    )  # fmt: skip
    model.encoder.load_state_dict(tower.state_dict())
    model.head.load_state_dict(head.state_dict())
    return model.eval()


def _score_rows(scorer: RaliScorer, rows: list[LabelledImage]) -> NDArray[np.float32]:
    return scorer.score([row.path for row in rows]).scores
