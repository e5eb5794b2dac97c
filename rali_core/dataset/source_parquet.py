"""Parquet files with a column of images: their bytes, their paths, or the `{bytes, path}` of Hugging Face's sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import storage
from .items import Item, Payload, readable
from .storage import FoundFile

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "image_bytes", "path", "image_path", "file", "file_name", "uri")
"""Names that are tried, in this order, where none is given."""

ROWS_AT_ONCE = 4096


class ParquetSource:
    """Parquet files that all have the same image column.

    Args:
        root: Folder that names are relative to.
        files: The files.
        image_column: Column of the images; None looks for one of `IMAGE_COLUMNS`.
        id_column: Column of unique names; None makes them of file name and row.
        carry: Columns that are copied into the result.

    Raises:
        ValueError: No readable file, or a column is missing or holds no images.
    """

    def __init__(
        self,
        root: str,
        files: Iterator[FoundFile],
        image_column: str | None,
        id_column: str | None,
        carry: tuple[str, ...],
    ) -> None:
        self.root, self.files = root, list(files)
        self.id_column, self.carry = id_column, carry
        schema = self._first_schema()
        self.image_column = image_column or _find_column(schema)
        for column in filter(None, (self.image_column, id_column, *carry)):
            if column not in schema.names:
                raise ValueError(f"there is no column {column!r}; the columns are {', '.join(schema.names)}")
        self.type = schema.field(self.image_column).type
        self.payload: Payload = "file" if _holds_paths(self.type, self.image_column) else "parquet"
        self.carried: list[pa.Field] = [schema.field(column) for column in carry]

    def items(self) -> Iterator[Item]:
        """One item per row; one with a problem for a file that cannot be used."""
        for file in self.files:
            name = storage.relative(file.path, self.root)
            whole = Item(
                readable(name), readable(file.path), file.path,
                file_size=file.size, modified=file.modified, problem=file.problem,
            )  # fmt: skip
            if file.problem is None:
                try:
                    yield from self._rows(whole)
                    continue
                except (OSError, ValueError, KeyError) as error:
                    whole = whole._replace(problem=f"not a usable Parquet file: {error}: {readable(file.path)}")
            yield whole

    def _rows(self, whole: Item) -> Iterator[Item]:
        with storage.open_binary(whole.path) as handle, open_parquet(handle) as table:
            found = table.schema_arrow
            for column in filter(None, (self.image_column, self.id_column, *self.carry)):
                if column not in found.names:
                    raise ValueError(f"it has no column {column!r}")
            if found.field(self.image_column).type != self.type:
                raise ValueError(
                    f"column {self.image_column!r} is {found.field(self.image_column).type} here and {self.type} before"
                )
            paths = [self.image_column] if self.payload == "file" else []
            wanted = [*paths, *filter(None, [self.id_column]), *self.carry]
            row = 0
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=wanted) if wanted else _empty_batches(table):
                columns = {name: batch.column(name).to_pylist() for name in wanted}
                for position in range(batch.num_rows):
                    values = {name: column[position] for name, column in columns.items()}
                    yield self._item(whole, row, values)
                    row += 1

    def _item(self, whole: Item, row: int, values: dict[str, Any]) -> Item:
        carried = tuple(values[column] for column in self.carry)
        name = str(values[self.id_column]) if self.id_column else f"{whole.id}#{row}"
        if self.payload == "parquet":
            return whole._replace(id=name, uri=f"{whole.uri}#{row}", offset=row, carried=carried)
        path = values[self.image_column]
        if path is None:
            return whole._replace(
                id=name, uri=f"{whole.uri}#{row}", problem="the image column is empty here", carried=carried
            )
        target = storage.join(storage.parent(whole.path), str(path))
        file = storage.stat(target)
        return Item(name, readable(target), target, file_size=file.size, modified=file.modified, carried=carried)

    def _first_schema(self) -> pa.Schema:
        problems = []
        for file in self.files:
            try:
                if file.problem is not None:
                    raise OSError(file.problem)
                with storage.open_binary(file.path) as handle, open_parquet(handle) as table:
                    return table.schema_arrow
            except (OSError, ValueError) as error:
                problems.append(f"{readable(file.path)}: {error}")
        raise ValueError("no readable Parquet file" + ("; " + "; ".join(problems[:3]) if problems else ""))


def open_parquet(handle: Any) -> pq.ParquetFile:
    """A Parquet file on an open file object."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(handle)


def _empty_batches(table: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Batches without columns: nothing but the number of rows is needed."""
    import pyarrow as pa

    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        yield pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))


def _find_column(schema: pa.Schema) -> str:
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            return name
    raise ValueError(
        f"none of the columns {', '.join(schema.names)} has a known name: say with --image-column which "
        "holds the images"
    )


def _holds_paths(kind: pa.DataType, column: str) -> bool:
    import pyarrow.types as types

    if types.is_string(kind) or types.is_large_string(kind):
        return True
    if types.is_binary(kind) or types.is_large_binary(kind):
        return False
    if types.is_struct(kind) and "bytes" in [kind.field(i).name for i in range(kind.num_fields)]:
        return False
    raise ValueError(
        f"column {column!r} is {kind}; expected binary (encoded images), string (paths) or a struct with a field bytes"
    )
