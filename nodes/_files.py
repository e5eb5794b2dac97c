"""Image files with ComfyUI's metadata (prompt, workflow) and the score."""

from __future__ import annotations

import json
import logging
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

log = logging.getLogger("rali")

FORMATS = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
SCORE_KEYS = ("rali_score", "aesthetic_score")
"""0..1, and 0..10 as image browsers expect it; see `both_scales`."""
EXIF_MODEL = 0x0110
"""ComfyUI reads "prompt:..." from this EXIF tag and further "key:..." texts from the tags below it."""
JPEG_EXIF_LIMIT = 65533
LONGEST_SIDE = {"webp": 16383, "jpeg": 65500}
"""Longest side that the formats' encoders take; PNG has no limit."""


def both_scales(score: float | None) -> dict[str, float | None]:
    """A RALI score under `SCORE_KEYS`."""
    return dict(zip(SCORE_KEYS, (None, None) if score is None else (score, 10.0 * score), strict=True))


def encode(
    image: Image.Image,
    file_format: str,
    *,
    quality: int,
    scores: dict[str, float | None],
    prompt: Any,
    extra: Any,
) -> tuple[bytes, str]:
    """One image file.

    Args:
        image: RGB or RGBA.
        file_format: A key of `FORMATS`.
        quality: 1..100, for webp and jpeg; webp at 100 is lossless.
        scores: Key to number, written with four decimals; None writes nothing.
        prompt: ComfyUI's prompt, or None.
        extra: ComfyUI's extra metadata (the workflow), or None.

    Returns:
        The bytes, and the ending of the file's name. An image that its format cannot hold becomes a PNG.
    """
    texts: dict[str, str] = {}
    if _metadata_wanted():
        if prompt is not None:
            texts["prompt"] = dump_json(prompt)
        texts |= {key: dump_json(value) for key, value in (extra or {}).items()}
    numbers = {key: f"{value:.4f}" for key, value in scores.items() if value is not None}
    if max(image.size) > LONGEST_SIDE.get(file_format, max(image.size)):
        limit = f"{file_format} holds at most {LONGEST_SIDE[file_format]:,} pixels a side"
        log.warning("RALI Save Image: %s, this image has %d x %d: saved as png", limit, *image.size)
        file_format = "png"
    try:
        return _encode(image, file_format, quality, texts, numbers), FORMATS[file_format]
    except (OSError, ValueError) as error:
        if file_format == "png":
            raise
        log.warning("RALI Save Image: %s failed (%s): saved as png", file_format, error)
        return _encode(image, "png", quality, texts, numbers), FORMATS["png"]


def dump_json(value: Any) -> str:
    """Valid JSON: numbers that are not finite become null, which Python would write as NaN."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _encode(image: Image.Image, file_format: str, quality: int, texts: dict[str, str], scores: dict[str, str]) -> bytes:
    buffer = BytesIO()
    if file_format == "png":
        info = PngInfo()
        for key, text in {**texts, **scores}.items():
            info.add_text(key, text)
        image.save(buffer, "PNG", pnginfo=info, compress_level=4)
        return buffer.getvalue()
    exif = _exif(image, texts, scores)
    if file_format == "webp":
        image.save(buffer, "WEBP", quality=quality, lossless=quality == 100, exif=exif)
    else:
        if len(exif) > JPEG_EXIF_LIMIT:
            log.warning("RALI Save Image: the workflow is too large for a JPEG and was left out; png and webp hold it")
            exif = _exif(image, {}, scores)
        image.save(buffer, "JPEG", quality=quality, exif=exif)
    return buffer.getvalue()


def write_new(folder: Path, name: str, counter: int, ending: str, data: bytes) -> Path:
    """Write a file under the first free number; an existing file is never overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        path = folder / f"{name}_{counter:05}_{ending}"
        try:
            with path.open("xb") as file:
                file.write(data)
            return path
        except FileExistsError:
            counter += 1


def _exif(image: Image.Image, texts: dict[str, str], scores: dict[str, str]) -> bytes:
    exif = image.getexif()
    # ComfyUI's page reads the prompt from the first of these tags and the workflow from the next one.
    keys = ["prompt", *(key for key in texts if key != "prompt"), *scores]
    for place, key in enumerate(keys):
        if key in texts or key in scores:
            exif[EXIF_MODEL - place] = f"{key}:{texts.get(key, scores.get(key))}"
    return exif.tobytes()


def _metadata_wanted() -> bool:
    from comfy.cli_args import args

    return not args.disable_metadata
