"""Distortion triplets: an image, a mild and a severe distortion of it, for learning an order without human scores.

After Liu et al., "RankIQA", ICCV 2017. Types and levels are
those of `distortions.py`. A model that saw only photographs mistakes a style for a flaw, so some of the images are
synthetic graphics: flat shapes, lines and gradients, clean by construction. Images without content are rendered here
too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..images import to_rgb
from ..labels import LabelledImage
from .distortions import DISTORTIONS, LIGHT_JPEG_QUALITY, Distortion, distort, recode, resize_square

GRAPHICS_SHARE, PRISTINE_SHARE = 0.10, 0.55
"""Shares of synthetic graphics and of pristine images in the triplets; the rest are good labelled images."""
GOOD_SCORE = 0.62
"""Labelled images above this score are good enough to be distorted."""
DISTORTED_SIZE_LARGE = 640
"""Some images are distorted at this side and then reduced, as large images are before they are scored."""
MILD_DISTORTIONS: frozenset[Distortion] = frozenset({"saturation_low", "colour_diffusion", "contrast_high", "warp"})
"""Types whose mild levels hardly hurt, or may be liked: they are ordered with half the margin."""
RECODED_SHARE = 0.5
"""Share of the triplets whose images are all saved as JPEG in the end, as labelled ones were: their reduced colour
resolution must not tell distorted images from others."""
OVERSAMPLING = 2
"""Graphics are rendered larger and reduced, so that edges are smooth."""


@dataclass(frozen=True)
class DistortionTriplet:
    """An image and two levels of one distortion.

    Attributes:
        source: Image file, or `graphic:SEED`.
        pristine: Whether the undistorted image is known to be good.
        distortion: Type of the distortion.
        mild: Weaker level, 1..4.
        severe: Stronger level, up to 5.
        seed: Seed of crop and distortion.
    """

    source: str
    pristine: bool
    distortion: Distortion
    mild: int
    severe: int
    seed: int


def plan_triplets(
    pristine: list[Path], labelled: list[LabelledImage], *, count: int, seed: int
) -> list[DistortionTriplet]:
    """Choose images, distortions and levels; every type of distortion as often as any other.

    Args:
        pristine: Files of undistorted images; may be empty.
        labelled: Labelled training images, of which those with a score above `GOOD_SCORE` are used; may be empty.
        count: Number of triplets.
        seed: Seed of the choice.
    """
    random = np.random.default_rng(seed)
    good = [str(row.path) for row in labelled if row.score > GOOD_SCORE]
    triplets = []
    for number in range(count):
        drawn = random.random()
        if (drawn < PRISTINE_SHARE or not good) and pristine:
            source, known_good = str(pristine[int(random.integers(len(pristine)))]), True
        elif drawn < PRISTINE_SHARE + GRAPHICS_SHARE or not good:
            source, known_good = f"graphic:{int(random.integers(2**30))}", True
        else:
            source, known_good = good[int(random.integers(len(good)))], False
        mild, severe = sorted(random.choice(np.arange(1, 6), size=2, replace=False).tolist())
        kind = DISTORTIONS[number % len(DISTORTIONS)]
        triplets.append(DistortionTriplet(source, known_good, kind, mild, severe, int(random.integers(2**30))))
    return triplets


def render_triplet(triplet: DistortionTriplet, size: int) -> NDArray[np.uint8]:
    """(3, S, S, 3) uint8 images of side S = `size`: undistorted, mild, severe."""
    random = np.random.default_rng(triplet.seed)
    if triplet.source.startswith("graphic:"):
        image = render_graphic(int(triplet.source.removeprefix("graphic:")), size=size)
    else:
        with Image.open(triplet.source) as file:
            image = _square_crop(to_rgb(file), random, size)
    images = [image] + [
        distort(image, triplet.distortion, level, seed=triplet.seed) for level in (triplet.mild, triplet.severe)
    ]
    images = [resize_square(image, size) for image in images]
    if random.random() < RECODED_SHARE:
        images = [recode(image, "JPEG", quality=LIGHT_JPEG_QUALITY) for image in images]
    return np.stack([np.asarray(image) for image in images])


def _square_crop(image: Image.Image, random: np.random.Generator, size: int) -> Image.Image:
    shorter = min(image.size)
    smallest = max(480, size)
    side = shorter if shorter <= smallest + 40 else int(random.uniform(smallest, shorter))
    left, top = int(random.integers(image.width - side + 1)), int(random.integers(image.height - side + 1))
    image = image.crop((left, top, left + side, top + side))
    if random.random() < 0.7 or side <= size:
        return resize_square(image, size)
    return resize_square(image, DISTORTED_SIZE_LARGE) if side > 700 else image


class TripletRenderer:
    """Renders the triplets of a list by their number; can be sent to another process."""

    def __init__(self, triplets: list[DistortionTriplet], size: int) -> None:
        self.triplets, self.size = triplets, size

    def __call__(self, index: int) -> NDArray[np.uint8]:
        """(3, S, S, 3) uint8."""
        return render_triplet(self.triplets[index], self.size)


def render_blank(seed: int, *, size: int) -> NDArray[np.uint8]:
    """An image without content: one colour, a smooth ramp between two colours, or either with slight noise.

    Args:
        seed: The same seed gives the same image; seeds that are divisible by 4 give black, white and grey in turn.
        size: Side in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    random = np.random.default_rng(seed)
    if seed % 4 == 0:
        values = np.full((size, size, 3), (0.0, 255.0, 128.0)[seed // 4 % 3])
    else:
        start, end = random.uniform(0, 255, (2, 3))
        y, x = np.mgrid[:size, :size] / size
        ramp = x * random.normal() + y * random.normal()
        ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
        steepness = 0.0 if seed % 4 < 3 else random.uniform(0.05, 1.0)
        values = start + (end - start) * steepness * ramp[..., None]
    values = values + random.normal(0, random.choice([0.0, 0.0, 0.7, 2.0]), values.shape)
    image: NDArray[np.uint8] = values.round().clip(0, 255).astype(np.uint8)
    return image


class BlankRenderer:
    """Renders images without content by their number; can be sent to another process."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, index: int) -> NDArray[np.uint8]:
        """(S, S, 3) uint8."""
        return render_blank(index, size=self.size)


def render_graphic(seed: int, *, size: int = 448) -> Image.Image:
    """Render a random synthetic graphic: shapes and lines on a gradient.

    Args:
        seed: The same seed gives the same image.
        size: Side in pixels.

    Returns:
        RGB, `size` x `size`.
    """
    random = np.random.default_rng(seed)
    side = size * OVERSAMPLING
    unit = side / 896
    y, x = np.mgrid[:side, :side] / side
    ramp = x * random.random() + y * random.random()
    ramp = ((ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6))[..., None]
    start, end = random.integers(0, 256, (2, 3))
    image = Image.fromarray((start * (1 - ramp) + end * ramp).astype(np.uint8))
    canvas = ImageDraw.Draw(image)
    for _ in range(int(random.integers(15, 90))):
        _draw_shape(canvas, random, side, unit)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _draw_shape(canvas: ImageDraw.ImageDraw, random: np.random.Generator, side: int, unit: float) -> None:
    red, green, blue = random.integers(0, 256, 3).tolist()
    colour = (red, green, blue)
    corner = random.uniform(-100 * unit, side, 2)
    box = [*corner, *(corner + random.uniform(20, 400, 2) * unit)]
    shape = ("ellipse", "rectangle", "polygon", "line")[int(random.integers(4))]
    if shape == "ellipse":
        outline = (0, 0, 0) if random.random() < 0.5 else None
        canvas.ellipse(box, fill=colour, outline=outline, width=round(random.uniform(1, 8) * unit))
    elif shape == "rectangle":
        canvas.rectangle(box, fill=colour)
    elif shape == "polygon":
        corners = corner + random.uniform(-200, 200, (int(random.integers(3, 7)), 2)) * unit
        canvas.polygon([(px, py) for px, py in corners.tolist()], fill=colour)
    else:
        points = random.uniform(0, side, (int(random.integers(2, 6)), 2))
        width = max(1, round(random.uniform(1, 14) * unit))
        canvas.line([(px, py) for px, py in points.tolist()], fill=colour, width=width, joint="curve")
