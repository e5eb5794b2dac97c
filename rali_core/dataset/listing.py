"""The frozen list of a data set's images. It is written once; one batch of it is one shard.

An Arrow IPC file: batch i holds the images of shard i and can be read without the others.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_write
from .items import Item

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_REPEATS = 3
REVISED_KEY = b"rali.revised"
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
                hashes.extend(hash_id(item.id) for item in chunk)
                writer.write_batch(_to_batch(chunk, schema))
        _check_unique(temporary, hashes)
    return len(hashes)


def write_revision(path: Path, batches: dict[int, list[Item]], carried: Iterable[pa.Field] = ()) -> None:
    """Write the current images of some shards, which replace those of the `Listing`.

    Args:
        path: Where to.
        batches: The images of each shard that changed, with their carried values.
        carried: Fields of the items' carried values.
    """
    import pyarrow as pa

    sizes = json.dumps({str(shard): len(items) for shard, items in batches.items()})
    schema = listing_schema(carried).with_metadata({REVISED_KEY: sizes.encode()})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema, options=options) as writer,
    ):
        for items in batches.values():
            writer.write_batch(_to_batch(items, schema))


class Listing:
    """The images of a result: the first listing, later additions, and revisions.

    Args:
        paths: The listings, in order; shard numbers run through all of them.
        revisions: Files of `write_revision`, in order; later ones win.

    Raises:
        OSError: One cannot be read.
    """

    def __init__(self, paths: Sequence[Path], revisions: Sequence[Path] = ()) -> None:
        self._readers = [_open(path) for path in paths]
        self._places = [(reader, batch) for reader in self._readers for batch in range(int(reader.num_record_batches))]
        self._revised: dict[int, int] = {}
        for path in revisions:
            reader = _open(path)
            sizes = json.loads(reader.schema.metadata[REVISED_KEY])
            for batch, (shard, size) in enumerate(sizes.items()):
                self._places[int(shard)] = (reader, batch)
                self._revised[int(shard)] = size
        self.schema: pa.Schema = self._readers[0].schema.remove_metadata()

    @property
    def shards(self) -> int:
        """How many batches there are."""
        return len(self._places)

    def batch(self, shard: int) -> pa.RecordBatch:
        """The images of one shard as a table."""
        reader, batch = self._places[shard]
        return reader.get_batch(batch)

    def sizes(self, images: Sequence[int], shard_size: int) -> list[int]:
        """Images in each shard, without reading them.

        Args:
            images: How many each of the listings has.
            shard_size: How many a full shard has.
        """
        sizes = [min(shard_size, count - start) for count in images for start in range(0, count, shard_size)]
        for shard, size in self._revised.items():
            sizes[shard] = size
        return sizes

    def hashes(self) -> NDArray[np.uint64]:
        """(N,) sorted hashes of all ids; 8 bytes per image."""
        values = array("Q")
        for shard in range(self.shards):
            values.extend(map(hash_id, self.batch(shard).column("id").to_pylist()))
        return np.sort(np.frombuffer(values, dtype=np.uint64))

    def carried(self, shard: int) -> list[tuple[Any, ...]]:
        """The carried values of one shard's images."""
        columns = [column.to_pylist() for column in self.batch(shard).columns[ITEM_COLUMNS:]]
        return list(zip(*columns, strict=True)) if columns else [()] * self.batch(shard).num_rows

    def items(self, shard: int) -> list[Item]:
        """The images of one shard, without the carried values."""
        batch = self.batch(shard)
        columns = [batch.column(name).to_pylist() for name in Item._fields[:ITEM_COLUMNS]]
        return [
            Item(id_, uri, os.fsdecode(path), offset, length, file_size, modified, problem)
            for id_, uri, path, offset, length, file_size, modified, problem in zip(*columns, strict=True)
        ]


def _open(path: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path)))


def _to_batch(items: list[Item], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    nothing = (None,) * (len(schema) - ITEM_COLUMNS)  # a file that could not be read has no carried values
    rows = [(*item[:2], os.fsencode(item.path), *item[3:ITEM_COLUMNS], *(item.carried or nothing)) for item in items]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def hash_id(name: str) -> int:
    """A 64-bit hash of an id."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def _check_unique(path: Path, hashes: array[int]) -> None:
    """Check that each id occurs once. Memory: 16 bytes per image, temporarily."""
    values = np.frombuffer(hashes, dtype=np.uint64)
    ordered = np.sort(values)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    seen: dict[str, int] = {}
    listing = Listing([path])
    for shard in range(listing.shards):
        for name in listing.batch(shard).column("id").to_pylist():
            if hash_id(name) in repeated:
                seen[name] = seen.get(name, 0) + 1
    twice = [name for name, count in seen.items() if count > 1]
    if twice:  # otherwise only the hashes are equal
        shown = ", ".join(twice[:SHOWN_REPEATS]) + (", ..." if len(twice) > SHOWN_REPEATS else "")
        raise ValueError(
            f"each image must be named once, and {len(twice)} names occur more often: {shown}; remove the repeats "
            "(sort -u for a list), or choose a unique --id-column"
        )
