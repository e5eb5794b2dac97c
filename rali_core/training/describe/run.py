"""Describe many images with any source, one line at a time, so that a stopped run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .describer import Describer, DescriptionError
from .records import DescriptionLog, JsonLines


@dataclass(frozen=True)
class Task:
    """One image to describe.

    Attributes:
        image: Its name in the description file.
        path: The file.
        score: Human score in [0, 1]; None without one.
    """

    image: str
    path: Path
    score: float | None = None


@dataclass(frozen=True)
class Summary:
    """What a run did, in descriptions.

    Attributes:
        written: New ones.
        kept: Those that were there already.
        failed: Those that could not be made, with the reason, as (image, seed, reason).
    """

    written: int
    kept: int
    failed: tuple[tuple[str, int, str], ...]


def failures_path(output: str | Path) -> Path:
    """Where a run notes the descriptions that could not be made: beside the output, ending in .failures.jsonl."""
    return Path(output).with_suffix(".failures.jsonl")


def describe_all(
    tasks: Sequence[Task],
    describer: Describer,
    output: str | Path,
    *,
    seeds: Iterable[int],
    on_done: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Write descriptions of all images with all seeds to a description file.

    What the file holds already is kept and not made again. An image that cannot be described does not end the run: the
    reason, and what a model wrote instead, is appended to `failures_path(output)`, and the next run tries it again.

    Args:
        tasks: The images; their names must differ.
        describer: The source.
        output: The file to write or to go on with.
        seeds: One description of each image for each.
        on_done: Called after each description, also after those that were there and those that failed.
        stop: Asked before each description; True ends the run.

    Raises:
        ValueError: Two tasks of one name, or `output` holds something else.
    """
    names = [task.image for task in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"each image may come once, but {twice!r} comes {names.count(twice)} times")
    seeds = tuple(seeds)
    written = kept = 0
    failed: list[tuple[str, int, str]] = []
    with DescriptionLog(output, source=describer.source) as log:
        for task in tasks:
            for seed in seeds:
                if stop():
                    return Summary(written, kept, tuple(failed))
                if (task.image, seed) in log.done:
                    kept += 1
                else:
                    try:
                        description = describer.describe(task.path, score=task.score, seed=seed)
                    except (ValueError, OSError) as error:  # ImageError and DescriptionError are ValueErrors
                        failed.append((task.image, seed, str(error)))
                        _note_failure(failures_path(output), task.image, seed, error)
                    else:
                        log.write(task.image, description.text, score=description.score, seed=seed)
                        written += 1
                on_done()
    return Summary(written, kept, tuple(failed))


def _note_failure(path: Path, image: str, seed: int, error: Exception) -> None:
    outputs = list(error.outputs) if isinstance(error, DescriptionError) else []
    with JsonLines(path) as notes:
        notes.append({"image": image, "seed": seed, "reason": str(error), "outputs": outputs})
