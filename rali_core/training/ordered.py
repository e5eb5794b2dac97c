"""Ordered groups: one picture, a weaker and a stronger distortion of it, for learning an order without human scores.

Source of the idea: ranking synthetically distorted pictures, Liu et al., "RankIQA", ICCV 2017. Types and levels are
those of `distortions.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..images import to_rgb
from .data import LabelledImage
from .distortions import DISTORTIONS, Distortion, distort
from .drawings import draw_picture
from .evaluate import Report

PICTURE_SIZE = 448
"""Side in pixels at which pictures are kept for training, unless the tower takes larger ones."""
DISTORTED_SIZE_LARGE = 640
"""Some pictures are distorted at this side and then reduced, as large pictures are before they are scored."""
DRAWN_SHARE, PRISTINE_SHARE = 0.10, 0.55
"""Shares of drawn and of pristine pictures in the groups; the rest are good pictures of the labelled set."""
GOOD_SCORE = 0.62
"""Labelled pictures above this are good enough to be distorted."""
GENTLE: frozenset[Distortion] = frozenset({"saturation_low", "colour_diffusion", "contrast_high", "warp"})
"""Types whose weak levels hardly hurt, or may please: they are ordered with half the margin."""


@dataclass(frozen=True)
class OrderedGroup:
    """A picture and two levels of one distortion.

    Attributes:
        source: Image file, or `drawing:SEED`.
        pristine: Whether the undistorted picture is known to be good.
        distortion: Type of the distortion.
        weak: Weaker level, 1..4.
        strong: Stronger level, up to 5.
        seed: Seed of crop and distortion.
    """

    source: str
    pristine: bool
    distortion: Distortion
    weak: int
    strong: int
    seed: int


def plan_groups(pristine: list[Path], labelled: list[LabelledImage], *, count: int, seed: int) -> list[OrderedGroup]:
    """Choose pictures, distortions and levels; every type of distortion as often as any other.

    Args:
        pristine: Files of undistorted pictures; may be empty.
        labelled: Labelled training images, of which those with a score above `GOOD_SCORE` are used; may be empty.
        count: Number of groups.
        seed: Seed of the choice.
    """
    random = np.random.default_rng(seed)
    good = [str(row.path) for row in labelled if row.score > GOOD_SCORE]
    groups = []
    for number in range(count):
        drawn = random.random()
        if (drawn < PRISTINE_SHARE or not good) and pristine:
            source, known_good = str(pristine[int(random.integers(len(pristine)))]), True
        elif drawn < PRISTINE_SHARE + DRAWN_SHARE or not good:
            source, known_good = f"drawing:{int(random.integers(2**30))}", True
        else:
            source, known_good = good[int(random.integers(len(good)))], False
        weak, strong = sorted(random.choice(np.arange(1, 6), size=2, replace=False).tolist())
        kind = DISTORTIONS[number % len(DISTORTIONS)]
        groups.append(OrderedGroup(source, known_good, kind, weak, strong, int(random.integers(2**30))))
    return groups


def render_group(group: OrderedGroup, size: int = PICTURE_SIZE) -> NDArray[np.uint8]:
    """Make the three pictures of a group.

    Args:
        group: What to make.
        size: Side S of the pictures in pixels.

    Returns:
        (3, S, S, 3) uint8: undistorted, weak, strong.
    """
    random = np.random.default_rng(group.seed)
    if group.source.startswith("drawing:"):
        image = draw_picture(int(group.source.removeprefix("drawing:")), size=size)
    else:
        with Image.open(group.source) as file:
            image = _square_crop(to_rgb(file), random, size)
    pictures = [image] + [
        distort(image, group.distortion, level, seed=group.seed) for level in (group.weak, group.strong)
    ]
    return np.stack([np.asarray(_resize(picture, size)) for picture in pictures])


def _square_crop(image: Image.Image, random: np.random.Generator, size: int) -> Image.Image:
    shorter = min(image.size)
    smallest = max(480, size)
    side = shorter if shorter <= smallest + 40 else int(random.uniform(smallest, shorter))
    left, top = int(random.integers(image.width - side + 1)), int(random.integers(image.height - side + 1))
    image = image.crop((left, top, left + side, top + side))
    if random.random() < 0.7 or side <= size:
        return _resize(image, size)
    return _resize(image, DISTORTED_SIZE_LARGE) if side > 700 else image


def _resize(image: Image.Image, side: int) -> Image.Image:
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)


class _Groups(Dataset[NDArray[np.uint8]]):
    def __init__(self, groups: list[OrderedGroup], size: int) -> None:
        self.groups, self.size = groups, size

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return render_group(self.groups[index], self.size)


class _Weak(_Groups):
    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        weak: NDArray[np.uint8] = render_group(self.groups[index], self.size)[1]
        return weak


class _Squares(Dataset[NDArray[np.uint8]]):
    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        with Image.open(self.paths[index]) as file:
            image = to_rgb(file)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return np.asarray(_resize(image.crop((left, top, left + side, top + side)), self.size))


def cache_groups(
    groups: list[OrderedGroup], path: Path, *, size: int = PICTURE_SIZE, workers: int = 1, report: Report = print
) -> NDArray[np.uint8]:
    """Render all groups once into a memory-mapped file; what is already on disk is kept.

    Args:
        groups: From `plan_groups`.
        path: `.npy` file of (G, 3, S, S, 3) uint8; progress stands beside it as `.json`.
        size: Side S of the pictures in pixels.
        workers: Processes that render; 0 renders in this one.
        report: Called with a line of text now and then.
    """
    key = [asdict(group) for group in groups]
    return _cache(_Groups(groups, size), (3, size, size, 3), path, key, "groups", workers, report)


def cache_pictures(
    files: Sequence[Path], path: Path, *, size: int = PICTURE_SIZE, workers: int = 1, report: Report = print
) -> NDArray[np.uint8]:
    """Decode the middle square of all images once into a memory-mapped file of (N, S, S, 3) uint8.

    Args:
        files: The N images.
        path: `.npy` file; progress stands beside it as `.json`.
        size: Side S of the pictures in pixels.
        workers: Processes that decode; 0 decodes in this one.
        report: Called with a line of text now and then.
    """
    key = [str(file) for file in files]
    return _cache(_Squares(list(files), size), (size, size, 3), path, key, "pictures", workers, report)


def cache_weak(
    groups: list[OrderedGroup], path: Path, *, size: int = PICTURE_SIZE, workers: int = 1, report: Report = print
) -> NDArray[np.uint8]:
    """Render the weaker distortion of all groups once into a memory-mapped file of (G, S, S, 3) uint8.

    Args:
        groups: From `plan_groups`.
        path: `.npy` file; progress stands beside it as `.json`.
        size: Side S of the pictures in pixels.
        workers: Processes that render; 0 renders in this one.
        report: Called with a line of text now and then.
    """
    key = ["weak", *(asdict(group) for group in groups)]
    return _cache(_Weak(groups, size), (size, size, 3), path, key, "distorted pictures", workers, report)


def _cache(
    dataset: Dataset[NDArray[np.uint8]],
    shape: tuple[int, ...],
    path: Path,
    key: object,
    what: str,
    workers: int,
    report: Report,
) -> NDArray[np.uint8]:
    count: int = len(dataset)  # type: ignore[arg-type]
    state_path, wanted = path.with_suffix(".json"), json.loads(json.dumps({"key": key, "count": count, "shape": shape}))
    done = 0
    if path.is_file() and state_path.is_file():
        state = json.loads(state_path.read_text())
        finished = state.pop("done")
        done = int(finished) if state == wanted else 0
    array = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=np.uint8, shape=(count, *shape))
    rest = list(range(done, count))
    loader: DataLoader[NDArray[np.uint8]] = DataLoader(
        dataset, batch_size=None, sampler=rest, num_workers=workers, collate_fn=_as_it_is
    )
    for index, item in zip(rest, loader, strict=True):
        array[index] = item
        if (index + 1) % 500 == 0 or index + 1 == count:
            array.flush()
            state_path.write_text(json.dumps({**wanted, "done": index + 1}))
            report(f"{what}: {index + 1} of {count}")
    on_disk: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return on_disk


def _as_it_is(item: Any) -> Any:
    return item
