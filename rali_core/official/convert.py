"""The authors' release to one model file of ours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint import encode_metadata
from ..constants import PRECISIONS, Precision
from .release import Release, read_release
from .write import ProgressCallback, split_progress, write_entries

CONVERTER = f"rali-score {__version__}"
LICENCE_NOTE = (
    "Apache-2.0 is the licence of the authors' code (bytedance/Q-Insight); the page that the weights were downloaded "
    "from states their licence"
)


@dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes:
        path: The model file.
        release: What it was made from.
        source: What the file says about where it comes from, with hashes.
    """

    path: Path
    release: Release
    source: dict[str, Any]


def convert(
    release_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: Precision = "float16",
    origin: dict[str, str] | None = None,
    progress: ProgressCallback | None = None,
) -> Conversion:
    """Convert a release to one `.safetensors` model file.

    No pickle is run. Tensors are read and written one at a time.

    Args:
        release_dir: The folder with `ckpt.pt`, `pca.pkl`, `basis.npz` and `best/`.
        output: The file to write; must end in `.safetensors`. An existing one is replaced once the new one is whole.
        dtype: Of the encoder; the head is always float32.
        origin: Where the release was downloaded from, for the file's metadata.
        progress: Called with (done, total): every tensor counts twice, once when it was checked and once when it was
            written.

    Returns:
        What was made.

    Raises:
        ValueError: An unknown dtype, or a name that does not end in `.safetensors`.
        FileNotFoundError, NotADirectoryError: There is no such folder.
        ReleaseError: The release cannot be used; everything that was found is listed. Nothing is written.
        OSError: The file cannot be written.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"a model file's name ends in .safetensors, got {output.name}")
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype must be one of {', '.join(PRECISIONS)}, got {dtype!r}")
    checked, written = split_progress(progress)
    release = read_release(Path(release_dir), dtype, progress=checked)
    source = {
        "kind": "official RALI release",
        **(origin or {}),
        "files": release.hash_sources(),
        "dtype": dtype,
        "dropped": release.dropped,
        "pca": {"estimator": release.pca.estimator, "sklearn_version": release.pca.sklearn_version},
        "converted_by": CONVERTER,
        "licence_note": LICENCE_NOTE,
    }
    metadata = encode_metadata(
        release.describe_model(source), release.architecture.encoder, release.architecture.preprocess, "center"
    )
    write_entries(output, release.entries, metadata, written)
    return Conversion(output, release, source)
