"""The inputs of `RaliScorer.score`, one image or many of mixed kinds, and bounded reading ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from threading import Condition
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .files import find_images
from .images import (
    ImageError,
    ImageInput,
    ReadLimits,
    decode_pil,
    is_stream,
    load_image,
    open_image,
    read_pixels,
    read_stream,
    to_float,
)

Images = ImageInput | Iterable[ImageInput]

MAX_DECODERS = 8
"""Upper limit of decoding threads; more are not faster than a GPU scores."""

Made = TypeVar("Made")


class PixelBudget:
    """Lets threads decode images only while all of them together hold at most so many pixels.

    Args:
        limit: Pixels; an image with more waits until it is alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._condition = Condition()

    def __reduce__(self) -> tuple[type[PixelBudget], tuple[int]]:
        return PixelBudget, (self.limit,)  # a copy in another process has its own threads

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels are free, and reserve them until the block ends."""
        with self._condition:
            self._condition.wait_for(lambda: not self._held or self._held + pixels <= self.limit)
            self._held += pixels
        try:
            yield
        finally:
            with self._condition:
                self._held -= pixels
                self._condition.notify_all()


def read_image(image: ImageInput, finish: Callable[[Tensor], Made], *, limits: ReadLimits, budget: PixelBudget) -> Made:
    """Read one image and pass its pixels to `finish`, within a budget of pixels if they are decoded from a file.

    Args:
        image: Any kind of image.
        finish: Gets (3, H, W) pixels, uint8 or float32 in [0, 1], and returns what to keep of them.
        limits: Limits for a file.
        budget: Shared by the threads that read.

    Raises:
        TypeError, FileNotFoundError, ImageError: As for `images.to_pixels`.
    """
    if isinstance(image, Image.Image | np.ndarray | Tensor) or not is_file(image):
        return finish(read_pixels(image, limits=limits))
    with ExitStack() as held:
        with open_image(cast(Any, image), limits=limits) as opened:
            held.enter_context(budget.hold(opened.width * opened.height))
            pixels = decode_pil(opened)
        return finish(pixels)


def is_file(image: object) -> bool:
    """Whether an image is a file: its path, its bytes, or itself, open."""
    return isinstance(image, str | os.PathLike | bytes | bytearray | memoryview) or is_stream(image)


def digest_image(image: ImageInput) -> bytes:
    """A digest of an image's content, for the score cache: of a file's bytes, or of pixels.

    Raises:
        TypeError, FileNotFoundError, ImageError: As for `images.to_pixels`.
    """
    from .score_cache import bytes_key, content_key, file_key

    if isinstance(image, str | os.PathLike):
        if not os.path.isfile(image):  # the loader reports what is wrong
            load_image(image)
        return file_key(image)
    if is_file(image):
        return bytes_key(image if isinstance(image, bytes | bytearray | memoryview) else read_stream(cast(Any, image)))
    return content_key(image if isinstance(image, Tensor) else to_float(read_pixels(image)))


def iterate(images: Images) -> Iterator[ImageInput]:
    """The images of one image, a folder (its image files by name, without folders inside), or an iterable.

    Raises:
        TypeError: Neither an image nor an iterable.
        FileNotFoundError: A folder without images.
        ImageError: An array or tensor with more than four dimensions.
    """
    if isinstance(images, str | os.PathLike) and os.path.isdir(images):
        return iter(_images_in(images))
    if is_single(images):
        return iter([cast(ImageInput, images)])
    if not isinstance(images, Iterable):
        raise TypeError(
            "expected an image (path, bytes or open image file, PIL image, numpy array or torch tensor), a folder, or "
            f"an iterable of images, got {type(images).__name__}"
        )
    if isinstance(images, np.ndarray | Tensor) and images.ndim > 4:
        raise ImageError(f"expected at most 4 dimensions (a batch of images), got shape {tuple(images.shape)}")
    return iter(cast(Iterable[ImageInput], images))


def count(images: Images) -> int | None:
    """How many images `iterate` gives, if that is known without reading them."""
    if isinstance(images, str | os.PathLike) and os.path.isdir(images):
        return len(_images_in(images))
    if is_single(images):
        return 1
    return len(images) if isinstance(images, Sized) else None


def is_single(images: object) -> bool:
    """Whether the argument is one image, rather than several."""
    if is_file(images) or isinstance(images, Image.Image):
        return True
    return isinstance(images, np.ndarray | Tensor) and images.ndim < 4


def may_read_ahead(images: object) -> bool:
    """Lists of files can be read ahead; a generator may be waiting for its last image to be scored."""
    if isinstance(images, str | os.PathLike):
        return os.path.isdir(images)
    return (
        isinstance(images, list | tuple)
        and len(images) > 1
        and all(isinstance(image, str | os.PathLike) for image in images)
    )


def make_in_turn(
    make: Callable[[int, ImageInput], Made], images: Iterator[ImageInput], batch_size: int
) -> Iterator[list[Made]]:
    """`make(index, image)` of all images, a batch at a time, lazily."""
    numbered = enumerate(images)
    while chunk := list(islice(numbered, batch_size)):
        made = [make(index, image) for index, image in chunk]
        chunk.clear()  # frees the pixels before the encoder needs its memory
        yield made


def make_ahead(
    make: Callable[[int, ImageInput], Made], images: Iterator[ImageInput], batch_size: int, device: torch.device
) -> Iterator[list[Made]]:
    """As `make_in_turn`, but the next batch is made in threads while the caller works on this one."""
    numbered = enumerate(images)
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(_decoder_count(device), thread_name_prefix="rali-decode")

    def fill() -> None:
        for index, image in islice(numbered, 2 * batch_size - len(waiting)):
            waiting.append(pool.submit(make, index, image))

    try:
        fill()
        while waiting:
            made = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
            fill()
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


def _images_in(folder: str | os.PathLike[str]) -> list[Path]:
    try:
        return find_images([folder])
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no images in the folder {os.fspath(folder)} (folders inside it are not searched: name them, "
            "or pass a list of files)"
        ) from None


def _decoder_count(device: torch.device) -> int:
    """Number of threads that decode beside the encoder, which on a CPU needs the processors itself."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_DECODERS, max(1, processors // 2 if device.type == "cpu" else processors))
