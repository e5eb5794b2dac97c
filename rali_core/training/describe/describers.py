"""Sources of quality descriptions behind one interface, and the run that writes them to a description file."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal, Protocol

from PIL import Image

from ...images import to_picture
from .records import DescriptionLog, DescriptionRecord, JsonLines, image_name, read_descriptions
from .wording import check_known, describe_measurements, describe_score

if TYPE_CHECKING:
    from .measures import Measurements

Source = Literal["measured", "qinsight", "file", "score"]


@dataclass(frozen=True)
class DescriptionRequest:
    """One image to describe, and what is known of it.

    Attributes:
        image: Its name in the description file.
        source: A file, a PIL image, or a function that makes the PIL image when it is needed. With worker processes it
            is sent to another process, so a function must be one that `pickle` takes, such as `functools.partial` of a
            function of a module.
        score: Human score in [0, 1], 1 is best; None without one.
        distortion: Type of a known synthetic distortion, as `rali_core.training.distortions` names it.
        level: Its level, 1 (weakest) to 5; 0 without a distortion.

    Raises:
        ValueError: A score outside [0, 1], a level without a distortion, or one outside 1..5 with it.
    """

    image: str
    source: Path | Image.Image | Callable[[], Image.Image]
    score: float | None = None
    distortion: str | None = None
    level: int = 0

    def __post_init__(self) -> None:
        try:
            check_known(self.score, self.distortion, self.level)
        except ValueError as error:
            raise ValueError(f"{self.image}: {error}") from None

    def open(self) -> Image.Image:
        """The image as 8-bit RGB, upright, transparency on white.

        Raises:
            FileNotFoundError: There is no such file.
            ImageError: It is not an image that can be read.
        """
        source = self.source() if callable(self.source) else self.source
        return to_picture(source)


@dataclass(frozen=True)
class Description:
    """One description.

    Attributes:
        text: What is said about the image's quality.
        score: In [0, 1], 1 is best: the source's own, or the one of the request; None without either.
    """

    text: str
    score: float | None


class DescriptionError(ValueError):
    """A source could not describe an image.

    Attributes:
        outputs: What a model wrote instead, one string for each attempt.
    """

    def __init__(self, message: str, *, outputs: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.outputs = outputs


class Describer(Protocol):
    """A source of quality descriptions."""

    @property
    def source(self) -> str:
        """Name of the source and of what makes its texts differ; files of different sources are not mixed."""

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        """Describe the quality of one image.

        Args:
            request: The image and what is known of it; a source uses of it what it can.
            seed: Different seeds give different descriptions; the same seed gives the same one.

        Raises:
            DescriptionError: No description came out.
            FileNotFoundError: There is no such file.
            ImageError: It cannot be read.
        """


class MeasuredDescriber:
    """The `measured` source: says what is measured on the image, the known distortion and the score in words.

    Example:
        >>> from skimage import data
        >>> request = DescriptionRequest("astronaut", Image.fromarray(data.astronaut()), score=0.9)
        >>> "excellent" in MeasuredDescriber().describe(request, seed=1).text
        True
    """

    source = "measured"

    def __init__(self) -> None:
        self._last: tuple[DescriptionRequest, Measurements] | None = None

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        """See `Describer.describe`; the description's score is that of the request."""
        if self._last is None or self._last[0] is not request:  # the seeds of one image share its measurements
            from .measures import measure_image

            self._last = (request, measure_image(request.open()))
        text = describe_measurements(
            self._last[1], score=request.score, distortion=request.distortion, level=request.level, seed=seed
        )
        return Description(text, request.score)


class ScoreDescriber:
    """The `score` source: the quality word of ITU-R BT.500 for the human score, and nothing about the image.

    It is what other sources are compared with: whatever they add to the human score, this one lacks.

    Example:
        >>> ScoreDescriber().describe(DescriptionRequest("a.png", Path("a.png"), score=0.5), seed=1).text
        'The impression that the image makes is fair.'
    """

    source = "score"

    def describe(self, request: DescriptionRequest, *, seed: int = 0) -> Description:
        """See `Describer.describe`; the image is not opened.

        Raises:
            DescriptionError: The request has no score.
        """
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
        FileNotFoundError: No such file.
        ValueError: The file is not as it should be.
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

        A file is looked up by its path, any other image by the name in the request. The request's score is taken where
        the file has none.

        Raises:
            DescriptionError: The file has not that many of this image.
        """
        name = self._name(request)
        records = self._records.get(name, [])
        if not 0 <= seed < len(records):
            raise DescriptionError(f"{self.path} has {len(records)} description(s) of {name!r}, wanted number {seed}")
        record = records[seed]
        return Description(record.description, request.score if record.score is None else record.score)

    def _name(self, request: DescriptionRequest) -> str:
        file = request.source if isinstance(request.source, Path) else self.root / request.image
        return image_name(file, self.root)


def make_describer(
    source: Source,
    *,
    file: Path | None = None,
    root: Path | None = None,
    model: str | None = None,
    device: str | None = None,
    dtype: str = "bfloat16",
    max_new_tokens: int = 1024,
    attempts: int = 3,
    prompt_file: Path | None = None,
) -> Describer:
    """A source by its name.

    Args:
        source: `"measured"`, `"qinsight"`, `"file"` or `"score"`.
        file: Description file, for `"file"`.
        root: Folder that its image names are relative to; by default the folder of the file.
        model: Folder of the reasoning model or its name on the hub, for `"qinsight"`; the following are for it too.
        device: Where it runs; by default a GPU where there is one.
        dtype: `"bfloat16"`, `"float16"` or `"float32"`.
        max_new_tokens: Longest answer in tokens.
        attempts: How often it is asked before an unreadable answer counts as a failure.
        prompt_file: Text to ask with instead of the built-in question, UTF-8.

    Raises:
        ValueError: Unknown source, or what it needs is not given.
        FileNotFoundError: A file is missing.
    """
    if source == "measured":
        return MeasuredDescriber()
    if source == "score":
        return ScoreDescriber()
    if source == "file":
        if file is None:
            raise ValueError("source 'file' needs the description file to read (file=, or --from FILE.jsonl)")
        return FileDescriber(file, root=root)
    if source == "qinsight":
        if model is None:
            raise ValueError("source 'qinsight' needs a model: a folder or a name on the hub (model=, or --model)")
        from .qinsight import QInsightDescriber

        prompt = None if prompt_file is None else Path(prompt_file).read_text(encoding="utf-8")
        return QInsightDescriber(
            model, device=device, dtype=dtype, max_new_tokens=max_new_tokens, attempts=attempts, prompt=prompt
        )
    raise ValueError(f"source must be one of 'measured', 'qinsight', 'file', 'score', got {source!r}")


@dataclass(frozen=True)
class DescribeSummary:
    """What a run did, in descriptions.

    Attributes:
        written: New ones.
        kept: Those that were there already.
        failed: Those that could not be made, as (image, seed, reason).
    """

    written: int
    kept: int
    failed: tuple[tuple[str, int, str], ...]


def failures_path(output: str | Path) -> Path:
    """Where a run notes the descriptions that could not be made: beside the output, ending in .failures.jsonl."""
    return Path(output).with_suffix(".failures.jsonl")


def describe_all(
    requests: Sequence[DescriptionRequest],
    describer: Describer,
    output: str | Path,
    *,
    seeds: Iterable[int],
    workers: int = 0,
    on_done: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> DescribeSummary:
    """Write descriptions of all images with all seeds to a description file.

    What the file holds already is kept and not made again. An image that cannot be described does not end the run: the
    reason, and what a model wrote instead, is appended to `failures_path(output)`, and the next run tries it again.

    Args:
        requests: The images; their names must differ.
        describer: The source.
        output: The file to write or to resume. Its content does not depend on `workers`.
        seeds: One description of each image for each.
        workers: Processes that describe, each with one thread; 0 describes in this one. They are spawned, so a script
            needs its `if __name__ == "__main__":`. Describer and requests are sent to them and must be picklable.
        on_done: Called after each description, also after those that were there and those that failed.
        stop: Asked before each description; True ends the run.

    Raises:
        ValueError: Two requests of one name, `workers` below 0, or `output` holds something else.
        RuntimeError: A worker process died; what was written stays.
    """
    _check_names(requests)
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    seeds = tuple(dict.fromkeys(seeds))
    written = kept = 0
    failed: list[tuple[str, int, str]] = []
    with DescriptionLog(output, source=describer.source) as log:
        missing = {
            request.image: [seed for seed in seeds if (request.image, seed) not in log.done] for request in requests
        }
        outcomes = _outcomes([(request, missing[request.image]) for request in requests], describer, workers)
        try:
            for request in requests:
                for seed in seeds:
                    if stop():
                        return DescribeSummary(written, kept, tuple(failed))
                    if seed not in missing[request.image]:
                        kept += 1
                    elif isinstance(outcome := next(outcomes), Description):
                        log.write(request.image, outcome.text, score=outcome.score, seed=seed)
                        written += 1
                    else:
                        failed.append((request.image, seed, outcome.reason))
                        with JsonLines(failures_path(output)) as notes:
                            notes.append({"image": request.image, "seed": seed, **vars(outcome)})
                    on_done()
        finally:
            outcomes.close()  # ends the worker processes
    return DescribeSummary(written, kept, tuple(failed))


def _check_names(requests: Sequence[DescriptionRequest]) -> None:
    seen: set[str] = set()
    for request in requests:
        if request.image in seen:
            count = sum(other.image == request.image for other in requests)
            raise ValueError(f"each image may come once, but {request.image!r} comes {count} times")
        seen.add(request.image)


@dataclass(frozen=True)
class _Failure:
    reason: str
    outputs: tuple[str, ...]


_Outcome = Description | _Failure
_Job = tuple[DescriptionRequest, list[int]]


def _outcomes(jobs: list[_Job], describer: Describer, workers: int) -> Generator[_Outcome, None, None]:
    """What came of each request and seed, in order; without workers each is made when it is asked for."""
    if workers == 0:
        for request, seeds in jobs:
            for seed in seeds:
                yield _attempt(describer, request, seed)
        return
    jobs = [(request, seeds) for request, seeds in jobs if seeds]
    _check_sendable(jobs)
    pool = ProcessPoolExecutor(
        max(1, min(workers, len(jobs))),
        mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
        initializer=_start_worker,
        initargs=(describer,),
    )
    waiting: deque[Future[list[_Outcome]]] = deque()
    try:
        for request, seeds in jobs:
            waiting.append(pool.submit(_work, request, seeds))
            if len(waiting) >= 4 * workers:  # few at a time, for requests may hold images
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died, perhaps for lack of memory; what was written stays: run again, with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _check_sendable(jobs: list[_Job]) -> None:
    """One look at the first function, for an error of the queue itself does not say what to do."""
    for request, _ in jobs:
        if callable(request.source):
            try:
                pickle.dumps(request.source)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"the source of {request.image} cannot be sent to a worker process ({error}); expected a function "
                    "of a module or a functools.partial of one, or workers=0"
                ) from error
            return


def _attempt(describer: Describer, request: DescriptionRequest, seed: int) -> _Outcome:
    try:
        return describer.describe(request, seed=seed)
    except (ValueError, OSError) as error:  # ImageError and DescriptionError are ValueErrors
        return _Failure(str(error), error.outputs if isinstance(error, DescriptionError) else ())


_describer: Describer | None = None
"""That of a worker process."""


def _start_worker(describer: Describer) -> None:
    global _describer
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    torch.set_num_threads(1)
    _describer = describer


def _work(request: DescriptionRequest, seeds: list[int]) -> list[_Outcome]:
    assert _describer is not None
    return [_attempt(_describer, request, seed) for seed in seeds]
