"""Square images, decoded once into a memory-mapped file; augmentation, and embeddings of all of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ..devices import device_of, training_autocast
from ..files import atomic_write
from ..images import to_rgb
from ..model import RaliModel
from ..preprocess import PreprocessConfig
from .distortions import recode

logger = logging.getLogger("rali")

PROGRESS_EVERY = 500
"""Images between two writes of a cache's progress."""
SMALLEST_CROP = 0.8
"""Random crops keep at least this share of the side; half of the steps see whole images."""
JPEG_QUALITY = 95
"""JPEG quality that should not change a score."""


class ImageCache(Sequence[NDArray[np.uint8]]):
    """Images in a `.npy` file, opened on use: another process gets the path, not the pixels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None}

    @property
    def array(self) -> NDArray[np.uint8]:
        """(N, ..., S, S, 3), read-only."""
        if self._array is None:
            self._array = np.load(self.path, mmap_mode="r")
        return self._array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return np.array(self.array[index])


class _Rendered(Dataset[NDArray[np.uint8]]):
    def __init__(self, render: Callable[[int], NDArray[np.uint8]], count: int) -> None:
        self.render, self.count = render, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.render(index)


class SquareReader:
    """Reads the middle square of image files by their number; can be sent to another process."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __call__(self, index: int) -> NDArray[np.uint8]:
        """(S, S, 3) uint8."""
        with Image.open(self.paths[index]) as file:
            image = to_rgb(file)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        if side != self.size:
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image)


def cache_images(
    render: Callable[[int], NDArray[np.uint8]],
    shape: tuple[int, ...],
    path: Path,
    *,
    key: object,
    workers: int,
) -> ImageCache:
    """Render all images once; a cache on disk is kept.

    Args:
        render: Function from a number to the pixels of that image.
        shape: (N, ..., S, S, 3).
        path: `.npy` file to write, with its progress beside it as `.json`.
        key: Everything that the pixels depend on, as plain JSON types; a file of another key is rewritten.
        workers: Processes that render; 0 renders in this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    array, done, finish = _open_partial(path, shape, np.uint8, key)
    rest = list(range(done, shape[0]))
    loader: DataLoader[NDArray[np.uint8]] = DataLoader(
        _Rendered(render, shape[0]), batch_size=None, sampler=rest, num_workers=workers, collate_fn=identity_collate
    )
    for index, item in zip(rest, loader, strict=True):
        array[index] = item
        if (index + 1) % PROGRESS_EVERY == 0 or index + 1 == shape[0]:
            finish(index + 1)
            logger.info("%s: %d of %d images decoded", path.stem, index + 1, shape[0])
    return ImageCache(path)


def identity_collate(item: Any) -> Any:
    """Collate function for a `DataLoader` that must not turn arrays into tensors."""
    return item


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
        progress.unlink(missing_ok=True)
    array = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=dtype, shape=shape)

    def finish(count: int) -> None:
        array.flush()
        with atomic_write(progress) as temporary:
            temporary.write_text(json.dumps({**wanted, "done": count}), encoding="utf-8")

    return array, done, finish


def augment(images: Sequence[NDArray[np.uint8]], random: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Mirror each at random; half of the time crop all to one random size, each at its own position."""
    full = images[0].shape[0]
    side = full if random.random() < 0.5 else int(random.integers(int(SMALLEST_CROP * full), full))
    result = []
    for image in images:
        top, left = random.integers(full - side + 1, size=2)
        cut = image[top : top + side, left : left + side]
        result.append(np.ascontiguousarray(cut[:, ::-1] if random.random() < 0.5 else cut))
    return result


def flip_and_recompress(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mirror image of an (H, W, 3) image, saved as JPEG at quality 95: it should have the same score."""
    mirrored = Image.fromarray(np.ascontiguousarray(image[:, ::-1]))
    return np.array(recode(mirrored, "JPEG", quality=JPEG_QUALITY))


def to_inputs(images: NDArray[np.uint8], config: PreprocessConfig, device: torch.device) -> Tensor:
    """(B, H, H, 3) uint8 square images to (B, 3, S, S) normalised encoder input."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
    size = (config.image_size, config.image_size)
    if pixels.shape[-2:] != size:
        pixels = functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (config.mean, config.std))
    return (pixels - mean) / std


def embed_images(
    model: RaliModel, images: Sequence[NDArray[np.uint8]], path: Path | None = None, *, key: object = None
) -> Tensor:
    """Embeddings of square images, without gradient and in training's arithmetic.

    Args:
        model: Its encoder is used, on its current device.
        images: N of (S, S, 3) uint8.
        path: `.npy` file to keep them in, with its progress beside it: existing ones are not computed again.
        key: Everything that they depend on, as plain JSON types.

    Returns:
        (N, D) float32 on the CPU.
    """
    shape, batch = (len(images), model.encoder_config.embed_dim), 16
    array: NDArray[np.float32] = np.empty(shape if path is None else 0, np.float32)
    done, finish = 0, _note_nothing
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        array, done, finish = _open_partial(path, shape, np.float32, key)
    device = device_of(model)
    for start in range(done, len(images), batch):
        stop = min(start + batch, len(images))
        inputs = to_inputs(np.stack([images[index] for index in range(start, stop)]), model.preprocess_config, device)
        with torch.no_grad(), training_autocast(device):
            array[start:stop] = model.embed(inputs).float().cpu().numpy()
        if stop == len(images) or stop // PROGRESS_EVERY != start // PROGRESS_EVERY:
            finish(stop)
            if path is not None:
                logger.info("%s: %d of %d images embedded", path.stem, stop, len(images))
    return torch.from_numpy(np.array(array))


_note_nothing: Callable[[int], None] = lambda _: None  # noqa: E731 - its type is that of _open_partial's function


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
