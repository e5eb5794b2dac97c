"""Download, convert, and let `--model official` find it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..checkpoint import CheckpointError, read_metadata
from ..constants import Precision
from ..files import atomic_write
from ..hub import OFFICIAL_FILE, OFFICIAL_POINTER, cache_folder
from . import layout
from .convert import CONVERTER, convert
from .download import Downloaded, download
from .errors import ReleaseError
from .tensor_files import load_torch_file
from .write import ProgressCallback


def install_official(
    folder: str | os.PathLike[str] | None = None,
    *,
    dtype: Precision = "float16",
    revision: str = "main",
    report: Callable[[str], object] = str,
    progress: ProgressCallback | None = None,
) -> Path:
    """Download the authors' release and convert it, so that the name `"official"` finds it.

    Args:
        folder: Where to put release and model file; by default the hub client's cache and `rali` beside it.
        dtype: Of the encoder.
        revision: Branch, tag or commit of the release.
        report: Called with a line about each step.
        progress: Of the conversion; see `convert`.

    Returns:
        The model file.

    Raises:
        DownloadError: The release could not be downloaded.
        ReleaseError: It cannot be used.
        OSError: The model file cannot be written.
    """
    target = Path(folder).expanduser().absolute() if folder is not None else None
    downloaded = download(target, revision=revision, report=report)
    if not _holds_encoder(downloaded.folder):
        downloaded = download(target, revision=revision, with_encoder_weights=True, report=report)
    output = (target or cache_folder()) / OFFICIAL_FILE
    if _is_current(output, downloaded, dtype):
        report(f"{output} is up to date")
    else:
        report(f"converting {downloaded.folder}")
        convert(downloaded.folder, output, dtype=dtype, origin=downloaded.origin, progress=progress)
    pointer = cache_folder() / OFFICIAL_POINTER
    if target is None:
        pointer.unlink(missing_ok=True)
    else:
        pointer.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(pointer) as temporary:
            temporary.write_text(f"{output}\n", encoding="utf-8")
    return output


def _holds_encoder(release: Path) -> bool:
    try:
        state = load_torch_file(release / layout.CHECKPOINT).get("state_dict")
    except ReleaseError:
        return True  # the conversion reports what is wrong; more files would not help
    return isinstance(state, dict) and any(str(name).startswith("clip.") for name in state)


def _is_current(output: Path, downloaded: Downloaded, dtype: Precision) -> bool:
    try:
        source = read_metadata(output).get("source")
    except (FileNotFoundError, CheckpointError):
        return False
    return (
        isinstance(source, dict)
        and downloaded.revision is not None
        and source.get("revision") == downloaded.revision
        and source.get("dtype") == dtype
        and source.get("converted_by") == CONVERTER
    )
