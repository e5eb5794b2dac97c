"""Images, read once, as tokens after the encoder's frozen blocks, in a memory-mapped file; embeddings of all of them.

A training repeats only the blocks that it trains, on a random share of these tokens. The share is what varies an image
from step to step (PatchDropout, Liu et al., WACV 2023), and since every token has seen the whole image in the frozen
blocks, a few are enough.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..devices import device_of, training_autocast
from ..files import atomic_write
from ..images import to_rgb
from ..model import RaliModel
from ..preprocess import PreprocessConfig
from ..vision_transformer import ClipEncoder, DinoEncoder, ViTConfig, split_checkerboard
from .distortions import LIGHT_JPEG_QUALITY, recode, resize_square

logger = logging.getLogger("rali")

Item = TypeVar("Item")

PROGRESS_EVERY = 500
"""Images between two writes of a cache's progress."""
HALF_MAX = 65504.0
"""Largest number of 16 bits."""


class TokenCache(Sequence[NDArray[np.float16]]):
    """Tokens in a `.npy` file, opened on use: another process gets the path, not the numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: NDArray[np.float16] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None}

    @property
    def array(self) -> NDArray[np.float16]:
        """(N, ..., T, W), read-only."""
        if self._array is None:
            self._array = np.load(self.path, mmap_mode="r")
        return self._array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return np.array(self.array[index])


class Computed(Dataset[Item], Generic[Item]):
    """A function's results for 0, 1, ... as a data set, for a `DataLoader` with worker processes."""

    def __init__(self, compute: Callable[[int], Item], count: int) -> None:
        self.compute, self.count = compute, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        return self.compute(index)


class SquareReader:
    """Reads the middle square of image files by their number; can be sent to another process."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __call__(self, index: int) -> NDArray[np.uint8]:
        """(S, S, 3) uint8."""
        return np.asarray(resize_square(self._square(index), self.size))

    def _square(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as file:
            image = to_rgb(file)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))


class CopyReader(SquareReader):
    """Reads pairs: the middle square, and its copy that should have the same score, see `flip_and_recompress`.

    Every second copy is compressed at its own size, the others at the encoder's.
    """

    def __call__(self, index: int) -> NDArray[np.uint8]:
        """(2, S, S, 3) uint8."""
        square = self._square(index)
        image = resize_square(square, self.size)
        copy = resize_square(flip_and_recompress(square), self.size) if index % 2 else flip_and_recompress(image)
        return np.stack([np.asarray(image), np.asarray(copy)])


def flip_and_recompress(image: Image.Image) -> Image.Image:
    """The mirror image of an RGB image, saved as JPEG at `LIGHT_JPEG_QUALITY`: it should have the same score."""
    return recode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=LIGHT_JPEG_QUALITY)


def cache_tokens(
    model: RaliModel,
    frozen_blocks: int,
    render: Callable[[int], NDArray[np.uint8]],
    shape: tuple[int, ...],
    path: Path,
    *,
    key: object,
    workers: int,
) -> TokenCache:
    """Compute the tokens of all images once; a cache on disk is kept, an unfinished one resumed.

    Args:
        model: Its encoder's first blocks are used, on its current device.
        frozen_blocks: How many.
        render: Function from a number to pixels, (S, S, 3) uint8 or several such images.
        shape: (N,), or (N, K) where `render` gives K images.
        path: `.npy` file to write, with its progress beside it as `.json`.
        key: Everything that the tokens depend on, as plain JSON types; a file of another key is rewritten.
        workers: Processes that render; 0 renders in this one.

    Raises:
        OSError: The disk is full.
        ValueError: The tokens do not fit into 16 bits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    device, encoder = device_of(model), cast(ClipEncoder | DinoEncoder, model.encoder)
    array, done, finish = _open_partial(path, (*shape, encoder.shape.seen_tokens, encoder.shape.width), np.float16, key)
    if done == shape[0]:
        return TokenCache(path)
    items_per_pass = max(1, images_per_pass(model, device) // math.prod(shape[1:]))
    loader: DataLoader[NDArray[np.uint8]] = DataLoader(
        Computed(render, shape[0]), batch_size=items_per_pass, sampler=range(done, shape[0]), num_workers=workers,
        collate_fn=np.stack,
    )  # fmt: skip
    for items in loader:
        images = items.reshape(-1, *items.shape[-3:])
        with torch.no_grad(), training_autocast(device):
            computed = encoder.forward_first(to_inputs(images, model.preprocess_config, device), frozen_blocks)
        start, done = done, done + len(items)
        if float(computed.abs().max()) > HALF_MAX:
            raise ValueError(f"{path.stem}: the frozen blocks' tokens do not fit into 16 bits: freeze fewer blocks")
        array[start:done] = computed.half().cpu().numpy().reshape(-1, *array.shape[1:])
        if done == shape[0] or done // PROGRESS_EVERY != start // PROGRESS_EVERY:
            finish(done)
            logger.info("%s: %d of %d images read", path.stem, done, shape[0])
    return TokenCache(path)


def images_per_pass(model: RaliModel, device: torch.device) -> int:
    """Images per pass; see `ViTConfig.max_batch`."""
    return cast(ClipEncoder | DinoEncoder, model.encoder).shape.max_batch(4) if device.type == "cpu" else 64


def _open_partial(
    path: Path, shape: tuple[int, ...], dtype: Any, key: object
) -> tuple[NDArray[Any], int, Callable[[int], None]]:
    """A writable `.npy` array, how many of its rows are done, and a function that records progress."""
    progress = path.with_suffix(".json")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    wanted = {"key": digest, "shape": list(shape)}
    done = 0
    if path.is_file() and progress.is_file():
        state = json.loads(progress.read_text(encoding="utf-8"))
        finished = state.pop("done", 0)
        done = int(finished) if state == wanted else 0
    if not done:
        for file in (progress, path):
            file.unlink(missing_ok=True)  # a link itself, not what it leads to
        needed = math.prod(shape) * np.dtype(dtype).itemsize
        free = shutil.disk_usage(path.parent).free
        if free < needed:  # a memory-mapped file that does not fit ends the process without a message
            raise OSError(f"{path} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left")
    array = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=dtype, shape=shape)

    def finish(count: int) -> None:
        array.flush()
        with atomic_write(progress) as temporary:
            temporary.write_text(json.dumps({**wanted, "done": count}), encoding="utf-8")

    return array, done, finish


def drop_patches(
    images: Sequence[NDArray[np.float16]], share: float, random: np.random.Generator, *, pairs: int = 0
) -> NDArray[np.float16]:
    """Leave out a random share of each image's patches.

    Args:
        images: B of (T, W) tokens, the class token first.
        share: In [0, 1).
        random: Source of the choice.
        pairs: The last so many pairs of images keep the same patches of both.

    Returns:
        (B, T', W), the class token still first.
    """
    patches = len(images[0]) - 1
    kept = max(1, round(patches * (1 - share)))
    if kept == patches:
        return np.stack(images)
    singles = len(images) - 2 * pairs
    chosen = [random.permutation(patches)[:kept] for _ in range(singles + pairs)]
    chosen[singles:] = [rows for rows in chosen[singles:] for _ in range(2)]
    return np.stack([image[np.concatenate([[0], 1 + rows])] for image, rows in zip(images, chosen, strict=True)])


def mirror_tokens(shape: ViTConfig) -> NDArray[np.int64]:
    """(T,) the order that puts the tokens of a mirrored image where those of the image itself lie."""
    side = math.isqrt(shape.tokens - 1)
    patches = torch.arange(side * side).view(1, side, side, 1)
    orders = [order.reshape(1, -1, 1) for order in (patches, patches.flip(2))]
    if shape.pattern == "checkerboard":
        orders = [split_checkerboard(order) for order in orders]
    place = {patch: number for number, patch in enumerate(orders[1].flatten().tolist(), 1)}
    return np.array([0, *(place[patch] for patch in orders[0].flatten().tolist())])


def to_inputs(images: NDArray[np.uint8], config: PreprocessConfig, device: torch.device) -> Tensor:
    """(B, S, S, 3) uint8 images of the encoder's size to (B, 3, S, S) normalised input."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (config.mean, config.std))
    return (pixels - mean) / std


def encode(
    model: RaliModel,
    images: NDArray[Any],
    frozen_blocks: int,
    device: torch.device,
    *,
    encoder: nn.Module | None = None,
) -> Tensor:
    """(B, T, W) float16 tokens, or (B, S, S, 3) uint8 images, to (B, D) embeddings in training's arithmetic.

    `encoder`, such as an EMA, takes the place of the model's.
    """
    used: Any = model.encoder if encoder is None else encoder
    with training_autocast(device):
        if images.dtype == np.uint8:
            embeddings: Tensor = used(to_inputs(images, model.preprocess_config, device))
        else:
            embeddings = used.forward_rest(torch.from_numpy(images).to(device).float(), frozen_blocks)
    return embeddings.float()


def embed_images(
    model: RaliModel,
    images: Sequence[NDArray[Any]],
    frozen_blocks: int = 0,
    path: Path | None = None,
    *,
    key: object = None,
    encoder: nn.Module | None = None,
) -> Tensor:
    """Embeddings of images, without gradient and in training's arithmetic.

    Args:
        model: Its encoder is used, on its current device.
        images: N of (T, W) float16 tokens or of (S, S, 3) uint8.
        frozen_blocks: Number of blocks after which tokens were taken.
        path: `.npy` file to keep them in, with its progress beside it: existing ones are not computed again.
        key: Everything that they depend on, as plain JSON types.
        encoder: As for `encode`.

    Returns:
        (N, D) float32 on the CPU.
    """
    shape, device = (len(images), model.encoder_config.embed_dim), device_of(model)
    batch = images_per_pass(model, device)
    array: NDArray[np.float32] = np.empty(shape if path is None else 0, np.float32)
    done, finish = 0, _note_nothing
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        array, done, finish = _open_partial(path, shape, np.float32, key)
    for start in range(done, len(images), batch):
        stop = min(start + batch, len(images))
        with torch.no_grad():
            part = np.stack([images[index] for index in range(start, stop)])
            array[start:stop] = encode(model, part, frozen_blocks, device, encoder=encoder).cpu().numpy()
        if stop == len(images) or stop // PROGRESS_EVERY != start // PROGRESS_EVERY:
            finish(stop)
            if path is not None:
                logger.info("%s: %d of %d images embedded", path.stem, stop, len(images))
    return torch.from_numpy(np.array(array))


_note_nothing: Callable[[int], None] = lambda _: None  # noqa: E731 - its type is that of _open_partial's function


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and values of a state dict; the two zeros are one value."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + (tensor.detach().cpu().contiguous() + 0).numpy().tobytes())
    return digest.hexdigest()
