"""One picture of many: a grid with a caption under each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL = 192
CAPTION = 24
GAP = 8


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, columns: int | None = None, cell: int = CELL
) -> Image.Image:
    """A grid on white, left to right and top to bottom.

    Args:
        pictures: At least one, of any sizes; each is fitted into its square cell.
        captions: One line for each.
        columns: How many side by side; by default a square grid.
        cell: Side of a cell in pixels.

    Raises:
        ValueError: No picture, or another number of captions.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"expected at least one picture and a caption each, got {len(pictures)} and {len(captions)}")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = columns * (cell + GAP) + GAP, rows * (cell + CAPTION + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for position, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = GAP + position % columns * (cell + GAP)
        top = GAP + position // columns * (cell + CAPTION + GAP)
        scale = cell / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # Enlarged pixels stay pixels: smoothing would hide what the score is about.
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        fitted = picture.convert("RGB").resize(size, method)
        sheet.paste(fitted, (left + (cell - size[0]) // 2, top + (cell - size[1]) // 2))
        draw.text((left + 2, top + cell + 3), caption, fill="black", font=font)
    return sheet
