"""The model file: the finished stages combined, measured on every set, with their provenance."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from .. import __version__
from ..calibration import Calibration
from ..checkpoint import ModelInfo, save_model
from ..evaluation import measure_agreement, srcc_within_groups
from ..files import hash_file
from ..head import PrototypeHead
from ..labels import scores_of
from ..model import RaliModel
from ..scorer import RaliScorer
from .attributes import load_probes
from .config import to_json
from .run import DataSet, Run

logger = logging.getLogger("rali")

RESAMPLES = 1000
"""Bootstrap resamples of the figures' 95 % intervals."""


def save(run: Run, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Assemble the model of the finished stages, measure it on every set, and write the model file.

    Args:
        run: The training.
        records: The record `stage.json` of each stage.
    """
    config, source = run.config, run.backbone
    head = load_head(run.path("fit", "head.safetensors"))
    with safe_open(run.path("fit", "head.safetensors"), framework="pt") as file:
        domains = json.loads((file.metadata() or {}).get("domains", "{}"))
    model = RaliModel(
        source.encoder, source.preprocess, pca_dim=len(head.components), prototypes=len(head.scores),
        coverage=config.coverage, domains=domains,
    )  # fmt: skip
    model.head.load_state_dict(head.state_dict())
    model.encoder.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(run.path("tune", "encoder.safetensors")).items()}
    )
    model.probes, attributes = load_probes(run.path("fit", "attributes.safetensors"))
    model = model.eval().to(run.device)
    held_out = {data.name: _predict(run, model, data) for data in run.data if data.validation}
    scorer = RaliScorer(model, ModelInfo(config.name, config.licence), device=run.device)
    figures = {data.name: _measure(scorer, data, held_out.get(data.name)) for data in run.data}
    info = ModelInfo(
        name=config.name,
        licence=config.licence,
        calibration=_calibrate(run, held_out),
        training=_provenance(run, records, figures) | {"attributes": attributes},
        source={**source.source, "origin": source.origin} if source.origin else source.source,
    )
    model.encoder.half()
    save_model(config.output, model, info)
    logger.info("wrote %s (%.1f MB)", config.output, config.output.stat().st_size / 1e6)


def _predict(run: Run, model: RaliModel, data: DataSet) -> NDArray[np.float32]:
    with torch.no_grad():
        scores: NDArray[np.float32] = model.head(run.embed_validation(model, data).to(run.device)).cpu().numpy()
    return scores


def _measure(scorer: RaliScorer, data: DataSet, held_out: NDArray[np.float32] | None) -> dict[str, Any]:
    """Figures on a set's held-out images (their middle squares) and on its test images (as the model scores files)."""
    figures: dict[str, Any] = {}
    parts = {"validation": (data.validation, held_out)}
    if len(data.test) >= 3:
        parts["test"] = (data.test, scorer.score([row.path for row in data.test]).scores)
    for part, (rows, predicted) in parts.items():
        if predicted is None or len(rows) < 3:
            continue
        agreement = measure_agreement(predicted, scores_of(rows), resamples=RESAMPLES)
        figures[part] = agreement.to_dict()
        groups = [row.group for row in rows if row.group is not None]
        if len(groups) == len(rows):
            within = srcc_within_groups(predicted, scores_of(rows), groups)
            figures[part]["srcc_within_groups"] = {name: round(value, 6) for name, value in within.items()}
            figures[part]["mean_srcc_within_groups"] = round(float(np.mean(list(within.values()))), 6)
        logger.info("%s, %s: SRCC %.4f PLCC %.4f", data.name, part, agreement.srcc, agreement.plcc)
    return figures


def _calibrate(run: Run, held_out: dict[str, NDArray[np.float32]]) -> Calibration:
    populations: dict[str, tuple[ArrayLike, str]] = {}
    for data in run.config.data:
        if data.percentiles is not None and data.name in held_out:
            scores = held_out[data.name]
            populations[data.percentiles] = (scores, f"{len(scores)} held-out images of {data.name}")
    if not populations:
        name = run.config.data[0].name
        populations[name] = (held_out[name], f"{len(held_out[name])} held-out images of {name}")
    return Calibration.from_scores(populations)


def _provenance(run: Run, records: Mapping[str, Mapping[str, Any]], figures: dict[str, Any]) -> dict[str, Any]:
    config = to_json(run.config)
    return {
        "config": config,
        "config_sha256": hash_config(config),
        "limit": run.limit,
        "git_commit": git_commit(),
        "data": {
            data.name: {
                "labels_sha256": hash_file(settings.labels),
                "sha256": data.digest,
                "images": {
                    "training": len(data.training), "validation": len(data.validation), "test": len(data.test),
                },
            }
            for data, settings in zip(run.data, run.config.data, strict=True)
        },
        "stages": {
            stage: {key: record[key] for key in ("outputs", "seconds", "git_commit")}
            for stage, record in records.items()
        },
        "figures": figures,
        "versions": {"rali": __version__, "python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip


def hash_config(config: Any) -> str:
    """SHA-256 over a configuration in plain JSON types."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def git_commit() -> str | None:
    """Commit of this code's checkout, with `-dirty` if tracked files were changed; None without one."""
    repository = Path(__file__).resolve().parents[2]
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def load_head(path: Path) -> PrototypeHead:
    """Load a head from a stage's file."""
    return PrototypeHead.from_state(load_file(path)).eval()
