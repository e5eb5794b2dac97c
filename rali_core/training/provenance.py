"""Where a model came from: hashes of its data, and the commit of the code."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

from ..files import hash_file

REPOSITORY = Path(__file__).resolve().parents[2]


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of all files in their order, in hexadecimal; names and places do not matter."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(hash_file(file)))
    return digest.hexdigest()


def git_commit(repository: Path = REPOSITORY) -> str | None:
    """Commit of the checkout that this code runs from, with `-dirty` where tracked files were changed.

    Returns:
        None where it is no checkout, such as an installed wheel, or git is not there.
    """
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
