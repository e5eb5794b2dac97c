"""Writes a `.safetensors` file one tensor at a time, so that a large model never lies in memory as a whole."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..files import atomic_write

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""

CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Entry:
    """One tensor of the model file to be.

    Attributes:
        name: Its name there.
        shape: Its shape.
        dtype: Its dtype there: the encoder's as chosen, the head's always float32.
        make: Reads it from the release, in the dtype that it has there.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    def read(self) -> Tensor:
        """The tensor as it stands in the model file."""
        return self.make().to(self.dtype)


def write_entries(
    path: Path,
    entries: Sequence[Entry],
    metadata: dict[str, str],
    progress: ProgressCallback | None = None,
) -> None:
    """Write a model file, under a temporary name first: there is never half a file under `path`.

    Args:
        path: Where to write.
        entries: The tensors, read one after the other.
        metadata: Texts for the file's header.
        progress: Called after each tensor with (done, total).

    Raises:
        OSError: The file cannot be written, or the disk has no room for it.
    """
    if sys.byteorder != "little":
        raise OSError("safetensors files are little-endian, this machine is not: convert the release on another one")
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))  # keeps every tensor aligned
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for entry in ordered:
        start, end = end, end + entry.dtype.itemsize * torch.Size(entry.shape).numel()
        header[entry.name] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < 8 + len(text) + end:
        raise OSError(f"no space left for {path}: it needs {end / 1e6:.1f} MB, {free / 1e6:.1f} MB are free")
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, entry in enumerate(ordered, start=1):
            tensor = entry.read().contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            if progress is not None:
                progress(done, len(ordered))


def split_progress(progress: ProgressCallback | None) -> tuple[ProgressCallback | None, ProgressCallback | None]:
    """Split a callback between two passes over the same items, reported as one of twice the length."""
    if progress is None:
        return None, None
    return lambda done, total: progress(done, 2 * total), lambda done, total: progress(total + done, 2 * total)
