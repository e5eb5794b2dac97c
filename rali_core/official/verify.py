"""Checks a converted file against the release that it came from, tensor by tensor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ..checkpoint import read_metadata
from ..constants import Precision
from ..lazy import renamed_attribute
from .download import FOLDER, REPOSITORY
from .errors import ReleaseError, describe
from .layout import CHECKPOINT
from .release import read_release
from .write import ProgressCallback, split_progress


@dataclass(frozen=True)
class Verification:
    """What was compared; all of it was equal.

    Attributes:
        encoder_tensors: Tensors of the image encoder, each equal to the release's rounded to the file's dtype.
        head_tensors: Tensors of the head, each equal to the release's.
        dtype: The encoder's dtype in the file.
        largest_rounding: Largest difference between a encoder weight in the file and in the release.
        files: SHA-256 of the release's files, equal to those that the model file names.
    """

    encoder_tensors: int
    head_tensors: int
    dtype: str
    largest_rounding: float
    files: dict[str, str]

    tower_tensors = renamed_attribute("tower_tensors", "encoder_tensors")


def verify(
    model_file: str | os.PathLike[str],
    release_dir: str | os.PathLike[str],
    *,
    progress: ProgressCallback | None = None,
) -> Verification:
    """Compare a converted file with its release: hashes, architecture, preprocessing and every tensor.

    Args:
        model_file: A file that `convert` made.
        release_dir: The release that it came from.
        progress: Called with (done, total): every tensor counts twice, once when it was checked and once when it was
            compared.

    Returns:
        What was compared.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such file or folder.
        CheckpointError: The model file itself cannot be used.
        ReleaseError: The release cannot be used, or the file differs from it; every difference is listed.
    """
    path = Path(model_file)
    metadata = read_metadata(path)
    source = metadata["source"] if isinstance(metadata.get("source"), dict) else {}
    hashes = source.get("files")
    if not isinstance(hashes, dict):
        raise ReleaseError(f"{path} does not say that it was converted from a release (name: {metadata.get('name')!r})")
    checked, compared = split_progress(progress)
    release = read_release(Path(release_dir), _encoder_dtype(path), progress=checked)
    found = release.hash_sources()
    problems = [
        f"{name}: the file was made from SHA-256 {hashes.get(name)}, here is {found.get(name)}"
        for name in sorted(found.keys() | hashes.keys())
        if found.get(name) != hashes.get(name)
    ]
    expected = {
        "encoder": release.architecture.encoder.to_dict(),
        "preprocess": release.architecture.preprocess.to_dict(),
        "score_range": list(release.score_range),
        "coverage": "center",
    }
    problems += [
        f"metadata {key}: expected {value!r}, got {metadata.get(key)!r}"
        for key, value in expected.items()
        if metadata.get(key) != value
    ]
    largest, dtypes = 0.0, set()
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        wanted = {entry.name for entry in release.entries}
        problems += [f"{name}: not in the file" for name in sorted(wanted - stored)]
        problems += [f"{name}: not in the release" for name in sorted(stored - wanted)]
        for done, entry in enumerate(release.entries, start=1):
            if compared is not None:
                compared(done, len(release.entries))
            if entry.name not in stored:
                continue
            ours, theirs = file.get_tensor(entry.name), entry.make()
            if entry.name.startswith("encoder."):
                dtypes.add(str(ours.dtype).removeprefix("torch."))
            elif ours.dtype != torch.float32:
                problems.append(f"{entry.name}: expected float32, got {ours.dtype}")
            if ours.shape != theirs.shape or not torch.equal(ours, theirs.to(ours.dtype)):
                problems.append(f"{entry.name}: differs from the release")
            elif ours.numel() and entry.name.startswith("encoder."):
                largest = max(largest, float((ours.double() - theirs.double()).abs().max()))
    if problems:
        raise ReleaseError(describe(f"{path} differs from the release in {release.folder}", problems))
    encoder = sum(entry.name.startswith("encoder.") for entry in release.entries)
    return Verification(encoder, len(release.entries) - encoder, " and ".join(sorted(dtypes)), largest, found)


def _encoder_dtype(path: Path) -> Precision:
    """The dtype of the file's first encoder tensor; all others are compared with what they are stored in."""
    names: dict[str, Precision] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    with safe_open(path, framework="pt") as file:
        code = next((file.get_slice(name).get_dtype() for name in file.keys() if name.startswith("encoder.")), None)  # noqa: SIM118
    if code not in names:
        raise ReleaseError(f"{path}: expected an encoder in float16, bfloat16 or float32, got {code or 'none'}")
    return names[code]


def locate_release(model_file: Path) -> Path:
    """Where the release of a converted file lies: beside it, or in the hub client's cache.

    Raises:
        FileNotFoundError: In neither.
        CheckpointError: The model file cannot be used.
    """
    source = read_metadata(model_file).get("source")
    folder = model_file.absolute().parent
    for candidate in (folder, folder / FOLDER):
        if (candidate / CHECKPOINT).is_file():
            return candidate
    revision = source.get("revision") if isinstance(source, dict) else None
    if isinstance(revision, str):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(REPOSITORY, f"{FOLDER}/{CHECKPOINT}", revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    raise FileNotFoundError(
        f"the release that {model_file} was made from is neither beside it nor in the cache: name its folder, "
        f"`rali convert --check {model_file} RELEASE_DIR`"
    )
