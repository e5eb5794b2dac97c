"""What several subcommands share: finding files, loading the scorer, scoring with a progress bar."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..constants import COVERAGES, DTYPE_NAMES
from ..files import is_video_name
from ._clips import ClipOptions, add_clip_arguments, clip_of, score_clip
from ._console import SLOW_SECONDS, say, shown
from ._inputs import Input, download

if TYPE_CHECKING:
    from ..scorer import ImageScore, RaliScorer

URLS_AT_ONCE = 64
DOWNLOADS = 8


def number(text: str) -> float:
    """A number of the command line: as float(), but without nan, which no score is above or below."""
    value = float(text)
    if value != value:
        raise ValueError("expected a number, got nan")
    return value


def add_path_arguments(parser: argparse.ArgumentParser) -> None:
    """`PATH...` and `--recursive`."""
    what = "image files, folders, patterns such as 'p/*.jpg', URLs; -: a list on standard input"
    parser.add_argument("paths", metavar="PATH", nargs="+", help=what)
    parser.add_argument(
        "-0", "--null", action="store_true", help="the list's names end with a null byte (find -print0)"
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="search folders inside folders as well")
    add_clip_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser, *, crops: bool = True) -> None:
    """`--model`, `--device`, `--dtype`, `--domain`, `--batch-size`, `--coverage`; with `crops`, `--full-size-crops`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME_OR_FILE", help="model name or .safetensors file (default: the bundled one)"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    group.add_argument("--dtype", default="float32", choices=DTYPE_NAMES,
                       help="arithmetic of the image encoder; auto: the fastest here (default: float32)")  # fmt: skip
    group.add_argument("--domain", metavar="KIND",
                       help="the kind of images, if it is known: photographs or generated, of the bundled model, which "
                       "then ranks them better (default: found out for each image)")  # fmt: skip
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per forward pass (default: 8)")
    group.add_argument("--coverage", choices=COVERAGES,
                       help="centre crop; crops along the longer side; these and crops at the image's own size, which "
                       "show what is seen at 100 %% zoom, of large images only (adaptive) or of all (default: the "
                       "model's own)")  # fmt: skip
    if crops:
        group.add_argument("--full-size-crops", type=int, metavar="N",
                           help="at most so many crops at the image's own size, if the coverage has any (default: "
                           "the model's own)")  # fmt: skip


def load_scorer(options: argparse.Namespace) -> RaliScorer:
    """The scorer that the model arguments ask for."""
    from ..scorer import RaliScorer

    cache = None
    if getattr(options, "cache", None) is not None:
        from ..score_cache import ScoreCache

        cache = ScoreCache(folder=options.cache)
    return RaliScorer.from_pretrained(
        options.model,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        coverage=options.coverage,
        full_size_crops=options.full_size_crops,
        cache=cache,
        attributes=getattr(options, "reasons", False),
        domain=options.domain,
    )


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """`--cache`."""
    parser.add_argument("--cache", metavar="DIR", help="remember scores by content there; several runs may share it")


class Interruption:
    """The first Ctrl-C stops between two images; the second one ends the program at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, *_: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)


def score_files(
    scorer: RaliScorer,
    files: Sequence[Input],
    clips: ClipOptions | None,
    *,
    on_result: Callable[[ImageScore], None] | None = None,
) -> tuple[list[ImageScore], bool]:
    """Score files, with a progress bar on standard error on long runs at a terminal.

    Args:
        scorer: The scorer.
        files: What to score; errors are recorded in the results, and a batch that does not
            fit into the device's memory is retried image by image.
        clips: How videos are scored, and which animations; None: all are images.
        on_result: Called with each result as it comes.

    Returns:
        The results so far, in input order, and whether Ctrl-C ended the run.
    """
    results: list[ImageScore] = []
    with Interruption() as interruption:
        stream = _stream(scorer, files, clips, lambda: interruption.requested)
        for result in _with_bar(stream, len(files)):
            results.append(result)
            video = clip_of(result)
            if video is not None and video.problem:
                say(shown(f"{files[result.index]}: {video.problem}"))
            if on_result is not None:
                on_result(result)
            if interruption.requested:
                break
    interrupted = interruption.requested and len(results) < len(files)
    if interrupted:
        say(f"stopped after {len(results)} of {len(files)} images")
    return results, interrupted


def _stream(
    scorer: RaliScorer, files: Sequence[Input], clips: ClipOptions | None, stop: Callable[[], bool]
) -> Iterator[ImageScore]:
    """Results in input order; URLs are read some at a time, into files that are removed again."""
    if not any(isinstance(file, str) for file in files):
        yield from _stream_mixed(scorer, [file for file in files if isinstance(file, Path)], clips, stop)
        return
    for start in range(0, len(files), URLS_AT_ONCE):
        part = files[start : start + URLS_AT_ONCE]
        with TemporaryDirectory(prefix="rali-") as folder:
            local, problems = _fetch(part, Path(folder))
            results = _stream_mixed(scorer, [file for file in local if file is not None], clips, stop)
            for index, (given, file) in enumerate(zip(part, local, strict=True)):
                if file is None:
                    yield _failed(start + index, problems[index])
                    continue
                if (result := next(results, None)) is None:  # stopped
                    return
                error = result.error and result.error.replace(str(file), str(given))
                yield replace(result, index=start + index, error=error)


def _fetch(files: Sequence[Input], folder: Path) -> tuple[list[Path | None], dict[int, str]]:
    problems: dict[int, str] = {}

    def fetch(numbered: tuple[int, Input]) -> Path | None:
        index, file = numbered
        if isinstance(file, Path):
            return file
        try:
            name = file.split("?")[0]
            ending = os.path.splitext(name)[1] if is_video_name(name, named=True) else ""
            return download(file, folder / f"{index}{ending}")
        except OSError as error:
            problems[index] = str(error)
            return None

    with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="rali-download") as pool:
        return list(pool.map(fetch, enumerate(files))), problems


def _stream_mixed(
    scorer: RaliScorer, files: list[Path], clips: ClipOptions | None, stop: Callable[[], bool]
) -> Iterator[ImageScore]:
    """Results of images and videos, in input order; images that follow each other are scored in batches."""
    images: list[Path] = []
    first = 0
    for index, file in enumerate([*files, None]):
        if file is not None and (clips is None or not clips.takes(file)):
            images.append(file)
            continue
        yield from (replace(result, index=first + result.index) for result in _stream_local(scorer, images, 0))
        images, first = [], index + 1
        if file is not None and clips is not None:
            result = score_clip(scorer, file, clips, stop=stop)
            if result is None:
                return
            yield replace(result, index=index)


def _stream_local(scorer: RaliScorer, files: list[Any], start: int) -> Iterator[ImageScore]:
    """Results of files; what does not fit into the device's memory is retried alone, and is an error if that fails."""
    from ..devices import is_out_of_memory

    while start < len(files):
        try:
            for result in scorer.stream(files[start:], on_error="record"):
                yield replace(result, index=start)
                start += 1
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            for index in range(start, min(start + scorer.batch_size, len(files))):
                try:
                    yield replace(next(scorer.stream([files[index]], on_error="record")), index=index)
                except (MemoryError, RuntimeError) as again:
                    if not is_out_of_memory(again):
                        raise
                    yield _failed(index, f"{scorer.device} has too little memory for this image: {files[index]}")
            start += scorer.batch_size


def _failed(index: int, reason: str) -> ImageScore:
    from ..scorer import ImageScore

    return ImageScore(index, float("nan"), "", float("nan"), reason)


def _with_bar(stream: Iterator[ImageScore], total: int) -> Iterable[ImageScore]:
    if total == 1 or not sys.stderr.isatty():
        return stream
    from tqdm import tqdm

    bar: Iterable[ImageScore] = tqdm(stream, total=total, unit="image", delay=SLOW_SECONDS, file=sys.stderr)
    return bar


def report_errors(files: Sequence[Input], results: Iterable[ImageScore]) -> int:
    """Print each image's error on standard error; returns how many there were."""
    failed = [result for result in results if result.error is not None]
    for result in failed:
        name, reason = str(files[result.index]), result.error or ""
        say(shown(reason if name in reason else f"{name}: {reason}"))
    if failed:
        say(f"{len(failed)} of {len(files)} images could not be scored")
    return len(failed)
