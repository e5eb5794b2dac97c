"""Sources of quality descriptions behind one interface, and the run that writes them to a description file."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from ..files import append_json_line
from .records import DescriptionLog, DescriptionRecord, image_name, read_descriptions
from .request import Describer, Description, DescriptionError, DescriptionRequest
from .wording import describe_measurements, describe_score

if TYPE_CHECKING:
    from .measures import Measurements

Source = Literal["measured", "qinsight", "file", "score"]
JOBS_AHEAD = 4  # queue length per worker; short, because requests may hold images


class MeasuredDescriber:
    """The `measured` source: puts measurements of the image, the known distortion and the score into words.

    Examples:
        >>> from PIL import Image
        >>> from skimage import data
        >>> request = DescriptionRequest("astronaut", Image.fromarray(data.astronaut()), score=0.9)
        >>> "excellent" in MeasuredDescriber().describe(request, seed=1).text
        True
    """

    source = "measured"
    _last: tuple[DescriptionRequest, Measurements] | None = None  # the seeds of one image share its measurements

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        """See `Describer.describe`; the description's score is that of the request."""
        if self._last is None or self._last[0] is not request:
            from .measures import measure_image

            self._last = (request, measure_image(request.open()))
        text = describe_measurements(
            self._last[1], score=request.score, distortion=request.distortion, level=request.level, seed=seed
        )
        return Description(text, request.score)


class ScoreDescriber:
    """The `score` source: the quality word of ITU-R BT.500 for the human score, and nothing about the image.

    Examples:
        >>> ScoreDescriber().describe(DescriptionRequest("a.png", Path("a.png"), score=0.5), seed=1).text
        'The impression that the image makes is fair.'
    """

    source = "score"

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        """See `Describer.describe`; the image is not opened, but the request must have a score."""
        if request.score is None:
            raise DescriptionError(f"{request.image} has no score to put into words")
        random = Random(f"{seed}|{request.score}|{request.image}")
        return Description(describe_score(request.score, random), request.score)


class FileDescriber:
    """The `file` source: descriptions that another program wrote, such as a reasoning model on another machine.

    Args:
        path: The file, as `read_descriptions` takes it.
        root: Folder that its image names are relative to; by default the folder of the file.

    Raises:
        FileNotFoundError, ValueError: See `read_descriptions`.
    """

    def __init__(self, path: str | Path, *, root: str | Path | None = None) -> None:
        self.path = Path(path)
        self.root = Path(root) if root is not None else self.path.parent
        self.source = f"file {self.path.name}"
        self._records: dict[str, list[DescriptionRecord]] = defaultdict(list)
        for record in sorted(read_descriptions(self.path), key=lambda record: record.seed):
            self._records[image_name(self.root / record.image, self.root)].append(record)

    def count(self, request: DescriptionRequest) -> int:
        """How many descriptions of this image there are."""
        return len(self._records.get(self._name(request), ()))

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        """The image's description number `seed`, counted from 0 in the order of the file's seeds.

        A file is looked up by its path, any other image by the name in the request. The request's score is used if
        the file has none.
        """
        if not 0 <= seed < self.count(request):
            found = f"{self.count(request)} description(s) of {self._name(request)!r}"
            raise DescriptionError(f"{self.path} has {found}, wanted number {seed}")
        record = self._records[self._name(request)][seed]
        return Description(record.description, request.score if record.score is None else record.score)

    def _name(self, request: DescriptionRequest) -> str:
        file = request.source if isinstance(request.source, Path) else self.root / request.image
        return image_name(file, self.root)


def make_describer(
    source: Source, *, file: Path | None = None, root: Path | None = None, model: str | None = None,
    prompt_file: Path | None = None, **options: Any,
) -> Describer:  # fmt: skip
    """A source by its name.

    Args:
        source: `"measured"`, `"qinsight"`, `"file"` or `"score"`.
        file, root: See `FileDescriber`.
        model, options: See `QInsightDescriber`.
        prompt_file: Text to ask the model with instead of the built-in question, UTF-8.

    Raises:
        ValueError: Unknown source, or a missing option that it needs.
        FileNotFoundError: A file is missing.
    """
    if source in ("measured", "score"):
        return MeasuredDescriber() if source == "measured" else ScoreDescriber()
    if source == "file":
        if file is None:
            raise ValueError("source 'file' needs the description file to read (file=, or --from FILE.jsonl)")
        return FileDescriber(file, root=root)
    if source == "qinsight":
        if model is None:
            raise ValueError("source 'qinsight' needs a model: a folder or a name on the hub (model=, or --model)")
        from .qinsight import QInsightDescriber

        prompt = None if prompt_file is None else Path(prompt_file).read_text(encoding="utf-8")
        return QInsightDescriber(model, prompt=prompt, **options)
    raise ValueError(f"source must be one of 'measured', 'qinsight', 'file', 'score', got {source!r}")


@dataclass(frozen=True)
class DescribeSummary:
    """How many descriptions a run wrote and kept, and the failures, as (image, seed, reason)."""

    written: int
    kept: int
    failed: tuple[tuple[str, int, str], ...]


def failures_path(output: str | Path) -> Path:
    """The file of a run's failures: beside the output, ending in .failures.jsonl."""
    return Path(output).with_suffix(".failures.jsonl")


def describe_all(
    requests: Sequence[DescriptionRequest], describer: Describer, output: str | Path, *, seeds: Iterable[int],
    workers: int = 0, on_done: Callable[[], None] = lambda: None, stop: Callable[[], bool] = lambda: False,
) -> DescribeSummary:  # fmt: skip
    """Write descriptions of all images with all seeds to a description file.

    Existing descriptions are kept. An image that cannot be described does not end the run: the reason, and the model's
    outputs, are appended to `failures_path(output)`, and the next run retries it.

    Args:
        requests: The images; their names must differ.
        describer: The source.
        output: The file to write or to resume. Its content does not depend on `workers`.
        seeds: One description of each image for each seed.
        workers: Processes for the `measured` source, 0 for none; other sources describe in this process. They are
            spawned, so a script needs its `if __name__ == "__main__":`.
        on_done: Called after each description, also for existing and failed ones.
        stop: Called before each description; True ends the run.

    Raises:
        ValueError: Two requests of one name, `workers` below 0, or `output` holds something else.
        RuntimeError: A worker process died; what was written is kept.
    """
    twice = [f"{name!r} comes {count} times" for name, count in Counter(r.image for r in requests).items() if count > 1]
    if twice:
        raise ValueError(f"each image may come once, but {twice[0]}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    seeds = tuple(dict.fromkeys(seeds))
    log = DescriptionLog(output, source=describer.source)
    jobs = [(request, [seed for seed in seeds if (request.image, seed) not in log.done]) for request in requests]
    written = kept = 0
    failed: list[tuple[str, int, str]] = []
    with closing(_outcomes(jobs, describer, workers)) as outcomes:  # closing it ends the worker processes
        for request, missing in jobs:
            for seed in seeds:
                if stop():
                    return DescribeSummary(written, kept, tuple(failed))
                if seed not in missing:
                    kept += 1
                elif isinstance(outcome := next(outcomes), Description):
                    log.write(request.image, outcome.text, score=outcome.score, seed=seed)
                    written += 1
                else:
                    failed.append((request.image, seed, outcome["reason"]))
                    append_json_line(failures_path(output), {"image": request.image, "seed": seed, **outcome})
                on_done()
    return DescribeSummary(written, kept, tuple(failed))


_Outcome = Description | dict[str, Any]
"""A failure as a record of the failures file."""


def _outcomes(
    jobs: list[tuple[DescriptionRequest, list[int]]], describer: Describer, workers: int
) -> Generator[_Outcome, None, None]:
    """The outcome of each request and seed, in order; without workers lazily."""
    if workers == 0 or not isinstance(describer, MeasuredDescriber):
        yield from (_attempt(describer, request, seed) for request, seeds in jobs for seed in seeds)
        return
    # Spawned, because a fork of a process with threads may hang; Ctrl-C is for the parent, which ends its workers.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    begun = (pool.submit(_work, _pickle(*job)) for job in jobs if job[1])
    try:
        waiting = deque(islice(begun, JOBS_AHEAD * workers))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(islice(begun, 1))
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died, perhaps for lack of memory; what was written is kept: run again, with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pickle(request: DescriptionRequest, seeds: list[int]) -> bytes:
    try:
        return pickle.dumps((request, seeds))
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # the pool's error does not say what to do
        raise ValueError(
            f"the source of {request.image} cannot be sent to a worker process ({error}); expected a function of a "
            "module or a functools.partial of one, or workers=0"
        ) from error


def _work(job: bytes) -> list[_Outcome]:
    request, seeds = pickle.loads(job)
    describer = MeasuredDescriber()
    return [_attempt(describer, request, seed) for seed in seeds]


def _attempt(describer: Describer, request: DescriptionRequest, seed: int) -> _Outcome:
    try:
        return describer.describe(request, seed=seed)
    except (ValueError, OSError) as error:  # ImageError and DescriptionError are ValueErrors
        return {"reason": str(error), "outputs": list(getattr(error, "outputs", ()))}
