"""The release's tensors: `ckpt.pt`, `basis.npz` and the weights in `best/`, mapped from disk.

PyTorch files are opened with `weights_only=True`, and only after their zip directory was found harmless: no entry is
compressed (which would let a small file fill the memory), none points outside, and none is TorchScript.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from .errors import ReleaseError

MAX_BASIS_BYTES = 128 * 2**20
"""Upper limit of the uncompressed basis.npz; the official one (250 vectors of 512 values) needs about 1 MB."""


def check_zip(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of an uncompressed zip file whose names stay inside it.

    Raises:
        ReleaseError: Not a zip file, or one with compressed, escaping, repeated or oversized entries.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            file.seek(0)
            magic, entries = file.read(4), archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise ReleaseError(f"not a zip file, or a damaged or incompletely downloaded one ({error})") from error
    if magic != b"PK\x03\x04":
        raise ReleaseError("not a zip file from its first byte on")
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if entry.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise ReleaseError(f"refused: the zip entry {entry.filename!r} points outside of the file")
    if len({entry.filename for entry in entries}) != len(entries):
        raise ReleaseError("refused: two zip entries have the same name")
    return entries


def load_torch_file(path: Path) -> dict[str, Any]:
    """Open a file of `torch.save`; its tensors stay on disk until they are used.

    Raises:
        ReleaseError: Not a zip of `torch.save`, damaged, or it holds more than tensors and plain containers; the
            message names what was refused.
    """
    try:
        entries = check_zip(path)
    except ReleaseError as error:
        raise ReleaseError(f"{error}; expected a file of torch.save, version 1.6 or later") from error
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise ReleaseError("refused: compressed entries, which torch.save never writes")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ReleaseError("refused: the entries claim more bytes than the file has")
    if any(entry.filename.split("/")[-1] == "constants.pkl" for entry in entries):
        raise ReleaseError("refused: a TorchScript program, expected tensors")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged file makes torch raise any kind of exception
        raise ReleaseError(f"refused or damaged: {type(error).__name__}: {_reason(error)}") from error
    if not isinstance(loaded, dict):
        raise ReleaseError(f"expected a dictionary, got {type(loaded).__name__}")
    return loaded


def _reason(error: Exception) -> str:
    """What torch found, without its advice to open the file unsafely."""
    text = str(error)
    for start in ("WeightsUnpickler error:", "Unsupported", "Trying to"):
        text = text[max(text.find(start), 0) :]
    return text.split("Please use")[0].split("\n\n")[0].strip()[:400]


def load_safetensors(path: Path) -> Mapping[str, Tensor]:
    """Open a `.safetensors` file; each tensor is read when it is asked for.

    Raises:
        ReleaseError: Not such a file, or a damaged one.
    """
    try:
        return _LazyTensors(safe_open(path, framework="pt"))
    except Exception as error:
        raise ReleaseError(f"not a readable .safetensors file ({error})") from error


class _LazyTensors(Mapping[str, Tensor]):
    def __init__(self, file: Any) -> None:
        self._file, self._names = file, list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_basis(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read `vectors` (K, P) and `scores` (K,) from `basis.npz`.

    Raises:
        ReleaseError: Not such a file, damaged, too large, other names in it, or anything but numbers.
    """
    entries = check_zip(path)
    names = sorted(entry.filename for entry in entries)
    if names != ["scores.npy", "vectors.npy"]:
        raise ReleaseError(f"expected the arrays scores and vectors, got {', '.join(names)[:300] or 'nothing'}")
    if sum(entry.file_size for entry in entries) > MAX_BASIS_BYTES:
        raise ReleaseError(f"unpacks to more than {MAX_BASIS_BYTES // 2**20} MiB, which no set of prototypes needs")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in entries:
                # zipfile stops at the size that the directory states, so the sum above is a real limit.
                with archive.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _read_npy(file, entry.file_size)
    except Exception as error:
        raise ReleaseError(f"damaged or refused ({type(error).__name__}: {str(error)[:300]})") from error
    return arrays


def _read_npy(file: Any, size: int) -> NDArray[np.generic]:
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read_header[version](file)
    if dtype.kind not in "fiu":
        raise ValueError(f"expected an array of numbers, got dtype {dtype}")
    # numpy reserves what the header claims before it reads: a lie would fill the memory.
    count = int(np.prod([int(length) for length in shape], dtype=object)) if shape else 1
    if count < 0 or count * dtype.itemsize > size:
        raise ValueError(f"an array claims shape {shape}, more than the file holds")
    data = file.read(count * dtype.itemsize)
    array: NDArray[np.generic] = np.frombuffer(data, dtype, count=count)
    return array.reshape(shape, order="F" if fortran else "C")
