"""A contact sheet: scored images in a grid, best first, each with its score, band and name."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .constants import BAND_THRESHOLDS
from .images import to_pil_image
from .selection import rank

THUMBNAIL = 480
MARGIN = 12
BAR_HEIGHT = 6
BACKGROUND = (250, 250, 250)
TEXT = (30, 30, 30)
FAINT = (120, 120, 120)
TRACK = (225, 225, 225)
BANNER_POSITIONS = ("below", "above", "over the bottom", "over the top")
# From red through yellow to green at the scale's five bands; distinguishable by lightness too.
BAND_COLOURS = ((178, 40, 48), (217, 106, 45), (214, 170, 40), (120, 165, 60), (38, 128, 74))


def band_colour(score: float, thresholds: Sequence[float] = BAND_THRESHOLDS) -> tuple[int, int, int]:
    """The colour of a score's band."""
    return BAND_COLOURS[bisect_right(thresholds, score)]


def make_thumbnail(image: Image.Image) -> Image.Image:
    """A copy of at most `THUMBNAIL` pixels a side; a large JPEG that was only opened is decoded at a reduced size."""
    image.draft("RGB", (THUMBNAIL, THUMBNAIL))
    image.load()
    small: Image.Image = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def draw_contact_sheet(
    images: Sequence[Image.Image],
    scores: Sequence[float],
    *,
    names: Sequence[str] | None = None,
    bands: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    columns: int = 4,
    cell: int = 240,
    ranked: bool = True,
    bars: bool = True,
    enlarge: bool = False,
) -> Image.Image:
    """Draw images in a grid, best first.

    Args:
        images: N PIL images of any sizes; each is fitted into its cell, never cropped.
        scores: N scores, in [0, 1] with bars; an image whose score is NaN is left out.
        names: N captions; shortened from the left if they are too long.
        bands: N names of bands, printed after the score.
        notes: N further captions, such as what is wrong with each image; without any there is no room for them.
        columns: Images in a row; fewer if there are fewer images.
        cell: Side of an image's square cell in pixels, at least 80.
        ranked: Best first and numbered; otherwise in the given order.
        bars: Draw each score as a bar, for scores in [0, 1].
        enlarge: Enlarge small images to their cell, by whole factors, because smoothing would hide what is scored;
            otherwise they keep their size.

    Returns:
        An RGB image.

    Raises:
        ValueError: Lengths differ, nothing to draw, or sizes out of range.
    """
    if not (len(images) == len(scores) == len(names or images) == len(bands or images) == len(notes or images)):
        raise ValueError(f"expected one score, name and band per image, got {len(images)} images, {len(scores)} scores")
    if columns < 1 or cell < 80:
        raise ValueError(f"expected at least one column and cells of at least 80 pixels, got {columns} and {cell}")
    order = rank(scores) if ranked else sorted(rank(scores))
    if not order:
        raise ValueError("there is no scored image to draw")
    columns = min(columns, len(order))
    rows = -(-len(order) // columns)
    large, small = ImageFont.load_default(size=cell / 12), ImageFont.load_default(size=cell / 17)
    noted = notes is not None and any(notes)
    caption = int(BAR_HEIGHT + cell / 12 + cell / 17 + 22 + (cell / 17 + 4 if noted else 0))
    sheet = Image.new(
        "RGB", (columns * (cell + MARGIN) + MARGIN, rows * (cell + caption + MARGIN) + MARGIN), BACKGROUND
    )
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(order):
        left = MARGIN + place % columns * (cell + MARGIN)
        top = MARGIN + place // columns * (cell + caption + MARGIN)
        thumbnail = _thumbnail(images[index], cell, enlarge)
        sheet.paste(thumbnail, (left + (cell - thumbnail.width) // 2, top + (cell - thumbnail.height) // 2))
        score = float(scores[index])
        bar = top + cell + 6
        if bars:
            _draw_bar(draw, left, bar, cell, score)
        text = (f"{place + 1}.  " if ranked else "") + f"{score:.3f}" + (f"  {bands[index]}" if bands else "")
        draw.text((left, bar + BAR_HEIGHT + 4), text, fill=TEXT, font=large)
        line = bar + BAR_HEIGHT + 8 + cell / 12
        if notes is not None and notes[index]:
            draw.text((left, line), shorten(notes[index], small, cell, keep_start=True), fill=TEXT, font=small)
        if names:
            line += cell / 17 + 4 if noted else 0
            draw.text((left, line), shorten(names[index], small, cell), fill=FAINT, font=small)
    return sheet


def draw_banner(
    image: Image.Image, text: str, score: float, *, position: str = "below", height: int | None = None
) -> Image.Image:
    """Write a score on an image, on a strip with a bar in its band's colour.

    Args:
        image: Any PIL image.
        text: The text; shortened from the left if it is too long.
        score: In [0, 1], for the bar's length and colour; NaN draws none.
        position: One of `BANNER_POSITIONS`: on a separate strip, or over the image's pixels.
        height: Height of the strip in pixels, at least 12; by default a fifteenth of the image's shorter side.

    Returns:
        A new RGB image, higher by the strip if that is above or below.

    Raises:
        ValueError: An unknown position, or a height that is too small.
    """
    if position not in BANNER_POSITIONS:
        raise ValueError(f"position must be one of {', '.join(BANNER_POSITIONS)}, got {position!r}")
    rgb = to_pil_image(image)
    height = max(12, min(rgb.size) // 15) if height is None else height
    if height < 12:
        raise ValueError(f"expected a strip of at least 12 pixels, got {height}")
    over, top = position.startswith("over"), position in ("above", "over the top")
    canvas = Image.new("RGB", (rgb.width, rgb.height + (0 if over else height)), BACKGROUND)
    canvas.paste(rgb, (0, height if top and not over else 0))
    strip = Image.new("RGB", (rgb.width, height), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    bar = max(2, height // 8)
    if score == score:
        _draw_bar(draw, 0, 0, rgb.width, score, bar)
    font = ImageFont.load_default(size=(height - bar) * 0.72)
    middle = bar + (height - bar) / 2
    draw.text((height / 4, middle), shorten(text, font, rgb.width - height // 2), fill=TEXT, font=font, anchor="lm")
    canvas.paste(strip, (0, 0 if top else canvas.height - height))
    return canvas


def _draw_bar(
    draw: ImageDraw.ImageDraw, left: float, top: float, width: int, score: float, height: int = BAR_HEIGHT
) -> None:
    share = min(max(score, 0.0), 1.0)
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=TRACK)
    draw.rectangle((left, top, left + max(round(share * width), 1) - 1, top + height - 1), fill=band_colour(share))


def _thumbnail(image: Image.Image, cell: int, enlarge: bool) -> Image.Image:
    thumbnail = to_pil_image(image)
    times = cell // max(thumbnail.size)
    if enlarge and times > 1:
        return thumbnail.resize((thumbnail.width * times, thumbnail.height * times), Image.Resampling.NEAREST)
    thumbnail.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return thumbnail


def shorten(
    text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int, *, keep_start: bool = False
) -> str:
    """A text shortened from the left, or from the right, to fit, limited to what Pillow's own font can draw."""
    text = text.encode("latin-1", "replace").decode("latin-1")  # what Pillow's own font can draw
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[:-1] if keep_start else text[1:]
    return f"{text}..." if keep_start else f"...{text}"
