"""Image files with ComfyUI's metadata (prompt, workflow) and the score."""

from __future__ import annotations

import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

log = logging.getLogger("rali")

FORMATS = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
SCORE_KEYS = ("rali_score", "aesthetic_score")
EXIF_MODEL = 0x0110
"""ComfyUI reads "prompt:..." from this EXIF tag and further "key:..." texts from the tags below it."""
JPEG_EXIF_LIMIT = 65533


def encode(image: Image.Image, file_format: str, *, quality: int, score: float, prompt: Any, extra: Any) -> bytes:
    """One image file.

    Args:
        image: RGB or RGBA.
        file_format: A key of `FORMATS`.
        quality: 1..100, for webp and jpeg; webp at 100 is lossless.
        score: Written under `SCORE_KEYS`, with four decimals.
        prompt: ComfyUI's prompt, or None.
        extra: ComfyUI's extra metadata (the workflow), or None.
    """
    texts: dict[str, str] = {}
    if _metadata_wanted():
        if prompt is not None:
            texts["prompt"] = json.dumps(prompt)
        texts |= {key: json.dumps(value) for key, value in (extra or {}).items()}
    scores = dict.fromkeys(SCORE_KEYS, f"{score:.4f}")
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
