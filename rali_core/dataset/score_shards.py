"""The pipeline of one machine: images are decoded in processes, scored in batches, and written shard by shard.

Batches never span two shards and are filled in order, so a shard is the same in whichever run it is scored.
All queues between the stages are bounded: memory does not grow with the number of images.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..scorer import RaliScorer
from ..video import VideoScore, as_image_score
from .decode import ClipPart, Decoded, DecodeSettings
from .manifest import Manifest, missing_shards
from .pool import DEFAULT_TIMEOUT, DecodePool
from .shards import CLIP_FIELDS, ScoredRow, failed_rows, shard_path, shard_problem, write_shard
from .tasks import ShardPosition, read_tasks

if TYPE_CHECKING:
    import pyarrow as pa

    from ..attributes import ImageAttributes


@dataclass(frozen=True)
class ScoringJob:
    """What an engine needs to score shards, also on another machine.

    Attributes:
        folder: Of the result.
        manifest: The result's description.
        workers: Decoding processes per model.
        timeout: Seconds for one image.
        attempt: Identifier of a run that retries failed rows; empty otherwise.
    """

    folder: Path
    manifest: Manifest
    workers: int
    timeout: float = DEFAULT_TIMEOUT
    attempt: str = ""

    def places(self, shard: int) -> list[int] | None:
        """Which of a shard's images to score: those with an error in a run that retries these; None for all."""
        if not self.attempt:
            return None
        listing = self.manifest.listing(self.folder)
        path, size = shard_path(self.folder, shard), self.manifest.sizes(listing)[shard]
        if not path.exists() or shard_problem(path, self.manifest.run, size) is not None:
            return None
        return failed_rows(self.folder, shard, self.attempt)

    def unfinished(self) -> tuple[dict[int, int], list[str]]:
        """The shards to score with the number of images of each, and a text for each unusable one."""
        listing = self.manifest.listing(self.folder)
        sizes = self.manifest.sizes(listing)
        missing, problems = missing_shards(self.folder, self.manifest, listing)
        for shard in (shard for shard, size in enumerate(sizes) if size == 0):
            shard_path(self.folder, shard).unlink(missing_ok=True)
        todo = {shard: sizes[shard] for shard in missing}
        if self.attempt:
            there = [shard for shard, size in enumerate(sizes) if size and shard not in todo]
            counts = {shard: len(failed_rows(self.folder, shard, self.attempt)) for shard in there}
            todo |= {shard: count for shard, count in counts.items() if count}
        return dict(sorted(todo.items())), problems


class BatchDone(NamedTuple):
    """Progress since the last one: the number of images of a shard, and whether the shard is written."""

    shard: int
    images: int
    errors: int
    written: bool


class _Batch(NamedTuple):
    shard: int
    images: list[Decoded]
    last: bool


def open_pool(job: ScoringJob, scorers: Sequence[RaliScorer]) -> DecodePool[ShardPosition]:
    """Start the decoding processes for these models."""
    settings, first = job.manifest.settings, scorers[0]
    decoding = DecodeSettings(
        first.model.preprocess_config, first.coverage, job.manifest.payload, settings.max_pixels, settings.plugins,
        settings.clips,
    )  # fmt: skip
    ahead = 2 * first.batch_size * len(scorers) + 2 * job.workers
    return DecodePool(decoding, workers=job.workers, ahead=ahead, timeout=job.timeout)


def score_shards(
    job: ScoringJob, scorers: Sequence[RaliScorer], pool: DecodePool[ShardPosition], shards: Iterable[int]
) -> Generator[BatchDone, None, None]:
    """Score shards.

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
    listing = job.manifest.listing(job.folder)
    wanted: dict[int, list[int] | None] = {}

    def places() -> Iterator[tuple[int, list[int] | None]]:
        for shard in shards:
            wanted[shard] = job.places(shard)
            yield shard, wanted[shard]

    tasks = read_tasks(listing, places(), job.manifest.payload, job.manifest.image_column)
    rows: list[ScoredRow] = []
    parts: list[ScoredPart] = []  # of the current video
    for batch, results in _score_ordered(_batches(pool.map(tasks), scorers[0].batch_size), scorers):
        scored: list[ScoredRow] = []
        for image, result in zip(batch.images, results, strict=True):
            if isinstance(result, ScoredRow):  # if a video's next part has an error, its earlier parts are discarded
                scored.append(result)
                parts = []
                continue
            parts.append(result)
            if not image.more:
                scored.append(_clip_row(scorers[0], parts, image, settings.clips.aggregate))
                parts = []
        rows += scored
        if batch.last:
            write_shard(
                job.folder, batch.shard, listing.batch(batch.shard), rows,
                model_hash=settings.model_hash, run=job.manifest.run, attempt=job.attempt,
                kept=_kept_rows(job.folder, batch.shard, wanted.pop(batch.shard)), clips=settings.clips.any,
                reasons=settings.reasons,
            )  # fmt: skip
            rows = []
        yield BatchDone(batch.shard, len(scored), sum(row.error is not None for row in scored), batch.last)


class ScoredPart(NamedTuple):
    """Scores at some of a video's sampling times, with the reason where there is none or no content, and attributes."""

    times: list[float]
    scores: list[float]
    reasons: list[str | None]
    attributes: list[ImageAttributes | None]


def _score_part(scorer: RaliScorer, image: Decoded, part: ClipPart) -> ScoredPart:
    crops = iter([] if image.crops is None else image.crops.split([count for count in part.tiles if count]))
    results = scorer.score_crops(
        [next(crops) if count else None for count in part.tiles], [_size(image)] * len(part.tiles)
    )
    made = ScoredPart([], [], [], [])
    for times, result in zip(part.times, results, strict=True):
        made.times.extend(times)
        made.scores.extend([result.score] * len(times))
        made.reasons.extend([result.error or result.reason] * len(times))
        made.attributes.extend([result.attributes] * len(times))
    return made


def _clip_row(scorer: RaliScorer, parts: list[ScoredPart], last: Decoded, aggregate: Any) -> ScoredRow:
    assert last.clip is not None
    times = np.array([time for part in parts for time in part.times])
    scores = np.array([score for part in parts for score in part.scores], dtype=np.float32)
    reasons = tuple(reason for part in parts for reason in part.reasons)
    if np.isnan(scores).all():
        return ScoredRow(
            None, None, None, last.width, last.height, reasons[0] if reasons else "no frame could be decoded"
        )
    told = tuple(each for part in parts for each in part.attributes)
    video = VideoScore(
        times, scores, reasons, max(last.clip.duration, float(times[-1])), last.clip.problem, attributes=told
    )
    result = as_image_score(video, scorer, aggregate)
    figures = video.figures()
    percentile = None if result.percentile != result.percentile else result.percentile
    return ScoredRow(
        result.score, result.band or None, percentile, last.width, last.height, None, result.reason,
        tuple(figures[name] for name, _ in CLIP_FIELDS), result.attributes,
    )  # fmt: skip


def _kept_rows(folder: Path, shard: int, tried: list[int] | None) -> tuple[pa.Table, list[int]] | None:
    """A shard's rows that were not retried, and their positions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if tried is None:
        return None
    with pq.ParquetFile(shard_path(folder, shard)) as file:
        table = file.read()
    again = set(tried)
    places = [place for place in range(table.num_rows) if place not in again]
    return table.take(pa.array(places, pa.int64())), places


def score_batch(scorer: RaliScorer, images: Sequence[Decoded]) -> list[ScoredRow]:
    """Score decoded images; those with an error become rows with it.

    If they do not fit into the device's memory, halves are tried; an image that does not fit alone has an error.
    """
    try:
        usable = [image for image in images if image.error is None]
        results = iter(scorer.score_crops([image.crops for image in usable], [_size(image) for image in usable]))
    except torch.OutOfMemoryError:
        if len(images) > 1:
            middle = len(images) // 2
            return score_batch(scorer, images[:middle]) + score_batch(scorer, images[middle:])
        reason = f"{scorer.device} has too little memory for this image"
        return [ScoredRow(None, None, None, image.width, image.height, reason) for image in images]
    rows = []
    for image in images:
        if image.error is not None:
            rows.append(ScoredRow(None, None, None, image.width, image.height, image.error))
            continue
        result = next(results)
        if result.error is not None:
            rows.append(ScoredRow(None, None, None, image.width, image.height, result.error))
            continue
        percentile = None if result.percentile != result.percentile else result.percentile
        rows.append(
            ScoredRow(
                result.score,
                result.band or None,
                percentile,
                image.width,
                image.height,
                None,
                result.reason,
                attributes=result.attributes,
            )
        )
    return rows


def _size(image: Decoded) -> tuple[int, int]:
    return image.height or 1, image.width or 1


def _batches(images: Generator[tuple[ShardPosition, Decoded], None, None], size: int) -> Generator[_Batch, None, None]:
    batch: list[Decoded] = []
    with closing(images):  # close it together with this one, without waiting for the garbage collector
        for place, image in images:
            if image.clip is not None:  # alone, since it may hold several frames
                if batch:
                    yield _Batch(place.shard, batch, False)
                    batch = []
                yield _Batch(place.shard, [image], place.last and not image.more)
                continue
            batch.append(image)
            if len(batch) == size or place.last:
                yield _Batch(place.shard, batch, place.last)
                batch = []


def _score_ordered(
    batches: Generator[_Batch, None, None], scorers: Sequence[RaliScorer]
) -> Generator[tuple[_Batch, list[ScoredRow | ScoredPart]], None, None]:
    """Score batches on whichever device is free; results come in the order of the batches."""
    free: queue.SimpleQueue[RaliScorer] = queue.SimpleQueue()
    for scorer in scorers:
        free.put(scorer)

    def work(batch: _Batch) -> list[ScoredRow | ScoredPart]:
        scorer = free.get()
        try:
            first = batch.images[0]
            if first.clip is not None:
                return [_score_part(scorer, first, first.clip)]
            return [*score_batch(scorer, batch.images)]
        finally:
            free.put(scorer)

    running: deque[tuple[_Batch, Future[list[ScoredRow | ScoredPart]]]] = deque()
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
