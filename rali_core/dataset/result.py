"""Reads a folder of scored shards in sequence, with the listing that says where the images are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import storage
from .decode import check_unchanged
from .items import Item
from .manifest import Manifest, missing_shards
from .shards import shard_path
from .tasks import ParquetRows

if TYPE_CHECKING:
    import pyarrow as pa


class ScoredDataset:
    """A folder that `score_dataset` filled.

    Attributes:
        folder: Where it is.
        manifest: What it says about itself.
        listing: All images.
        images: How many there are.
        shards: 0-based numbers of the existing shards, ascending.
        complete: Whether every image has its row.

    Args:
        folder: As for `score_dataset`.

    Raises:
        FileNotFoundError: It holds no result.
        ValueError: It is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.manifest = Manifest.load(self.folder)
        self.listing = self.manifest.listing(self.folder)
        missing = set(missing_shards(self.folder, self.manifest, self.listing)[0])
        sizes = self.manifest.sizes(self.listing)
        self.shards = [shard for shard, size in enumerate(sizes) if size and shard not in missing]
        self.complete = not missing
        self.images = sum(sizes)
        self._starts = np.cumsum([0, *(sizes[shard] for shard in self.shards)])

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The shards' tables, in order, one in memory at a time.

        Raises:
            ValueError: There is no such column.
        """
        import pyarrow.parquet as pq

        for shard in self.shards:
            with pq.ParquetFile(shard_path(self.folder, shard)) as file:
                unknown = set(columns or ()) - set(file.schema_arrow.names)
                if unknown:
                    raise ValueError(
                        f"there is no column {min(unknown)!r}; the columns are {', '.join(file.schema_arrow.names)}"
                    )
                yield file.read(columns=None if columns is None else list(columns))

    def scores(self) -> NDArray[np.float32]:
        """(N,) scores of all rows in order, NaN for errors; 4 bytes per image."""
        return self._numbers("score")

    def best_times(self) -> NDArray[np.float32]:
        """(N,) seconds of the best frame of all rows in order, NaN for images; 4 bytes per image."""
        return self._numbers("best_time") if self.manifest.settings.clips.any else np.full(self.images, np.nan, "f4")

    def _numbers(self, column: str) -> NDArray[np.float32]:
        parts = [
            table.column(column).to_numpy().astype(np.float32, copy=False) for table in self.tables([column])
        ]  # pyarrow gives NaN for null
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def items(self, positions: Sequence[int]) -> list[Item]:
        """Images by their 0-based positions among the existing rows."""
        cached: dict[int, list[Item]] = {}
        found = []
        for position in positions:
            index = int(np.searchsorted(self._starts, position, side="right")) - 1
            shard = self.shards[index]
            if shard not in cached:
                cached = {shard: self.listing.items(shard)}
            found.append(cached[shard][position - int(self._starts[index])])
        return found


class ContentReader:
    """Reads images' bytes again; a context manager.

    Attributes:
        payload: Where the bytes are.

    Args:
        manifest: Of the result.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.payload = manifest.payload
        self._stack, inner = ExitStack(), ExitStack()
        self._stack.push(inner)
        self._rows = ParquetRows(manifest.image_column or "", inner)

    def __enter__(self) -> ContentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, item: Item) -> bytes:
        """The bytes of one image file.

        Raises:
            OSError: They cannot be read, or the file changed since it was listed.
        """
        if item.problem is not None:
            raise OSError(item.problem)
        if self.payload == "parquet":
            task = self._rows.task(item)
            if task.item.problem is not None or task.content is None:
                raise OSError(task.item.problem or f"{item.uri}: the image column is empty here")
            return task.content if isinstance(task.content, bytes) else storage.read_bytes(task.content)
        check_unchanged(item)
        return storage.read_bytes(item.path, item.offset, item.length)
