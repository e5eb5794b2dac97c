"""Hashes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_file(path: str | Path, kind: str = "sha256", prefix: bytes = b"") -> str:
    """Hexadecimal digest of `prefix` and a file's bytes, read in pieces."""
    digest = hashlib.new(kind, prefix, usedforsecurity=False)
    with Path(path).open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
