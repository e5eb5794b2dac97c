"""Choosing from a scored data set: by a score, by a share of the best, within groups."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..content import NO_CONTENT_SCORE
from .result import ScoredDataset

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "folder"
"""A group that needs no column: the part of the id before the last slash."""


@dataclass(frozen=True)
class Selection:
    """The result of a filter.

    Attributes:
        dataset: The scored data set.
        positions: 0-based positions of the chosen rows, ascending.
        scored: How many rows have a score.
        groups: How many groups there are; 1 without groups.
        no_content: How many of the chosen images have no content; these are chosen last.
    """

    dataset: ScoredDataset
    positions: NDArray[np.int64]
    scored: int
    groups: int
    no_content: int = 0


def filter_dataset(
    folder: str | os.PathLike[str],
    *,
    min_score: float | None = None,
    max_score: float | None = None,
    top_fraction: float | None = None,
    top_k: int | None = None,
    per_group: str | None = None,
    incomplete: bool = False,
) -> Selection:
    """Choose rows of a scored data set. Where several conditions are given, all must hold.

    Memory: some 30 bytes per image, and the values of the group column.

    Args:
        folder: Of the result.
        min_score: At least this score.
        max_score: At most this score.
        top_fraction: The best fraction of the scored images, 0..1, rounded up to a whole image.
        top_k: The best so many.
        per_group: Take the fraction and the k within each group of equal values of this column; `"folder"` groups
            by the id's folder. Equal scores: the earlier image comes first.
        incomplete: Choose even if not all images are scored yet.

    Raises:
        ValueError: No condition, one out of range, no such column, or not all images are scored.
        FileNotFoundError: The folder holds no result.

    Examples:
        >>> filter_dataset("photos-scored/", top_fraction=0.1, per_group="folder").positions  # doctest: +SKIP
        array([  3,  17, ...])
    """
    if min_score is None and max_score is None and top_fraction is None and top_k is None:
        raise ValueError("give a condition: min_score, max_score, top_fraction or top_k")
    if top_fraction is not None and not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction must be above 0 and at most 1, got {top_fraction}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if per_group is not None and top_fraction is None and top_k is None:
        raise ValueError("groups matter for top_fraction and top_k only")
    dataset = ScoredDataset(folder)
    if not dataset.complete and not incomplete:
        raise ValueError(
            f"only {len(dataset.shards)} of {dataset.listing.shards} shards of {dataset.folder} exist: run "
            "`rali dataset score` again to finish them, or choose among these with --incomplete"
        )
    scores = dataset.scores()
    keep = ~np.isnan(scores)
    empty = scores == np.float32(NO_CONTENT_SCORE)
    scored = int(keep.sum())
    groups, names = (
        (np.zeros(len(scores), dtype=np.int64), [""]) if per_group is None else group_codes(dataset, per_group)
    )
    if top_fraction is not None or top_k is not None:
        keep &= _best(np.where(empty, -np.inf, scores).astype(np.float32), groups, top_fraction, top_k)
    if min_score is not None:
        keep &= scores >= np.float32(min_score)
    if max_score is not None:
        keep &= scores <= np.float32(max_score)
    return Selection(dataset, np.flatnonzero(keep), scored, len(names), int((keep & empty).sum()))


def group_codes(dataset: ScoredDataset, column: str) -> tuple[NDArray[np.int64], list[str]]:
    """Number the groups of equal values.

    Args:
        dataset: The rows.
        column: Of the shards, or `"folder"`.

    Returns:
        (N,) the number of each row's group, and each group's value as a text.

    Raises:
        ValueError: There is no such column, or its type cannot be grouped by.
    """
    import pyarrow as pa

    if not dataset.shards:
        return np.empty(0, dtype=np.int64), []
    names = dataset.listing.schema.names
    parts = [
        _folders(table) if column == FOLDER and FOLDER not in names else table.column(column)
        for table in dataset.tables(["id"] if column == FOLDER and FOLDER not in names else [column])
    ]
    values = pa.chunked_array([chunk for part in parts for chunk in part.chunks])
    if not (
        pa.types.is_primitive(values.type) or pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    ):
        raise ValueError(f"cannot group by column {column!r} of type {values.type}: it needs texts, numbers or dates")
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return codes, [str(value) for value in encoded.dictionary.to_pylist()]


def _folders(table: pa.Table) -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.chunked_array([[name.rpartition("/")[0] for name in table.column("id").to_pylist()]], pa.string())


def _best(
    scores: NDArray[np.float32], groups: NDArray[np.int64], fraction: float | None, k: int | None
) -> NDArray[np.bool_]:
    """(N,) whether a row is among the best of its group; NaN never is."""
    scored = np.flatnonzero(~np.isnan(scores))
    order = scored[np.lexsort((scored, -scores[scored], groups[scored]))]
    sizes = np.bincount(groups[order], minlength=int(groups.max(initial=0)) + 1)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.arange(len(order)) - starts[groups[order]]
    limits = sizes.astype(np.int64)
    if fraction is not None:
        # Without the rounding 0.1 of 30 would be 3.0000000000000004, and so 4.
        limits = np.ceil(np.round(sizes * fraction, 9)).astype(np.int64)
    if k is not None:
        limits = np.minimum(limits, k)
    best = np.zeros(len(scores), dtype=bool)
    best[order[place < limits[groups[order]]]] = True
    return best
