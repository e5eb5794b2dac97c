"""The pipeline of one machine: images are decoded in processes, scored in batches, and written shard by shard.

Batches never span two shards and are filled in order, so that a shard comes out the same in whichever run it is made.
Everything between the stages is bounded: memory does not grow with the number of images.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..scorer import RaliScorer
from .decode import Decoded, DecodeSettings
from .listing import Listing
from .manifest import Manifest
from .pool import DEFAULT_TIMEOUT, DecodePool
from .shards import Row, write_shard
from .storage import LISTING
from .tasks import Place, read_tasks


@dataclass(frozen=True)
class Job:
    """What an engine needs to know to make shards, also on another machine.

    Attributes:
        folder: Of the result.
        manifest: The result's description.
        workers: Decoding processes per model.
        timeout: Seconds for one image.
    """

    folder: Path
    manifest: Manifest
    workers: int
    timeout: float = DEFAULT_TIMEOUT


class Progress(NamedTuple):
    """What was done since the last one: so many images of a shard, and whether the shard is on the disk now."""

    shard: int
    images: int
    errors: int
    written: bool


class _Batch(NamedTuple):
    shard: int
    images: list[Decoded]
    last: bool


def open_pool(job: Job, scorers: Sequence[RaliScorer]) -> DecodePool[Place]:
    """The decoding processes for these models."""
    settings, first = job.manifest.settings, scorers[0]
    decoding = DecodeSettings(
        first.model.preprocess_config, first.coverage, job.manifest.payload, settings.max_pixels, settings.plugins
    )
    ahead = 2 * first.batch_size * len(scorers) + 2 * job.workers
    return DecodePool(decoding, workers=job.workers, ahead=ahead, timeout=job.timeout)


def score_shards(
    job: Job, scorers: Sequence[RaliScorer], pool: DecodePool[Place], shards: Iterable[int]
) -> Generator[Progress, None, None]:
    """Make shards.

    Args:
        job: What to do.
        scorers: One model per device, with equal batch sizes.
        pool: Of `open_pool`.
        shards: 0-based numbers of the shards.

    Yields:
        Progress after each batch; closing the generator stops the work and leaves no unfinished shard.

    Raises:
        OSError: A shard cannot be written.
        ChildProcessError: The decoding processes do not start.
    """
    settings = job.manifest.settings
    listing = Listing(job.folder / LISTING)
    tasks = read_tasks(listing, shards, job.manifest.payload, job.manifest.image_column)
    rows: list[Row] = []
    for batch, scored in _score_ordered(_batches(pool.map(tasks), scorers[0].batch_size), scorers):
        rows += scored
        if batch.last:
            write_shard(
                job.folder, batch.shard, listing.batch(batch.shard), rows,
                model_hash=settings.model_hash, run=job.manifest.run,
            )  # fmt: skip
            rows = []
        yield Progress(batch.shard, len(scored), sum(row.error is not None for row in scored), batch.last)


def score_batch(scorer: RaliScorer, images: Sequence[Decoded]) -> list[Row]:
    """Score decoded images; those with an error become rows with it.

    Raises:
        ValueError: The device's memory is too small for the batch.
    """
    try:
        results = iter(scorer.score_crops([image.crops for image in images if image.crops is not None]))
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{scorer.device} has too little memory for batches of {scorer.batch_size}: give a smaller --batch-size"
        ) from error
    rows = []
    for image in images:
        if image.crops is None:
            rows.append(Row(None, None, None, image.width, image.height, image.error))
            continue
        result = next(results)
        percentile = None if result.percentile != result.percentile else result.percentile
        rows.append(Row(result.score, result.band or None, percentile, image.width, image.height, None))
    return rows


def _batches(images: Generator[tuple[Place, Decoded], None, None], size: int) -> Generator[_Batch, None, None]:
    batch: list[Decoded] = []
    with closing(images):  # it ends with this one, and does not wait for the garbage collector
        for place, image in images:
            batch.append(image)
            if len(batch) == size or place.last:
                yield _Batch(place.shard, batch, place.last)
                batch = []


def _score_ordered(
    batches: Generator[_Batch, None, None], scorers: Sequence[RaliScorer]
) -> Generator[tuple[_Batch, list[Row]], None, None]:
    """Score batches on whichever device is free; results come in the order of the batches."""
    free: queue.SimpleQueue[RaliScorer] = queue.SimpleQueue()
    for scorer in scorers:
        free.put(scorer)

    def work(batch: _Batch) -> list[Row]:
        scorer = free.get()
        try:
            return score_batch(scorer, batch.images)
        finally:
            free.put(scorer)

    running: deque[tuple[_Batch, Future[list[Row]]]] = deque()
    with ThreadPoolExecutor(len(scorers), thread_name_prefix="rali-model") as executor:
        try:
            for batch in batches:
                running.append((batch, executor.submit(work, batch)))
                if len(running) > len(scorers):
                    first, future = running.popleft()
                    yield first, future.result()
            while running:
                first, future = running.popleft()
                yield first, future.result()
        finally:
            for _, future in running:
                future.cancel()
            batches.close()
