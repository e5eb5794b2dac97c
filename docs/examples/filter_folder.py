"""Filter a folder of generated images: those that reach a score are copied, and a contact sheet shows all.

python docs/examples/filter_folder.py images/ --at-least 0.5 --output good/
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image

from rali_core import RaliScorer, at_least
from rali_core.images import IMAGE_SUFFIXES, to_pil_image
from rali_core.sheet import draw_contact_sheet


def thumbnail(file: Path) -> Image.Image:
    """A small copy of an image: a folder may hold more than fits into memory."""
    image = to_pil_image(file)
    image.thumbnail((480, 480))
    return image


def main() -> None:
    """Score, copy and draw the sheet."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--at-least", type=float, default=0.5, help="lowest score that is kept (default: 0.5)")
    arguments.add_argument("--rali", metavar="FILE", help="RALI model file (default: the bundled one)")
    arguments.add_argument("--output", type=Path, default=Path("output"), help="folder for copies and sheet")
    options = arguments.parse_args()
    files = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    result = RaliScorer.from_pretrained(options.rali).score(files, on_error="record")
    options.output.mkdir(parents=True, exist_ok=True)
    good = at_least(result.scores, options.at_least)
    for index in good:
        shutil.copy2(files[index], options.output / files[index].name)
    order = result.ranking()
    if order:
        draw_contact_sheet(
            [thumbnail(files[index]) for index in order],
            [result.scores[index] for index in order],
            names=[f"{'kept' if index in good else 'left out'}: {files[index].name}" for index in order],
        ).save(options.output / "sheet.png")
    for file, error in zip(files, result.errors, strict=True):
        if error:
            print(f"not scored: {file}: {error}")
    print(f"{len(good)} of {len(files)} images reach {options.at_least}")


if __name__ == "__main__":
    main()
