"""Draw the registry's icon and banner: python tools/make_icons.py."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
BACKGROUND = (24, 28, 36)
# The contact sheet's colours, from bad to excellent.
COLOURS = ((178, 40, 48), (217, 106, 45), (214, 170, 40), (120, 165, 60), (38, 128, 74))
SCALE = 4


def draw_bars(draw: ImageDraw.ImageDraw, left: float, top: float, side: float) -> None:
    """Five rising bars in a square."""
    width = side / 7
    for place, colour in enumerate(COLOURS):
        height = side * (place + 2) / 6.5
        x = left + place * width * 1.5
        draw.rounded_rectangle((x, top + side - height, x + width, top + side), radius=width / 3, fill=colour)


def main() -> None:
    """Write icon.png (400 x 400) and banner.png (1260 x 540, 21:9)."""
    FOLDER.mkdir(exist_ok=True)
    icon = Image.new("RGB", (400 * SCALE, 400 * SCALE), BACKGROUND)
    draw_bars(ImageDraw.Draw(icon), 70 * SCALE, 70 * SCALE, 260 * SCALE)
    icon.resize((400, 400), Image.Resampling.LANCZOS).save(FOLDER / "icon.png", optimize=True)
    banner = Image.new("RGB", (1260 * SCALE, 540 * SCALE), BACKGROUND)
    draw = ImageDraw.Draw(banner)
    draw_bars(draw, 110 * SCALE, 130 * SCALE, 280 * SCALE)
    draw.text((480 * SCALE, 150 * SCALE), "RALI", font=ImageFont.load_default(150 * SCALE), fill=(240, 240, 240))
    text = "image quality scores in ComfyUI"
    draw.text((486 * SCALE, 330 * SCALE), text, font=ImageFont.load_default(44 * SCALE), fill=(170, 178, 190))
    banner.resize((1260, 540), Image.Resampling.LANCZOS).save(FOLDER / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
