"""Finds models: the bundled one, the authors' after its download, or any model file."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLED_NAME = "rali-small"
BUNDLED_FILE = "rali-small.safetensors"
OFFICIAL_NAME = "official"
OFFICIAL_FILE = "rali-official.safetensors"
OFFICIAL_POINTER = "rali-official.path"
"""A text file with the path of the official model, if it was downloaded to another folder."""


def bundled_model_path() -> Path:
    """Path of the model that comes with the package.

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    package = Path(__file__).resolve().parent
    # An installed wheel has it inside the package; a checkout (and a ComfyUI node pack) beside it.
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / BUNDLED_FILE).is_file():
            return folder / BUNDLED_FILE
    raise FileNotFoundError(f"the bundled model {BUNDLED_FILE} is missing from this installation: install it again")


def cache_folder() -> Path:
    """Folder of converted models: `rali` in the hub client's own cache (`HF_HOME`, by default in the user's)."""
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "rali"


def official_model_path() -> Path:
    """Path of the authors' model, converted.

    Raises:
        FileNotFoundError: It was not downloaded yet, or its file was deleted.
    """
    folder = cache_folder()
    pointer = folder / OFFICIAL_POINTER
    if pointer.is_file():
        path = Path(pointer.read_text(encoding="utf-8").strip())
        if path.is_file():
            return path
        raise FileNotFoundError(f"the model {OFFICIAL_NAME!r} is gone from {path}: run `rali download official` again")
    if (folder / OFFICIAL_FILE).is_file():
        return folder / OFFICIAL_FILE
    raise FileNotFoundError(
        f"the model {OFFICIAL_NAME!r} is not downloaded yet: run `rali download official` (about 1.7 GB), or convert a "
        "release that you have with `rali convert RELEASE_DIR` and give the file's path"
    )


def find_model(name_or_file: str | os.PathLike[str] | None = None) -> Path:
    """Path of a model file.

    Args:
        name_or_file: None or `"rali-small"` for the bundled model, `"official"` for the authors', downloaded and
            converted before, or the path of a `.safetensors` model file.

    Raises:
        FileNotFoundError: Neither a known name nor an existing file, or the official model was not downloaded.
    """
    if name_or_file is None or name_or_file == BUNDLED_NAME:
        return bundled_model_path()
    if name_or_file == OFFICIAL_NAME:
        return official_model_path()
    path = Path(name_or_file).expanduser()
    if path.exists():
        return path
    raise FileNotFoundError(
        f"no model {os.fspath(name_or_file)!r}: expected {BUNDLED_NAME!r} or the path of a .safetensors model file, "
        f"or {OFFICIAL_NAME!r} after `rali download official`"
    )
