"""Updates the listing of a source: new images, and the current state of those with an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..content_hints import import_plugins
from .items import Item
from .listing import Listing, hash_id, write_listing, write_revision
from .manifest import Manifest, RunSettings, added_listing, missing_shards, revision
from .shards import failed_rows, shard_path
from .sources import Source, open_source

logger = logging.getLogger("rali")


def open_settings(settings: RunSettings) -> Source:
    """The source of a result.

    Raises:
        ValueError: A plugin of Pillow cannot be imported; others as for `open_source`.
    """
    import_plugins(settings.plugins)  # they say which endings are images
    return open_source(
        settings.source,
        kind=settings.kind,  # type: ignore[arg-type]  # open_source checks it
        image_column=settings.image_column,
        id_column=settings.id_column,
        carry=settings.carry,
        videos=settings.clips.videos,
    )


def update(folder: Path, manifest: Manifest, *, retry: bool, grow: bool) -> tuple[Manifest, int]:
    """List a source again; what is new becomes part of the result's listing.

    An id that is known keeps its row, so that each image has exactly one. For an image with an error that is
    retried, the current size, time and location are taken over. A row that stands for an unreadable folder, tar or
    Parquet file is removed once that can be read.

    Args:
        folder: Of the result; locked.
        manifest: Its description.
        retry: Whether images with an error are retried.
        grow: Whether images that are new are added.

    Returns:
        The new manifest, which is saved, and the number of images added.

    Raises:
        OSError: The source or the result cannot be read.
        ValueError: The source names a new image twice, or its kind has changed.
    """
    logger.info("looking for new images in %s", manifest.settings.source)
    listing = manifest.listing(folder)
    try:
        source = open_settings(manifest.settings)
    except OSError as error:
        logger.warning("new images were not searched for, since the source cannot be listed: %s", error)
        return manifest, 0
    if (source.payload, source.image_column) != (manifest.payload, manifest.image_column):
        raise ValueError(f"{manifest.settings.source} has another kind than when it was listed: choose another folder")
    failed = _failed(folder, manifest, listing) if retry else {}
    now: dict[str, Item] = {}
    known = listing.hashes()
    new = _unknown(source.items, known, failed, now)
    name = folder / added_listing(len(manifest.added) + 1)
    added = 0
    if grow:
        added = write_listing(name, new, manifest.settings.shard_size, source.carried)
    else:
        for _ in new:
            pass
    if line := source.survey.describe_left_out():
        logger.info("%s", line)
    if not added:
        name.unlink(missing_ok=True)
    batches = _revise(listing, failed, now)
    if batches:
        write_revision(folder / revision(manifest.revisions + 1), batches, source.carried)
    if added or batches:
        manifest = replace(
            manifest,
            added=(*manifest.added, added) if added else manifest.added,
            revisions=manifest.revisions + bool(batches),
        )
        manifest.save(folder)
    if added:
        logger.info("%s new images", f"{added:,}")
    return manifest, added


def _failed(folder: Path, manifest: Manifest, listing: Listing) -> dict[str, tuple[int, int]]:
    """Shard and position of each image with an error, by its id."""
    missing = set(missing_shards(folder, manifest, listing)[0])
    failed = {}
    for shard in range(listing.shards):
        if shard_path(folder, shard).exists() and shard not in missing and (places := failed_rows(folder, shard)):
            ids = listing.batch(shard).column("id").to_pylist()
            failed.update({ids[place]: (shard, place) for place in places})
    return failed


def _unknown(
    items: Iterator[Item], known: NDArray[np.uint64], failed: dict[str, tuple[int, int]], now: dict[str, Item]
) -> Iterator[Item]:
    """The items whose id is not known; those with an error are noted in `now`."""
    for item in items:
        value = hash_id(item.id)
        place = int(np.searchsorted(known, np.uint64(value)))
        if place == len(known) or int(known[place]) != value:
            yield item
        elif item.id in failed:
            now[item.id] = item


def _revise(listing: Listing, failed: dict[str, tuple[int, int]], now: dict[str, Item]) -> dict[int, list[Item]]:
    """The shards whose images have changed."""
    places: dict[int, dict[int, str]] = {}
    for name, (shard, place) in failed.items():
        places.setdefault(shard, {})[place] = name
    batches = {}
    for shard, names in sorted(places.items()):
        carried = listing.carried(shard)
        before = [item._replace(carried=values) for item, values in zip(listing.items(shard), carried, strict=True)]
        after = []
        for place, item in enumerate(before):
            current = now.get(names.get(place, ""))
            if current is not None:
                after.append(current._replace(carried=current.carried or item.carried))
            elif place not in names or item.problem is None:
                after.append(item)  # it was deleted; scoring it reports that
        if after != before:
            batches[shard] = after
    return batches
