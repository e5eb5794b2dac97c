"""One image of a source to encoder input; this runs in processes of its own, see `pool`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from ..content import has_content
from ..images import DEFAULT_LIMITS, ReadLimits, read_pixels
from ..preprocess import Coverage, PreprocessConfig, preprocess
from . import storage
from .items import Item, Payload, readable

DEFAULT_MAX_PIXELS = DEFAULT_LIMITS.max_pixels


@dataclass(frozen=True)
class DecodeSettings:
    """How images become encoder input.

    Attributes:
        config: Size and normalisation of the encoder.
        coverage: Centre crop or tiles.
        payload: Where the bytes are.
        max_pixels: Larger images are refused by their header, before they are decoded.
        plugins: Modules to import that teach Pillow further formats.
    """

    config: PreprocessConfig
    coverage: Coverage
    payload: Payload
    max_pixels: int = DEFAULT_MAX_PIXELS
    plugins: tuple[str, ...] = ()


class Task(NamedTuple):
    """An image to decode: where it is, and its bytes or path where those were read with others."""

    item: Item
    content: bytes | str | None = None


class Decoded(NamedTuple):
    """An image as encoder input, or why there is none.

    Attributes:
        crops: (T, 3, S, S) float32; None with an error, and for an image without content.
        width: Pixels after EXIF orientation.
        height: Likewise.
        error: None where the image could be decoded.
    """

    crops: Tensor | None
    width: int | None = None
    height: int | None = None
    error: str | None = None


def prepare_process(settings: DecodeSettings) -> None:
    """Set up a process whose only work is to decode: Pillow's plugins, one thread."""
    torch.set_num_threads(1)  # there are several such processes
    for plugin in settings.plugins:
        import_module(plugin)


def decode(task: Task, settings: DecodeSettings) -> Decoded:
    """Read, decode and preprocess one image; whatever is wrong with it is in the result."""
    if task.item.problem is not None:
        return Decoded(None, error=task.item.problem)
    try:
        pixels = _read_pixels(task, settings.payload, ReadLimits(max_pixels=settings.max_pixels))
        if not has_content(pixels):
            return Decoded(None, pixels.shape[2], pixels.shape[1])
        with torch.inference_mode():
            crops = preprocess(pixels.unsqueeze(0), settings.config, coverage=settings.coverage)[0]
        return Decoded(crops, pixels.shape[2], pixels.shape[1])
    except Exception as error:  # any one image may be odd in a way of its own, and must not end the others
        known = isinstance(error, OSError | ValueError)
        reason = readable(str(error) if known else f"{type(error).__name__}: {error}")
        uri = task.item.uri
        return Decoded(None, error=reason if uri in reason else f"{uri}: {reason}")


def _read_pixels(task: Task, payload: Payload, limits: ReadLimits) -> Tensor:
    item = task.item
    if payload == "parquet" and not isinstance(task.content, str):
        if task.content is None:
            raise ValueError("the image column is empty here")
        return read_pixels(task.content, name=item.uri, limits=limits)
    path = task.content if isinstance(task.content, str) else item.path
    if payload != "parquet":
        check_unchanged(item)
    if payload == "file" and not storage.is_url(path):
        return read_pixels(path, limits=limits)  # seeks in the file, where the format allows it
    if payload == "tar":
        data = storage.read_bytes(path, item.offset, item.length)
        if len(data) != item.length:
            raise OSError(f"expected {item.length} bytes in the tar, got {len(data)}: it is shorter than when listed")
        return read_pixels(data, name=item.uri, limits=limits)
    data = storage.read_bytes(path)
    if payload == "file" and item.file_size not in (storage.UNKNOWN, len(data)):
        raise OSError(f"the file changed since it was listed, from {item.file_size} to {len(data)} bytes")
    return read_pixels(data, name=item.uri, limits=limits)


def check_unchanged(item: Item) -> None:
    """Compare a local file with what the listing says.

    Raises:
        FileNotFoundError: It is gone.
        OSError: Its size or time is another.
    """
    if storage.is_url(item.path):
        return
    try:
        status = os.stat(item.path)
    except FileNotFoundError:
        known = item.modified != storage.UNKNOWN
        raise FileNotFoundError(
            "the file is gone; it was there when the images were listed" if known else f"no such file: {item.uri}"
        ) from None
    if item.modified != storage.UNKNOWN and (status.st_size, status.st_mtime_ns) != (item.file_size, item.modified):
        raise OSError(f"the file changed since it was listed ({item.file_size} bytes then, {status.st_size} now)")
