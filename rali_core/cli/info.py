"""`rali info`: what a model file says about itself."""

from __future__ import annotations

import argparse
import json
from typing import Any

DESCRIPTION = """\
Print what a model file says about itself: image encoder, preprocessing, percentiles and bands, how and on what it was
trained, its measured figures, licence and source. The tensors are not loaded."""

HIDDEN = ("quantiles",)
"""Long lists that are left out of the readable output."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("info", help="print a model file's metadata", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="model name or file (default: the bundled model)")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the metadata."""
    from ..checkpoint import read_metadata
    from ..hub import find_model

    path = find_model(options.model)
    metadata = read_metadata(path)
    if options.json:
        print(json.dumps({"file": str(path), **metadata}, indent=2))
        return 0
    print(f"file: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    _print_tree(metadata, indent="")
    return 0


def _print_tree(values: dict[str, Any], indent: str) -> None:
    for key, value in values.items():
        if key in HIDDEN and isinstance(value, list):
            print(f"{indent}{key}: {len(value)} numbers from {value[0]:.3f} to {value[-1]:.3f} (--json prints them)")
        elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            print(f"{indent}{key}:")
            for part in value:
                _print_tree(part, indent + "  ")
        elif isinstance(value, dict) and value:
            print(f"{indent}{key}:")
            _print_tree(value, indent + "  ")
        else:
            print(f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}")
