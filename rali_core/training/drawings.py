"""Drawn pictures: flat shapes, lines and gradients, the opposite of a photograph.

A model that saw photographs only takes a style for a flaw. These pictures are clean by construction and are only used
undistorted and distorted by known levels (`ordered.py`).
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 2
"""Drawn larger and reduced, so that edges are smooth."""


def draw_picture(seed: int, *, size: int = 448) -> Image.Image:
    """Draw a random picture.

    Args:
        seed: The same seed gives the same picture.
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
