"""Labelled images: a table of images and human scores, and its split into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .text_files import find_listed, parse_number, read_table


@dataclass(frozen=True)
class LabelledImage:
    """One image with its human score.

    Attributes:
        path: The image file.
        score: Mean opinion score, scaled to [0, 1]; higher is better.
        split: `"train"`, `"test"` or any other name in the table; `"train"` by default.
        near_duplicate: True for a test image that the table flags as (nearly) contained in the training part.
        content: What the image shows, if the table says so (a prompt, a scene); images of one content are never
            split between training and validation.
        group: A group of images that is also measured separately, such as the generator, if the table has one.
    """

    path: Path
    score: float
    split: str
    near_duplicate: bool
    content: str | None = None
    group: str | None = None


def read_labels(
    path: str | Path,
    *,
    root: str | Path | None = None,
    score_range: tuple[float, float] = (0.0, 1.0),
    content_column: str | None = None,
    group_column: str | None = None,
) -> list[LabelledImage]:
    """Read a table of images and human scores.

    Args:
        path: CSV file with the columns `image` and `mos`, and optionally `split` and `near_dup_in_train` (1 = yes); its
            encoding and separator are detected by `text_files.read_table`.
        root: Folder that the `image` column is relative to; by default the folder of the CSV file.
        score_range: Worst and best score of the table's own scale; mapped to 0 and 1.
        content_column: Name of a further column, for `LabelledImage.content`.
        group_column: Name of a further column, for `LabelledImage.group`.

    Raises:
        FileNotFoundError: The table or one of its images is missing.
        ValueError: A column is missing, a score is not a number or outside `score_range`, or there are no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no labels file {path}; expected a CSV with the columns image and mos")
    folder = Path(root) if root is not None else path.parent
    low, high = score_range
    if not low < high:
        raise ValueError(f"score_range must be (worst, best) with worst < best, got {score_range}")
    rows: list[LabelledImage] = []
    problems: list[str] = []
    table = read_table(path)
    content_key, group_key = (None if name is None else name.strip().lower() for name in (content_column, group_column))
    absent = {name for name in ("image", "mos", content_key, group_key) if name is not None} - set(table.columns)
    if absent:
        raise ValueError(f"{path} lacks the column(s) {', '.join(sorted(absent))}; it has {', '.join(table.columns)}")
    for number, line in zip(table.lines, table.rows, strict=True):
        score = parse_number(line["mos"])
        if not low <= score <= high:
            problems.append(f"line {number}: mos {line['mos']!r} is not a number in [{low:g}, {high:g}]")
            continue
        file = Path(find_listed(str(folder), line["image"]))
        if not file.is_file():
            problems.append(f"line {number}: no file {file}")
            continue
        rows.append(
            LabelledImage(
                path=file,
                score=(score - low) / (high - low),
                split=line.get("split") or "train",
                near_duplicate=line.get("near_dup_in_train") == "1",
                content=line[content_key] if content_key is not None else None,
                group=line[group_key] if group_key is not None else None,
            )
        )
    if problems:
        shown = "\n  ".join(problems[:10]) + (f"\n  and {len(problems) - 10} more" if len(problems) > 10 else "")
        kind = FileNotFoundError if all("no file" in problem for problem in problems) else ValueError
        raise kind(f"{path} has {len(problems)} unusable row(s):\n  {shown}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def scores_of(rows: Sequence[LabelledImage]) -> NDArray[np.float64]:
    """(N,) human scores of N rows."""
    return np.array([row.score for row in rows])


def split_validation(
    rows: list[LabelledImage], *, fraction: float = 0.1, seed: int = 0
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split the training rows into training and validation at random; images of one content stay together.

    Args:
        rows: Labelled images; only those with `split == "train"` are used.
        fraction: Share of the contents (of the images, if the table has no contents) that becomes validation, in
            [0, 1); at least one unless it is 0.
        seed: Seed of the permutation.

    Returns:
        (training rows, validation rows), each in the table's order.

    Raises:
        ValueError: Fewer than two contents in the training rows, or `fraction` out of range.
    """
    train = [row for row in rows if row.split == "train"]
    contents = [row.content if row.content is not None else str(index) for index, row in enumerate(train)]
    distinct = list(dict.fromkeys(contents))
    if len(distinct) < 2:
        raise ValueError(
            "training needs at least two images with split 'train' and different content, got "
            f"{len(train)} images with {len(distinct)}"
        )
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must lie in [0, 1), got {fraction}")
    count = max(1, round(len(distinct) * fraction)) if fraction else 0
    held_out = {distinct[index] for index in np.random.default_rng(seed).permutation(len(distinct))[:count].tolist()}
    return (
        [row for row, content in zip(train, contents, strict=True) if content not in held_out],
        [row for row, content in zip(train, contents, strict=True) if content in held_out],
    )
