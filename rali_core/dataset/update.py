"""What became of a source since its images were listed: new images, and what those with an error are now."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .items import Item
from .listing import Listing, hash_id, write_listing, write_revision
from .manifest import Manifest, Settings, added_listing, missing_shards, revision
from .shards import failed_rows, shard_path
from .sources import Source, open_source

logger = logging.getLogger("rali")


def open_settings(settings: Settings) -> Source:
    """The source of a result."""
    return open_source(
        settings.source,
        kind=settings.kind,  # type: ignore[arg-type]  # open_source checks it
        image_column=settings.image_column,
        id_column=settings.id_column,
        carry=settings.carry,
        videos=settings.clips.videos,
    )


def update(folder: Path, manifest: Manifest, *, retry: bool, grow: bool) -> tuple[Manifest, int]:
    """List a source again; what is found becomes part of the result's listing.

    An id that is known keeps its row, so that each image has exactly one. Where an image has an error and is to be
    tried again, its size, time and place become those of now. A row that stood for a folder, tar or Parquet file that
    could not be read goes when that can be read.

    Args:
        folder: Of the result; locked.
        manifest: Its description.
        retry: Whether images with an error are tried again.
        grow: Whether images that are new are added.

    Returns:
        The new description, which is saved, and how many images were added.

    Raises:
        OSError: The source or the result cannot be read.
        ValueError: The source names a new image twice, or is of another kind now.
    """
    logger.info("looking for new images in %s", manifest.settings.source)
    listing = manifest.listing(folder)
    try:
        source = open_settings(manifest.settings)
    except OSError as error:
        logger.warning("new images were not looked for, since the source cannot be listed: %s", error)
        return manifest, 0
    if (source.payload, source.image_column) != (manifest.payload, manifest.image_column):
        raise ValueError(
            f"{manifest.settings.source} is of another kind than when it was listed: choose another folder"
        )
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
    """Shard and place of each image that has an error, by its id."""
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
    """The shards whose images are others now."""
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
                after.append(item)  # it is gone, which trying it will say
        if after != before:
            batches[shard] = after
    return batches
