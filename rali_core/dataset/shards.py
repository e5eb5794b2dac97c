"""The result: Parquet shards with a fixed schema, each complete or absent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..files import atomic_write
from .listing import ITEM_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

    from ..attributes import Attribute, ImageAttributes

SHARD_GLOB = "part-*.parquet"
RUN_KEY = b"rali.run"
ATTEMPT_KEY = b"rali.attempt"


class ScoredRow(NamedTuple):
    """The result of one image.

    Attributes:
        score: In the model's range, by default 0..1, higher is better; None with an error.
        band: bad, poor, fair, good or excellent; None with an error, and without calibration.
        percentile: 0..100, share of the model's reference images that score lower; None likewise.
        width: Pixels, after EXIF orientation; None where the image could not be decoded.
        height: Likewise.
        error: Why there is no score; None with one.
        reason: "no content" where the score is not the model's because the image is blank; else None.
        clip: Values of `CLIP_FIELDS` for a video; empty for an image.
        attributes: What is wrong with an image, if it was asked for; None without a score of the model's.
    """

    score: float | None
    band: str | None
    percentile: float | None
    width: int | None
    height: int | None
    error: str | None
    reason: str | None = None
    clip: tuple[int | float | str | None, ...] = ()
    attributes: ImageAttributes | None = None


CLIP_FIELDS = (
    ("frames", "int32"), ("duration", "float32"), ("mean", "float32"), ("worst_tenth", "float32"),
    ("minimum", "float32"), ("best_time", "float32"), ("worst_start", "float32"), ("worst_end", "float32"),
    ("problem", "string"),
)  # fmt: skip
"""Columns of data sets with videos or animations; null for images."""


WORDS = "words"


def reason_columns(attributes: Iterable[Attribute]) -> tuple[str, ...]:
    """Columns for what is wrong with an image: `words`, separated by commas, then the severity of each attribute."""
    return WORDS, *(attribute.name for attribute in attributes)


def shard_schema(carried: Iterable[pa.Field] = (), *, clips: bool = False, reasons: Sequence[str] = ()) -> pa.Schema:
    """Columns of every shard; those of videos, if there may be any, and carried columns come last."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("score", pa.float32()),
            pa.field("band", pa.string()),
            pa.field("percentile", pa.float32()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("error", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("model_hash", pa.string(), nullable=False),
            pa.field("scored_at", pa.timestamp("us", tz="UTC"), nullable=False),
            *(pa.field(name, getattr(pa, kind)()) for name, kind in CLIP_FIELDS if clips),
            *(pa.field(name, pa.string() if name == WORDS else pa.float32()) for name in reasons),
            *carried,
        ]
    )


def shard_path(folder: Path, shard: int) -> Path:
    """Path of a shard."""
    return folder / f"part-{shard:06d}.parquet"


def write_shard(
    folder: Path,
    shard: int,
    images: pa.RecordBatch,
    rows: Sequence[ScoredRow],
    *,
    model_hash: str,
    run: str,
    kept: tuple[pa.Table, Sequence[int]] | None = None,
    attempt: str = "",
    clips: bool = False,
    reasons: Sequence[str] = (),
) -> None:
    """Write one shard: under a temporary name, flushed to the disk, renamed.

    Args:
        folder: Folder of the shards.
        shard: 0-based number.
        images: The shard's batch of the listing.
        rows: One row per image, in its order.
        model_hash: SHA-256 of the model file.
        run: Identifier of the result that the shard belongs to.
        kept: Existing rows and their 0-based positions among `images`; `rows` are then those of the others.
        attempt: Identifier of the run that retried failed rows.
        clips: Add the columns for videos.
        reasons: Of `reason_columns`, or none.

    Raises:
        OSError: It cannot be written; no partial file remains.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    carried = list(images.schema)[ITEM_COLUMNS:]
    schema = shard_schema(carried, clips=clips, reasons=reasons)
    count, now = len(rows), datetime.now(timezone.utc)
    places = [] if kept is None else list(kept[1])
    there = set(places)
    others = [place for place in range(images.num_rows) if place not in there]
    new = images if kept is None else images.take(pa.array(others, pa.int64()))
    columns = [new.column("id"), new.column("uri")]
    columns += [
        pa.array(values, field.type)
        for values, field in zip(list(zip(*rows, strict=True))[:7], list(schema)[2:9], strict=True)
    ]
    columns += [pa.array([model_hash] * count, pa.string()), pa.array([now] * count, schema.field("scored_at").type)]
    for place, (name, _) in enumerate(CLIP_FIELDS if clips else ()):
        columns.append(pa.array([row.clip[place] if row.clip else None for row in rows], schema.field(name).type))
    told = [row.attributes and {WORDS: ", ".join(row.attributes.words), **row.attributes.values} for row in rows]
    columns += [pa.array([each and each[name] for each in told], schema.field(name).type) for name in reasons]
    columns += [new.column(field.name) for field in carried]
    metadata = {RUN_KEY: run.encode(), **({ATTEMPT_KEY: attempt.encode()} if attempt else {})}
    table = pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata))
    if kept is not None:
        order = np.argsort(np.array(places + others), kind="stable")
        there_already = kept[0]
        if "reason" not in there_already.schema.names:  # of a version without the content check
            there_already = there_already.append_column("reason", pa.nulls(there_already.num_rows, pa.string()))
        old = there_already.select(schema.names).cast(schema).replace_schema_metadata(metadata)
        table = pa.concat_tables([old, table]).take(pa.array(order)).combine_chunks()
    with atomic_write(shard_path(folder, shard)) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def failed_rows(folder: Path, shard: int, attempt: str = "") -> list[int]:
    """0-based positions of a shard's rows with an error; none if this attempt has already retried them."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(shard_path(folder, shard)) as file:
        if attempt and (file.schema_arrow.metadata or {}).get(ATTEMPT_KEY, b"").decode() == attempt:
            return []
        errors = file.read(columns=["error"]).column("error")
    return [int(place) for place in np.flatnonzero(np.asarray(errors.is_valid()))]


def shard_problem(path: Path, run: str, images: int) -> str | None:
    """Why a shard cannot be part of a result; None for a good one.

    Args:
        path: The shard.
        run: Identifier of the result.
        images: How many rows the shard must have.

    Raises:
        ValueError: It is a valid file of another result, which must not be overwritten.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            found = (file.schema_arrow.metadata or {}).get(RUN_KEY, b"").decode()
            rows = file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        return f"not a readable Parquet file: {error}"
    if found != run:
        raise ValueError(f"{path} belongs to another result: move it, or choose another folder")
    return None if rows == images else f"it has {rows} rows instead of {images}"
