"""Reads the score that RALI Save Image or `rali score --tag` wrote into an image file, or beside it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from .images import DEFAULT_LIMITS, ReadLimits, open_image
from .xmp import read_tag, sidecar_of

KEY = "rali_score"
LIST_NAME = "rali_scores.jsonl"
FIRST_EXIF_TAG = 0x0110
"""ComfyUI's texts ("key:value") are in this EXIF tag and in those below it."""

EXIF_TAGS = 0x0110 - 0x0100
"""Number of these tags that are read."""


@dataclass(frozen=True)
class SavedScore:
    """A score that was read.

    Attributes:
        score: 0..1; rounded to four decimals in a file's own metadata.
        source: Where it was found: "metadata" of the file itself, or "sidecar", the list or the XMP beside it.
        record: The list's line; empty for metadata and XMP.
    """

    score: float
    source: str
    record: dict[str, Any]


def read_saved_score(path: str | os.PathLike[str], *, limits: ReadLimits = DEFAULT_LIMITS) -> SavedScore | None:
    """The score that was saved with an image; None if there is none.

    The file's own metadata (a PNG's text, EXIF of WebP and JPEG, then its XMP) come first, then the last line about it
    in `rali_scores.jsonl` beside it, then its XMP sidecar.

    Args:
        path: An image file.
        limits: Limits for the file.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It is not an image, or damaged.
        OSError: The list beside it cannot be read.
    """
    path = Path(path)
    with open_image(path, limits=limits) as image:
        texts = [f"{KEY}:{image.info[KEY]}"] if KEY in image.info else []
        try:
            exif = image.getexif()
            texts += [str(exif.get(FIRST_EXIF_TAG - place, "")) for place in range(EXIF_TAGS)]
        except Exception:  # any exception of Pillow for malformed metadata
            pass
    for text in texts:
        key, _, value = text.partition(":")
        if key == KEY and (score := _as_score(value)) is not None:
            return SavedScore(score, "metadata", {})
    if (score := _from_tag(path)) is not None:
        return SavedScore(score, "metadata", {})
    if (saved := _from_list(path)) is not None:
        return saved
    score = _from_tag(sidecar_of(path))
    return None if score is None else SavedScore(score, "sidecar", {})


def _from_tag(path: Path) -> float | None:
    try:
        return _as_score(read_tag(path.read_bytes()).get("Score"))
    except FileNotFoundError:
        return None


def _from_list(path: Path) -> SavedScore | None:
    try:
        lines = (path.parent / LIST_NAME).open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    found = None
    with lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # a writer died in the middle of it
                continue
            if isinstance(record, dict) and record.get("file") == path.name:
                score = _as_score(record.get(KEY))
                found = found if score is None else SavedScore(score, "sidecar", record)
    return found


def _as_score(value: Any) -> float | None:
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return score if isfinite(score) else None
