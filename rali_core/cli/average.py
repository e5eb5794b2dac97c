"""`rali average`: the weighted average of model files."""

from __future__ import annotations

import argparse
import sys
from typing import Any

DESCRIPTION = """\
Average the weights of model files that were trained from the same start (a "model soup"). The averaged encoder needs
a head of its own: train with the averaged file as backbone, with [align] steps = 0 and [tune] steps = 0."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("average", help="average the weights of model files", description=DESCRIPTION)
    parser.add_argument("models", nargs="+", metavar="MODEL.safetensors", help="model files, at least two")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.safetensors", help="model file to write")
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="weight of each model (default: equal weights)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Load, average, save."""
    from ..checkpoint import ModelInfo, load_model, save_model
    from ..files import hash_file
    from ..training.averaging import average_models

    loaded = [load_model(path) for path in options.models]
    model = average_models([each.model for each in loaded], options.weights)
    weights = options.weights or [1.0] * len(loaded)
    training = {
        "average_of": [
            {"name": each.info.name, "sha256": hash_file(path), "weight": weight, "training": each.info.training}
            for each, path, weight in zip(loaded, options.models, weights, strict=True)
        ]
    }
    licences = sorted({each.info.licence for each in loaded})
    model.encoder.half()
    save_model(options.output, model, ModelInfo("average", " AND ".join(licences), training=training))
    print(f"rali: wrote {options.output}", file=sys.stderr)
    return 0
