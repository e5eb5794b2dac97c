"""Data sets on a Ray cluster: Ray Data hands shards to a pool of actors, each with a model and decoding processes.

A shard is the unit of work: its actor reads, decodes, scores and writes it, so no image and no score is sent over the
network, and the driver sees counts only. When a machine goes down, Ray gives its shards to other actors; one that was
already written is recognised and kept.
"""

from __future__ import annotations

import builtins
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..files import hash_file
from ..hub import find_model
from ..scorer import RaliScorer
from .manifest import Manifest
from .score_shards import ScoringJob, open_pool, score_shards
from .shards import failed_rows, shard_path, shard_problem

if TYPE_CHECKING:
    from ray.data import Dataset

MAX_BLOCKS = 2000
"""Upper limit of Ray Data's blocks, which it keeps a record of each; beyond it, shards share blocks."""

ATTEMPTS = 3
"""Attempts at the missing shards after Ray itself gave up, without any new shard in between."""

TOKEN = "shared-folder"


def run_ray(
    job: ScoringJob,
    missing: list[int],
    report: Callable[[int, int], bool],
    *,
    model: str | None,
    batch_size: int,
    device: str | None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    cpus_per_actor: float | None = None,
) -> None:
    """Score shards on the cluster that this process is connected to, else on that of `RAY_ADDRESS`, else on a new one.

    Args:
        job: What to do; its folder must be the same folder on every machine.
        missing: 0-based numbers of the shards to make.
        report: Called with images and errors done; returning False stops.
        model: Name or file of the model; a file must exist on every machine.
        batch_size: Images per forward pass.
        device: As for `RaliScorer`.
        actors: Number of models at the same time; by default as many as fit.
        gpus_per_actor: Share of a GPU for each; by default 1 where the cluster has GPUs, else 0.
        cpus_per_actor: Processors for each; by default one more than its decoding processes.

    Raises:
        ValueError: The cluster has no machine that is large enough, or an actor's model or folder differs.
        OSError: A shard cannot be written.
        RuntimeError: Ray failed repeatedly.
    """
    import ray

    if not ray.is_initialized():
        ray.init()  # obeys RAY_ADDRESS
    on_gpu = device is None or device.startswith("cuda")
    gpus = gpus_per_actor if gpus_per_actor is not None else float(on_gpu and ray.cluster_resources().get("GPU", 0) > 0)
    cpus = cpus_per_actor if cpus_per_actor is not None else job.workers + 1.0
    fitting = _count_fitting(ray.nodes(), cpus, gpus)
    if fitting < 1:
        raise ValueError(f"no machine of the Ray cluster has {cpus:g} processors and {gpus:g} GPUs for an actor")
    token = secrets.token_hex(8)
    (job.folder / "_rali" / TOKEN).write_text(token)
    failures = 0
    while missing:
        size = min(actors or fitting, len(missing))
        shards = [{"shard": shard} for shard in missing]
        scored = ray.data.from_items(shards, override_num_blocks=min(len(missing), MAX_BLOCKS)).map_batches(
            ShardScorer,
            batch_size=1,
            num_cpus=cpus,
            num_gpus=gpus,
            # Not a fixed number: an actor that lost its machine is placed again when another one becomes idle at the
            # end.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=size, initial_size=size),
            fn_constructor_args=(job, token, model, batch_size, device),
        )
        try:
            for images, errors in _counts(scored):
                if not report(images, errors):
                    return
        except ray.exceptions.RayError as error:
            still = list(job.unfinished()[0])
            failures = failures + 1 if len(still) == len(missing) else 0
            if failures >= ATTEMPTS:
                raise RuntimeError(f"Ray failed {ATTEMPTS} times without a shard in between: {error}") from error
        missing = list(job.unfinished()[0])


class ShardScorer:
    """An actor: holds the model and the decoding processes, and scores one shard after the other.

    Args:
        job: What to do.
        token: What the driver has written into the folder.
        model: Name or file of the model.
        batch_size: Images per forward pass.
        device: As for `RaliScorer`.

    An error is returned as a row with `problem`: Ray wraps exceptions, and not in every version so that the cause can
        be
    recovered.
    """

    def __init__(self, job: ScoringJob, token: str, model: str | None, batch_size: int, device: str | None) -> None:
        self._job, self._problem = job, ""
        try:
            self._open(token, model, batch_size, device)
        except (OSError, ValueError) as error:
            self._problem = _pack(error)

    def _open(self, token: str, model: str | None, batch_size: int, device: str | None) -> None:
        job = self._job
        settings = job.manifest.settings
        there = job.folder / "_rali" / TOKEN
        if not there.is_file() or there.read_text() != token:
            raise ValueError(f"{job.folder} is not the driver's folder on every machine: it must be on shared storage")
        file = find_model(model)
        if hash_file(file) != settings.model_hash:
            raise ValueError(f"{file} is another model than the driver's on this machine")
        self._sizes = job.manifest.sizes(job.manifest.listing(job.folder))
        self._scorer = RaliScorer.from_pretrained(
            file, device=device, dtype=settings.dtype, batch_size=batch_size, coverage=settings.coverage,
            attributes=bool(settings.reasons), domain=settings.domain,
        )  # fmt: skip
        self._pool = open_pool(job, [self._scorer])

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Score the shards of a batch; returns the images and errors of each, and the error if one occurred."""
        images, errors, problems = zip(*map(self._make, batch["shard"].tolist()), strict=True)
        columns = {"images": np.array(images), "errors": np.array(errors), "problem": np.array(problems)}
        return {"shard": batch["shard"], **columns}

    def _make(self, shard: int) -> tuple[int, int, str]:
        if self._problem:
            return 0, 0, self._problem
        try:
            if self._is_there(shard):  # another actor wrote it before its machine went down
                return self._sizes[shard], 0, ""
            steps = list(score_shards(self._job, [self._scorer], self._pool, [shard]))
        except (OSError, ValueError) as error:
            self._problem = _pack(error)
            return 0, 0, self._problem
        return sum(step.images for step in steps), sum(step.errors for step in steps), ""

    def _is_there(self, shard: int) -> bool:
        path: Path = shard_path(self._job.folder, shard)
        manifest: Manifest = self._job.manifest
        if not path.exists() or shard_problem(path, manifest.run, self._sizes[shard]) is not None:
            return False
        return not (self._job.attempt and failed_rows(self._job.folder, shard, self._job.attempt))


def _counts(scored: Dataset) -> Iterator[tuple[int, int]]:
    """Images and errors of each shard, as it finishes; raises an actor's error."""
    for row in scored.iter_rows():
        if row["problem"]:
            raise _unpack(row["problem"])
        yield int(row["images"]), int(row["errors"])


def _pack(error: OSError | ValueError) -> str:
    kinds = (base for base in type(error).__mro__ if base.__module__ == "builtins")
    kind = next(kind.__name__ for kind in kinds if not issubclass(kind, UnicodeError))  # these take five arguments
    number = error.errno if isinstance(error, OSError) and len(error.args) > 1 else None
    text = str(error.args[1]) if number is not None else str(error)
    return json.dumps([kind, number, text])


def _unpack(problem: str) -> Exception:
    kind, number, text = json.loads(problem)
    error: Exception = getattr(builtins, kind)(*([] if number is None else [number]), text)
    return error


def _count_fitting(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> int:
    """The number of actors that fit on the machines that are alive."""
    count = 0
    for node in nodes:
        if node["Alive"]:
            there = node["Resources"]
            room = [there.get(name, 0.0) // need for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
            count += int(min(room, default=1))
    return count
