"""One image of a source to encoder input; runs in separate processes, see `pool`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..constants import Coverage
from ..content import has_content
from ..content_hints import import_plugins
from ..files import is_video_name
from ..frames import FrameReader, FrameSampling, is_animation
from ..images import DEFAULT_LIMITS, ReadLimits, read_pixels, to_float
from ..preprocess import PreprocessConfig, preprocess
from . import storage
from .items import ClipSettings, Item, Payload, to_unicode

DEFAULT_MAX_PIXELS = DEFAULT_LIMITS.max_pixels


FRAMES_AT_ONCE = 4
"""Frames of a video that are in memory at a time, as crops."""


@dataclass(frozen=True)
class DecodeSettings:
    """How images become encoder input.

    Attributes:
        config: Size and normalisation of the encoder.
        coverage: Which crops; see `preprocess.preprocess`.
        payload: Where the bytes are.
        max_pixels: Larger images are refused by their header, before they are decoded.
        plugins: Modules to import that teach Pillow further formats.
        clips: How videos and animations are scored.
    """

    config: PreprocessConfig
    coverage: Coverage
    payload: Payload
    max_pixels: int = DEFAULT_MAX_PIXELS
    plugins: tuple[str, ...] = ()
    clips: ClipSettings = field(default_factory=ClipSettings)


class DecodeTask(NamedTuple):
    """An image to decode: where it is, and its bytes or path if these were read together with others.

    Attributes:
        item: The image.
        content: Its bytes, or the path that the source holds instead.
        done: For a video: the number of sampling times that are done.
    """

    item: Item
    content: bytes | str | None = None
    done: int = 0


class ClipPart(NamedTuple):
    """Some of a video's frames.

    Attributes:
        times: For each frame, the sampling times that it is shown at.
        tiles: For each frame, the number of `Decoded.crops` that belong to it; 0 for one without content.
        duration: Duration of the video in seconds, as far as it is known.
        problem: What is wrong with the video, if anything is known.
    """

    times: tuple[tuple[float, ...], ...]
    tiles: tuple[int, ...]
    duration: float
    problem: str | None


class Decoded(NamedTuple):
    """An image as encoder input, or why there is none.

    Attributes:
        crops: (T, 3, S, S) float32; None with an error, and for an image without content.
        width: Pixels after EXIF orientation.
        height: Likewise.
        error: None where the image could be decoded.
        clip: Which frames the crops show, for a video or an animation that is scored frame by frame; else None.
        more: More frames of it follow.
    """

    crops: Tensor | None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    clip: ClipPart | None = None
    more: bool = False


def prepare_process(settings: DecodeSettings) -> None:
    """Set up a decoding process: Pillow's plugins, one thread."""
    torch.set_num_threads(1)  # there are several such processes
    import_plugins(settings.plugins)


def decode(task: DecodeTask, settings: DecodeSettings) -> Iterator[Decoded]:
    """Read, decode and preprocess one image; an error becomes part of the result.

    Yields:
        One result; for a video or an animation several, with `FRAMES_AT_ONCE` frames each.
    """
    if task.item.problem is not None:
        yield Decoded(None, error=task.item.problem)
        return
    try:
        limits = ReadLimits(max_pixels=settings.max_pixels)
        name = _name(task, settings.payload)
        if is_video_name(name, named=True) and not settings.clips.videos:
            raise ValueError("a video; videos are scored with --videos")
        source = _read_source(task, settings.payload)
        if settings.clips.any and _is_clip(source, name, settings.clips):
            yield from _decode_clip(source, task, settings, limits)
            return
        pixels = read_pixels(source, name=None if isinstance(source, str) else task.item.uri, limits=limits)
        crops = _crops(pixels, settings)
        yield Decoded(crops, pixels.shape[2], pixels.shape[1])
    except Exception as error:  # a single odd image must not end the run
        known = isinstance(error, OSError | ValueError)
        reason = to_unicode(str(error) if known else f"{type(error).__name__}: {error}")
        uri = task.item.uri
        yield Decoded(None, error=reason if uri in reason else f"{uri}: {reason}")


def _crops(pixels: Tensor, settings: DecodeSettings) -> Tensor | None:
    """(T, 3, S, S); None for an image without content."""
    if not has_content(pixels):
        return None
    with torch.inference_mode():
        return preprocess(pixels.unsqueeze(0), settings.config, coverage=settings.coverage)[0]


def _name(task: DecodeTask, payload: Payload) -> str:
    """The name whose ending distinguishes videos from images."""
    if isinstance(task.content, str):
        return task.content
    return task.item.path if payload == "file" else re.sub(r"#\d+$", "", task.item.uri)


def _is_clip(source: str | bytes, name: str, clips: ClipSettings) -> bool:
    if clips.videos and is_video_name(name, named=True):
        return True
    return clips.animations and is_animation(source)


def _decode_clip(
    source: str | bytes, task: DecodeTask, settings: DecodeSettings, limits: ReadLimits
) -> Iterator[Decoded]:
    """A video's frames from `task.done` on; each part is yielded once it is known whether more follow."""
    reader = FrameReader(source, name=_name(task, settings.payload), limits=limits)
    sampling = FrameSampling(settings.clips.fps, settings.clips.max_frames)
    frames = reader.frames(sampling, skip=task.done)
    with closing(frames):
        following = next(frames, None)
        size: tuple[int | None, int | None] = (None, None)
        while True:
            times: list[tuple[float, ...]] = []
            crops: list[Tensor] = []
            tiles: list[int] = []
            while following is not None and len(times) < FRAMES_AT_ONCE:
                size = following.pixels.shape[2], following.pixels.shape[1]
                made = _crops(to_float(following.pixels), settings)
                times.append(following.times)
                tiles.append(0 if made is None else len(made))
                crops += [] if made is None else [made]
                following = next(frames, None)
            more = following is not None
            part = ClipPart(tuple(times), tuple(tiles), reader.end or reader.duration, reader.problem)
            yield Decoded(torch.cat(crops) if crops else None, *size, clip=part, more=more)
            if not more:
                return


def _read_source(task: DecodeTask, payload: Payload) -> str | bytes:
    """A local file's path, or a file's bytes."""
    item = task.item
    if payload == "parquet" and not isinstance(task.content, str):
        if task.content is None:
            raise ValueError("the image column is empty here")
        return task.content
    path = task.content if isinstance(task.content, str) else item.path
    if payload != "parquet":
        check_unchanged(item)
    if payload == "file" and not storage.is_url(path):
        return path  # to seek in the file, where the format allows it
    if payload == "tar":
        data = storage.read_bytes(path, item.offset, item.length)
        if len(data) != item.length:
            raise OSError(
                f"expected {item.length} bytes in the tar, got {len(data)}: the tar is shorter than when listed"
            )
        return data
    data = storage.read_bytes(path)
    if payload == "file" and item.file_size not in (storage.UNKNOWN, len(data)):
        raise OSError(f"the file changed since it was listed, from {item.file_size} to {len(data)} bytes")
    return data


def check_unchanged(item: Item) -> None:
    """Compare a local file's size and time with the listing.

    Raises:
        FileNotFoundError: It does not exist any more.
        OSError: Its size or time has changed.
    """
    if storage.is_url(item.path):
        return
    try:
        status = os.stat(item.path)
    except FileNotFoundError:
        known = item.modified != storage.UNKNOWN
        raise FileNotFoundError(
            "the file was deleted after the images were listed" if known else f"no such file: {item.uri}"
        ) from None
    if item.modified != storage.UNKNOWN and (status.st_size, status.st_mtime_ns) != (item.file_size, item.modified):
        raise OSError(f"the file changed since it was listed ({item.file_size} bytes then, {status.st_size} now)")
