"""Scores a data set: start or resume, choose the engine, summarise."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..attributes import from_metadata, no_probes
from ..checkpoint import read_metadata
from ..constants import Coverage, DtypeName
from ..files import hash_file
from ..frames import DEFAULT_FPS, DEFAULT_MAX_FRAMES, FrameSampling, check_pyav
from ..hub import find_model
from ..model import find_domain
from ..scorer import ProgressCallback, RaliScorer
from ..video import AGGREGATES, Aggregate
from . import storage
from .decode import DEFAULT_MAX_PIXELS
from .items import ClipSettings, Kind
from .listing import write_listing
from .manifest import Manifest, RunSettings, locked, missing_shards
from .pool import DEFAULT_TIMEOUT
from .score_shards import ScoringJob, open_pool, score_shards
from .shards import SHARD_GLOB, reason_columns
from .storage import LISTING, MANIFEST
from .update import open_settings, update

Engine = Literal["local", "ray"]

logger = logging.getLogger("rali")

DEFAULT_SHARD_SIZE = 512
"""Images per shard: what a killed run has to repeat at most, per model."""


@dataclass(frozen=True)
class DatasetResult:
    """What a run did.

    Attributes:
        folder: Of the result.
        images: Number of images in the data set.
        done: Number of them in the result now; all unless `stopped`.
        scored_now: Number of them that this run scored, retries included.
        errors_now: Number of these with an error.
        repaired: A text for each shard that was unusable and was re-scored.
        stopped: The progress callback ended the run; another run resumes it.
        added: Number of images that are new in the source.
    """

    folder: Path
    images: int
    done: int
    scored_now: int
    errors_now: int
    repaired: tuple[str, ...] = ()
    stopped: bool = False
    added: int = 0


def score_dataset(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    engine: Engine = "local",
    kind: Kind | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    carry: Iterable[str] = (),
    model: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: DtypeName = "float32",
    batch_size: int = 8,
    coverage: Coverage | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    workers: int | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    plugins: Iterable[str] = (),
    retry_errors: bool = False,
    videos: bool = False,
    animations: bool = False,
    fps: float = DEFAULT_FPS,
    max_frames: int = DEFAULT_MAX_FRAMES,
    aggregate: Aggregate = "mean",
    reasons: bool = False,
    domain: str | None = None,
    progress: ProgressCallback | None = None,
    **ray_options: Any,
) -> DatasetResult:
    """Score all images of a data set into a folder of Parquet shards, or resume an earlier run.

    A stopped run resumes with the images that were listed at its start. After a complete run the source is listed
    again, and what is new there is scored.

    Args:
        source: See `sources.open_source`.
        folder: A local folder for the result; with Ray on several machines one that all of them share.
        engine: `"local"`: this machine; `"ray"`: Ray Data, on the cluster of `RAY_ADDRESS`.
        kind: What the source is, if its name does not say it.
        image_column: Parquet: column of the images.
        id_column: Parquet: column of unique names.
        carry: Parquet: columns that are copied into the result.
        model: As for `RaliScorer.from_pretrained`.
        device: Where to compute, several separated by commas; by default all CUDA GPUs, else as `RaliScorer` chooses.
        dtype: Of the image encoder; not `"auto"`.
        batch_size: Images per forward pass.
        coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"`; by default the model's own setting.
        shard_size: Images per shard.
        workers: Decoding processes, by default half of the processors, and nearly all of them beside a GPU; with Ray
            per actor, by default one.
        timeout: Seconds after which an image is given up.
        max_pixels: Larger images are errors; by default Pillow's limit of 179 megapixels.
        plugins: Modules that register further image formats with Pillow when they are imported.
        retry_errors: Retry the images that have an error, as they are now; the other rows stay unchanged.
        videos: Score the source's videos as well (PyAV, the extra `video`).
        animations: Score GIF, WebP, APNG and AVIF frame by frame, and not by their first frame.
        fps: Frames of a video that are scored per second; 0: all.
        max_frames: At most so many of a video, spread evenly.
        aggregate: Which figure over its frames is a video's score.
        reasons: Add columns for what is wrong with each image: `words`, and the severity of each attribute of the
            model; null for videos.
        domain: What kind of images these are, such as `"photographs"`, see `RaliScorer`.
        progress: Called after each batch with (done, total); returning False stops.
        **ray_options: See `engine_ray.run_ray`.

    Raises:
        FileNotFoundError: No such source or model.
        ValueError: An option is out of range, differs from the first run's, the source names an image twice, the model
            does not know the domain, or reasons are asked of a model without probes.
        OSError: The folder cannot be written or is in use; finished shards are kept, and another run resumes.
        ModuleNotFoundError: A package of the extras `dataset` or `ray` is missing.

    Examples:
        >>> score_dataset("photos/", "photos-scored/").done  # doctest: +SKIP
        100000
    """
    _check_choices(engine, dtype, aggregate, ray_options)
    _check_sizes(shard_size, max_pixels, batch_size)
    FrameSampling(fps, max_frames)  # checks them
    clips = ClipSettings(videos, animations, fps, max_frames, aggregate) if videos or animations else ClipSettings()
    if videos:
        check_pyav()
    if storage.is_url(os.fspath(folder)):
        raise ValueError(f"the result needs a local folder (a mounted one will do), got {os.fspath(folder)}")
    folder = Path(folder).expanduser().absolute()
    model_file = find_model(model)
    metadata = read_metadata(model_file)
    settings = RunSettings(
        source=storage.normalise(os.fspath(source)), kind=kind, image_column=image_column, id_column=id_column,
        carry=tuple(carry), model_name=metadata["name"], model_hash=hash_file(model_file), dtype=dtype,
        coverage=coverage or metadata["coverage"], shard_size=shard_size, max_pixels=max_pixels, plugins=tuple(plugins),
        clips=clips, reasons=_reason_columns(metadata) if reasons else (),
        domain=find_domain(metadata.get("domains", {}), domain),
    )  # fmt: skip
    with locked(folder):
        manifest, added = _begin_or_resume(folder, settings, retry_errors)
        attempt = uuid.uuid4().hex if retry_errors else ""
        job = ScoringJob(folder, manifest, workers or _default_workers(engine, device), timeout, attempt)
        todo, repaired = job.unfinished()
        total = sum(manifest.sizes(manifest.listing(folder)))
        run = RunProgress(total, sum(todo.values()), progress)
        if run.report(0, 0) and todo:
            if engine == "ray":
                from .engine_ray import run_ray

                name = os.fspath(model) if model is not None else None
                run_ray(job, list(todo), run.report, model=name, batch_size=batch_size, device=device, **ray_options)
            else:
                devices: list[str | None] = [*device.split(",")] if device else _default_devices()
                scorers = [
                    RaliScorer.from_pretrained(
                        model_file,
                        device=name,
                        dtype=dtype,
                        batch_size=batch_size,
                        coverage=coverage,
                        attributes=reasons,
                        domain=domain,
                    )
                    for name in devices
                ]
                with open_pool(job, scorers) as pool, closing(score_shards(job, scorers, pool, list(todo))) as steps:
                    for step in steps:
                        if not run.report(step.images, step.errors):
                            break
        left = sum(job.unfinished()[0].values())
    scored_now = sum(todo.values()) - left
    return DatasetResult(folder, total, total - left, scored_now, run.errors, tuple(repaired), bool(left), added)


def _check_sizes(shard_size: int, max_pixels: int, batch_size: int) -> None:
    if shard_size < 1 or max_pixels < 1 or batch_size < 1:
        raise ValueError(
            f"shard_size, max_pixels and batch_size must be at least 1, got {shard_size}, {max_pixels}, {batch_size}"
        )


def _check_choices(engine: str, dtype: str, aggregate: str, ray_options: Mapping[str, Any]) -> None:
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}, got {aggregate!r}")
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be local or ray, got {engine!r}")
    if engine == "local" and ray_options:
        raise ValueError(f"these options belong to the engine ray: {', '.join(ray_options)}")
    if dtype == "auto":
        raise ValueError("dtype='auto' differs between machines, and a data set's scores must not: name one")


def _reason_columns(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    if "attributes" not in metadata:
        raise no_probes(metadata["name"])
    return reason_columns(from_metadata(metadata["attributes"]))


class RunProgress:
    """Counts and reports progress; knows when to stop."""

    def __init__(self, total: int, todo: int, progress: ProgressCallback | None) -> None:
        self.total, self.done, self._progress = total, total - todo, progress
        self.errors = 0

    def report(self, images: int, errors: int) -> bool:
        """Report progress; False if the caller wants to stop."""
        self.done += images
        self.errors += errors
        return self._progress is None or self._progress(self.done, self.total) is not False


def _begin_or_resume(folder: Path, settings: RunSettings, retry: bool) -> tuple[Manifest, int]:
    """The result's manifest, and the number of images just added to it."""
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder)
        manifest.check_settings(settings)
        complete = not missing_shards(folder, manifest, manifest.listing(folder))[0]
        if not complete and not retry:
            return manifest, 0
        return update(folder, manifest, retry=retry, grow=complete)
    there = next(folder.glob(SHARD_GLOB), None)
    if there is not None:
        raise ValueError(f"{folder} holds {there.name}, but no result of `rali dataset score`: choose another folder")
    logger.info("listing the images of %s", settings.source)
    source = open_settings(settings)
    images = write_listing(folder / LISTING, source.items, settings.shard_size, source.carried)
    if line := source.survey.describe_left_out():
        logger.info("%s", line)
    if images == 0:
        raise FileNotFoundError(f"no images in {settings.source}")
    manifest = Manifest.create(settings, source.payload, source.image_column, images)
    manifest.save(folder)
    return manifest, 0


def _default_devices() -> list[str | None]:
    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [None]


def _default_workers(engine: Engine, device: str | None) -> int:
    if engine == "ray":
        return 1  # each takes a processor of the cluster, whose machines are not known here
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return max(count - 1 if on_gpu else count // 2, 1)
