"""Where models are found: the bundled one, by name, or any model file."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLED_NAME = "rali-small"
BUNDLED_FILE = "rali-small.safetensors"


def bundled_model_path() -> Path:
    """Path of the model that comes with the package.

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    package = Path(__file__).resolve().parent
    # An installed wheel carries it inside the package; a checkout (and a ComfyUI node pack) beside it.
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / BUNDLED_FILE).is_file():
            return folder / BUNDLED_FILE
    raise FileNotFoundError(f"the bundled model {BUNDLED_FILE} is missing from this installation: install it again")


def find_model(name_or_file: str | os.PathLike[str] | None = None) -> Path:
    """Path of a model file.

    Args:
        name_or_file: None or `"rali-small"` for the bundled model, or the path of a `.safetensors` model file.

    Raises:
        FileNotFoundError: Neither a known name nor an existing file.
    """
    if name_or_file is None or name_or_file == BUNDLED_NAME:
        return bundled_model_path()
    path = Path(name_or_file).expanduser()
    if path.exists():
        return path
    raise FileNotFoundError(
        f"no model {os.fspath(name_or_file)!r}: expected {BUNDLED_NAME!r} or the path of a .safetensors model file"
    )
