"""Turns the frozen listing into images to decode; rows of Parquet files are read here, in order, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from . import storage
from .decode import DecodeTask, check_unchanged
from .items import Item, Payload
from .listing import Listing
from .source_parquet import image_content, image_value, open_parquet, top_column

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 8
"""Rows of a Parquet file that are in memory at a time."""


class ShardPosition(NamedTuple):
    """An image's shard, and whether it is the last one of it."""

    shard: int
    last: bool


def read_tasks(
    listing: Listing,
    shards: Iterable[tuple[int, Sequence[int] | None]],
    payload: Payload,
    image_column: str | None,
) -> Iterator[tuple[ShardPosition, DecodeTask]]:
    """The images of some shards, in order.

    Args:
        listing: All images.
        shards: 0-based numbers of the shards, and which of their images, None for all.
        payload: Where the images' bytes are.
        image_column: Of a Parquet source.
    """
    with ExitStack() as stack:
        table = ParquetRows(image_column or "", stack) if payload == "parquet" else None
        for shard, places in shards:
            items = listing.items(shard)
            items = items if places is None else [items[place] for place in places]
            for position, item in enumerate(items):
                task = DecodeTask(item) if table is None else table.task(item)
                yield ShardPosition(shard, position == len(items) - 1), task


class ParquetRows:
    """Reads the image column of Parquet files row by row; consecutive rows are read once.

    Args:
        column: Name of the image column.
        stack: Closes the open file.
    """

    def __init__(self, column: str, stack: ExitStack) -> None:
        self._column, self._stack = column, stack
        self._path: str | None = None
        self._problem: str | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._values: pa.Array | None = None
        self._start = 0
        self._schema: pa.Schema | None = None
        self._top = column

    def task(self, item: Item) -> DecodeTask:
        """An image with its bytes, the path that the file holds instead, or the reason why it cannot be read."""
        if item.problem is not None:
            return DecodeTask(item)
        try:
            if item.path != self._path or item.offset < self._start:
                self._open(item)
            if self._problem is None:
                return DecodeTask(item, self._content(item))
        except (OSError, ValueError, IndexError) as error:
            self._problem = f"{item.path}: {error}"
        return DecodeTask(item._replace(problem=self._problem))

    def _open(self, item: Item) -> None:
        """Go to the row group that holds the item's row."""
        self._stack.close()
        self._path, self._problem, self._values, self._start = item.path, None, None, item.offset
        check_unchanged(item)
        file = self._stack.enter_context(open_parquet(self._stack.enter_context(storage.open_binary(item.path))))
        self._schema = file.schema_arrow
        self._top = top_column(self._schema, self._column)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(accumulate(sizes))
        first = next((group for group, end in enumerate(ends) if item.offset < end), len(ends))
        if first == len(ends):
            raise ValueError(f"it has {sum(sizes)} rows and had more when it was listed")
        self._start = ends[first] - sizes[first]
        self._batches = file.iter_batches(ROWS_AT_ONCE, row_groups=range(first, len(ends)), columns=[self._top])

    def _content(self, item: Item) -> bytes | str | None:
        while self._values is None or item.offset >= self._start + len(self._values):
            if self._values is not None:
                self._start += len(self._values)
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("it ends before the row that was listed")
            self._values = batch.column(0)
        value = self._values[item.offset - self._start].as_py()
        content = image_content(image_value(value, self._schema, self._column, item.length))
        return storage.find(storage.parent(item.path), content) if isinstance(content, str) else content
