"""Pictures at known levels of distortion as files, with descriptions that name type and level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .describe.measured import MeasuredDescriber
from .describe.records import DescriptionLog, image_name
from .distortions import Distortion
from .evaluate import Report
from .ordered import OrderedGroup, render_group


def _pictures(groups: list[OrderedGroup], folder: Path) -> Iterator[tuple[Path, Distortion | None, int]]:
    """File, distortion and level of each picture, three of each group."""
    for number, group in enumerate(groups):
        yield folder / f"{number:05d}-0.png", None, 0
        for level in (group.weak, group.strong):
            yield folder / f"{number:05d}-{group.distortion}-{level}.png", group.distortion, level


def list_pictures(groups: list[OrderedGroup], folder: Path) -> list[Path]:
    """The files of all groups, three of each: undistorted, weak, strong."""
    return [file for file, _, _ in _pictures(groups, folder)]


def render_groups(groups: list[OrderedGroup], folder: Path, *, report: Report = print) -> None:
    """Write the pictures of all groups as PNG files; those that are there are kept.

    Args:
        groups: From `ordered.plan_groups`.
        folder: Where to.
        report: Called with a line of text now and then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = list_pictures(groups, folder)
    for number, group in enumerate(groups):
        mine = files[3 * number : 3 * number + 3]
        if not all(file.is_file() for file in mine):
            for file, pixels in zip(mine, render_group(group), strict=True):
                temporary = file.with_suffix(".partial")
                Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
                temporary.replace(file)
        if (number + 1) % 100 == 0 or number + 1 == len(groups):
            report(f"groups: {number + 1} of {len(groups)} rendered")


def describe_groups(groups: list[OrderedGroup], folder: Path, *, seeds: int, report: Report = print) -> None:
    """Describe the rendered pictures by measurements, type and level, without scores; goes on where it was stopped.

    Args:
        groups: Those of `render_groups(groups, folder / "pictures")`.
        folder: For `descriptions.jsonl`.
        seeds: Descriptions of each picture.
        report: Called with a line of text now and then.
    """
    describer = MeasuredDescriber()
    pictures = list(_pictures(groups, folder / "pictures"))
    with DescriptionLog(folder / "descriptions.jsonl", source=describer.source) as log:
        for number, (file, distortion, level) in enumerate(pictures, start=1):
            name = image_name(file, folder)
            for seed in range(seeds):
                if (name, seed) not in log.done:
                    text = describer.describe(file, distortion=distortion, level=level, seed=seed).text
                    log.write(name, text, score=None, seed=seed)
            if number % 300 == 0 or number == len(pictures):
                report(f"groups: {number} of {len(pictures)} described")
