"""Parquet files with a column of images: their bytes, their paths, or the `{bytes, path}` of Hugging Face's sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import storage
from .items import Item, Payload, to_unicode
from .storage import FoundFile

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "image_bytes", "path", "image_path", "file", "file_name", "uri")
"""Column names that are tried, in this order, if none is given."""

BYTES_FIELDS = ("bytes", "data", "content")
PATH_FIELDS = ("path", "uri", "url", "file_name")
"""Fields of a record that hold the image, or its path."""

ROWS_AT_ONCE = 4096
LISTS_AT_ONCE = 16
"""Batch size for lists that may have to be read together with the images in them."""


class ParquetSource:
    """Parquet files that all have the same image column.

    Args:
        root: Folder that names are relative to.
        files: The files.
        image_column: Column of the images, `outer.inner` for a field of a struct; None looks for one of
            `IMAGE_COLUMNS`.
        id_column: Column of unique names; None builds them from file name and row.
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
        for column in filter(None, (id_column, *carry)):
            if column not in schema.names:
                raise ValueError(f"there is no column {column!r}; the columns are {', '.join(schema.names)}")
        self.payload: Payload = "file" if _holds_paths(_image_type(schema, self.image_column)) else "parquet"
        self.carried: list[pa.Field] = [_plain_field(schema.field(column)) for column in carry]

    def items(self) -> Iterator[Item]:
        """One item per row; one with a problem for an unusable file."""
        for file in self.files:
            whole = Item.of(file, self.root)
            if file.problem is None:
                try:
                    yield from self._rows(whole)
                    continue
                except (OSError, ValueError, KeyError) as error:
                    whole = whole._replace(problem=f"not a usable Parquet file: {error}: {to_unicode(file.path)}")
            yield whole

    def _rows(self, whole: Item) -> Iterator[Item]:
        with storage.open_binary(whole.path) as handle, open_parquet(handle) as table:
            found = table.schema_arrow
            for column in filter(None, (self.id_column, *self.carry)):
                if column not in found.names:
                    raise ValueError(f"it has no column {column!r}")
            kind = _image_type(found, self.image_column)
            if _holds_paths(kind) != (self.payload == "file"):
                holds = "paths" if self.payload == "parquet" else "images"
                raise ValueError(f"column {self.image_column!r} holds {holds} here and did not before ({kind})")
            listed = _is_list(kind)
            top = _split_column(found, self.image_column)[0]
            images = [top] if self.payload == "file" else _length_leaf(table, top) if listed else []
            wanted = [*filter(None, [self.id_column]), *self.carry]
            row, size = 0, LISTS_AT_ONCE if listed and self.payload == "parquet" else ROWS_AT_ONCE
            names = [*images, *wanted]
            for batch in table.iter_batches(size, columns=names) if names else _empty_batches(table):
                columns = {name: batch.column(name).to_pylist() for name in wanted}
                values = batch.column(top).to_pylist() if images else None
                for position in range(batch.num_rows):
                    record = {name: column[position] for name, column in columns.items()}
                    value = None if values is None else _inner(values[position], found, self.image_column)
                    if listed and value:
                        yield from (self._item(whole, row, record, one, part) for part, one in enumerate(value))
                    else:
                        yield self._item(whole, row, record, None if listed else value)
                    row += 1

    def _item(self, whole: Item, row: int, values: dict[str, Any], value: Any, part: int = storage.UNKNOWN) -> Item:
        carried = tuple(values[column] for column in self.carry)
        place = f"#{row}" if part == storage.UNKNOWN else f"#{row}.{part}"
        name = f"{whole.id}{place}"
        if self.id_column:
            name = str(values[self.id_column]) + ("" if part == storage.UNKNOWN else f".{part}")
        if self.payload == "parquet":
            return whole._replace(id=name, uri=f"{whole.uri}{place}", offset=row, length=part, carried=carried)
        path = image_content(value)
        if path is None:
            return whole._replace(
                id=name, uri=f"{whole.uri}{place}", problem="the image column is empty here", carried=carried
            )
        target = storage.find(storage.parent(whole.path), str(path))
        file = storage.stat(target)
        return Item(name, to_unicode(target), target, file_size=file.size, modified=file.modified, carried=carried)

    def _first_schema(self) -> pa.Schema:
        problems = []
        for file in self.files:
            try:
                if file.problem is not None:
                    raise OSError(file.problem)
                with storage.open_binary(file.path) as handle, open_parquet(handle) as table:
                    return table.schema_arrow
            except (OSError, ValueError) as error:
                problems.append(f"{to_unicode(file.path)}: {error}")
        raise ValueError("no readable Parquet file" + ("; " + "; ".join(problems[:3]) if problems else ""))


def open_parquet(handle: Any) -> pq.ParquetFile:
    """A Parquet file on an open file object."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(handle)


def _empty_batches(table: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Batches without columns: only the number of rows is needed."""
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


def image_content(value: Any) -> bytes | str | None:
    """The image in one value of an image column: its bytes, else its path, else None."""
    if isinstance(value, dict):
        for names in (BYTES_FIELDS, PATH_FIELDS, IMAGE_COLUMNS):
            found = next((content for name in names if (content := image_content(value.get(name)))), None)
            if found is not None:
                return found
        return None
    if isinstance(value, str):
        return value or None
    return None if value is None or isinstance(value, list) else bytes(value)  # a list: an empty one


def image_value(value: Any, schema: pa.Schema, column: str, part: int) -> Any:
    """The image in one value of the file's column: the field that `column` names, and one element of a list."""
    inner = _inner(value, schema, column)
    return inner[part] if part != storage.UNKNOWN and inner is not None else inner


def top_column(schema: pa.Schema, column: str) -> str:
    """The column of the file that holds `column`, which may name a field of a struct."""
    return _split_column(schema, column)[0]


def _split_column(schema: pa.Schema, column: str) -> tuple[str, list[str]]:
    if column in schema.names:
        return column, []
    top, *fields = column.split(".")
    if top not in schema.names or not fields:
        raise ValueError(f"there is no column {column!r}; the columns are {', '.join(schema.names)}")
    return top, fields


def _inner(value: Any, schema: pa.Schema, column: str) -> Any:
    for name in _split_column(schema, column)[1]:
        value = None if value is None else value.get(name)
    return value


def _image_type(schema: pa.Schema, column: str) -> pa.DataType:
    top, fields = _split_column(schema, column)
    kind = _plain(schema.field(top).type)
    for name in fields:
        if not _is_struct(kind) or kind.get_field_index(name) < 0:
            raise ValueError(f"there is no column {column!r}: {top!r} is {schema.field(top).type}")
        kind = kind.field(name).type
    inner = kind.value_type if _is_list(kind) else kind
    if _content_type(inner) is None:
        raise ValueError(
            f"column {column!r} is {schema.field(top).type}; expected binary (encoded images), string (paths), a "
            "struct with a field bytes or path, or a list of these"
        )
    return kind


def _content_type(kind: pa.DataType) -> str | None:
    """Whether a value holds an image ("bytes"), a path to one ("path"), or neither (None)."""
    import pyarrow.types as types

    if types.is_string(kind) or types.is_large_string(kind):
        return "path"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    if not _is_struct(kind):
        return None
    inner = {
        _content_type(kind.field(name).type)
        for name in (*BYTES_FIELDS, *PATH_FIELDS, *IMAGE_COLUMNS)
        if kind.get_field_index(name) >= 0
    }
    return "bytes" if "bytes" in inner else "path" if "path" in inner else None


def _holds_paths(kind: pa.DataType) -> bool:
    return _content_type(kind.value_type if _is_list(kind) else kind) == "path"


def _is_struct(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_struct(kind))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    tests = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(types, test)(kind) for test in tests if hasattr(types, test))  # views: from pyarrow 16 on


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without views and dictionary encoding, in which newer writers store the same values."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if getattr(types, "is_string_view", lambda _: False)(kind):
        return pa.string()
    if getattr(types, "is_binary_view", lambda _: False)(kind):
        return pa.binary()
    if _is_struct(kind):
        return pa.struct([_plain_field(kind.field(index)) for index in range(kind.num_fields)])
    if _is_list(kind) and not types.is_fixed_size_list(kind):
        return (
            pa.large_list(_plain(kind.value_type)) if types.is_large_list(kind) else pa.list_(_plain(kind.value_type))
        )
    return kind


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(_plain(field.type))


def _length_leaf(table: pq.ParquetFile, column: str) -> list[str]:
    """The leaf to read of a list column to get the lengths of its lists: not the images, if there is another."""
    paths = [table.schema.column(index).path for index in range(len(table.schema))]
    leaves = [path for path in paths if path.split(".")[0] == column]
    light = [path for path in leaves if path.split(".")[-1] in PATH_FIELDS]
    return light[:1] or [column]
