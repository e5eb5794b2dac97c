"""The frozen list of a data set's images. It is made once; a batch of it is the work of one shard.

An Arrow IPC file: batch i holds the images of shard i, and one batch is read without the others.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import atomic_write
from .items import Item

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_REPEATS = 3
ITEM_COLUMNS = 8
"""Columns before the carried ones."""


def listing_schema(carried: Iterable[pa.Field] = ()) -> pa.Schema:
    """Columns of the listing: those of `Item`, and the carried ones."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("path", pa.binary(), nullable=False),  # a file name need not be UTF-8
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("length", pa.int64(), nullable=False),
            pa.field("file_size", pa.int64(), nullable=False),
            pa.field("modified", pa.int64(), nullable=False),
            pa.field("problem", pa.string()),
            *carried,
        ]
    )


def write_listing(path: Path, items: Iterable[Item], shard_size: int, carried: Iterable[pa.Field] = ()) -> int:
    """Write a listing.

    Args:
        path: Where to.
        items: The images.
        shard_size: Images per batch.
        carried: Fields of the items' carried values.

    Returns:
        How many images there are.

    Raises:
        ValueError: Two images have the same id.
        OSError: The file cannot be written.
    """
    import pyarrow as pa

    schema = listing_schema(carried)
    hashes = array("Q")  # 8 bytes per image
    stream = iter(items)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with atomic_write(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
            while chunk := list(islice(stream, shard_size)):
                hashes.extend(_hash(item.id) for item in chunk)
                writer.write_batch(_to_batch(chunk, schema))
        _check_unique(temporary, hashes)
    return len(hashes)


class Listing:
    """A listing that was written before.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._file = pa.memory_map(str(path))
        self._reader = pa.ipc.open_file(self._file)
        self.schema: pa.Schema = self._reader.schema

    @property
    def shards(self) -> int:
        """How many batches there are."""
        return int(self._reader.num_record_batches)

    def batch(self, shard: int) -> pa.RecordBatch:
        """The images of one shard as a table."""
        return self._reader.get_batch(shard)

    def items(self, shard: int) -> list[Item]:
        """The images of one shard, without the carried values."""
        batch = self.batch(shard)
        columns = [batch.column(name).to_pylist() for name in Item._fields[:ITEM_COLUMNS]]
        return [
            Item(id_, uri, os.fsdecode(path), offset, length, file_size, modified, problem)
            for id_, uri, path, offset, length, file_size, modified, problem in zip(*columns, strict=True)
        ]


def _to_batch(items: list[Item], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    nothing = (None,) * (len(schema) - ITEM_COLUMNS)  # a file that could not be read has no values to carry
    rows = [(*item[:2], os.fsencode(item.path), *item[3:ITEM_COLUMNS], *(item.carried or nothing)) for item in items]
    columns = [list(column) for column in zip(*rows, strict=True)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def _check_unique(path: Path, hashes: array[int]) -> None:
    """Each id once. Memory: 16 bytes per image, for as long as this takes."""
    values = np.frombuffer(hashes, dtype=np.uint64)
    ordered = np.sort(values)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    seen: dict[str, int] = {}
    listing = Listing(path)
    for shard in range(listing.shards):
        for name in listing.batch(shard).column("id").to_pylist():
            if _hash(name) in repeated:
                seen[name] = seen.get(name, 0) + 1
    twice = [name for name, count in seen.items() if count > 1]
    if twice:  # else only the hashes are equal
        shown = ", ".join(twice[:SHOWN_REPEATS]) + (", ..." if len(twice) > SHOWN_REPEATS else "")
        raise ValueError(
            f"each image must be named once, and {len(twice)} names occur more often: {shown}; remove the repeats "
            "(sort -u for a list), or choose a unique --id-column"
        )
