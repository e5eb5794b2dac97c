"""The description file: JSON lines of {image, description, score?, seed?, source?}, appended one by one.

Each line is on disk before the next one is started. A program that is killed while it writes leaves an incomplete
line: `read_descriptions` reports it, and `DescriptionLog` drops it and resumes after the last complete line.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..files import append_json_line

MAX_PROBLEMS = 10
"""At most so many problems of a file are listed in an error."""


@dataclass(frozen=True)
class DescriptionRecord:
    """One description of one image."""

    image: str  # the file, relative to the folder of all images, with forward slashes; or an absolute path
    description: str
    score: float | None  # in [0, 1], 1 is best
    seed: int  # distinguishes several descriptions of one image; 0, 1, ...
    source: str | None = None  # who wrote it, such as "measured"; None if the file does not say


def read_descriptions(path: str | Path, *, root: str | Path | None = None) -> list[DescriptionRecord]:
    """Read and check a description file.

    Args:
        path: JSON lines, UTF-8. Every line is an object with `image` and `description` (strings, not empty) and
            optionally `score` (number in [0, 1], or null), `seed` (integer from 0, default 0) and `source`. Other keys
            are ignored; blank lines are skipped.
        root: Folder of the images. If given, each image must exist there.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line is invalid, an image and seed occur twice, an image is missing, or the file is empty; the
            message lists the line numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no description file {path}; expected JSON lines, such as `rali describe` writes")
    records: dict[tuple[str, int], tuple[int, DescriptionRecord]] = {}
    problems: list[str] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_line(line)
            if root is not None and not (Path(root) / record.image).is_file():
                raise ValueError(f"no file {Path(root) / record.image}")
            first, _ = records.setdefault((record.image, record.seed), (number, record))
            if first != number:
                raise ValueError(f"image {record.image!r} with seed {record.seed} is already in line {first}")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        rest = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        listed = "\n  ".join(problems[:MAX_PROBLEMS] + rest)
        raise ValueError(f"{path} has {len(problems)} unusable line(s):\n  {listed}")
    if not records:
        raise ValueError(f"{path} holds no descriptions")
    return [record for _, record in records.values()]


def parse_line(line: bytes) -> DescriptionRecord:
    """One line of a description file; ValueError if it is not as `read_descriptions` requires."""
    try:
        entry: Any = json.loads(line.decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both
        raise ValueError(f"not JSON in UTF-8 ({error}); was the program killed while writing?") from None
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object {{...}}, got {type(entry).__name__}")
    values: list[Any] = [entry.get(key) for key in ("image", "description", "score", "source")]
    (image, text, score, source), seed = values, entry.get("seed", 0)
    for name, value, good, wanted in (
        ("image", image, isinstance(image, str) and image.strip(), "a non-empty string"),
        ("description", text, isinstance(text, str) and text.strip(), "a non-empty string"),
        ("score", score, score is None or (type(score) in (int, float) and 0 <= score <= 1),
         "a number in [0, 1] or left out"),
        ("seed", seed, type(seed) is int and seed >= 0, "an integer from 0"),
        ("source", source, source is None or isinstance(source, str), "a string or left out"),
    ):  # fmt: skip
        if not good:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return DescriptionRecord(image, text.strip(), None if score is None else float(score), seed, source)


def image_name(file: Path, root: Path) -> str:
    """Name of an image in a description file: its path relative to `root` if it lies inside, else its absolute path."""
    file, root = file.absolute(), root.absolute()
    return PurePosixPath(file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


class DescriptionLog:
    """A description file to write or to resume; an incomplete line at its end is dropped.

    Args:
        path: The file; created if it does not exist.
        source: Who writes. A file of another source is refused, so that one file never mixes two.

    Attributes:
        done: (image, seed) of each description in the file.

    Raises:
        ValueError: The file exists and is not a description file, or another source wrote it; it is not changed.
    """

    def __init__(self, path: str | Path, *, source: str) -> None:
        self.path, self.source = Path(path), source
        self.done: set[tuple[str, int]] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        *lines, rest = self.path.read_bytes().split(b"\n")
        start = b'{"image": '  # prefix of the next line in `write`
        try:
            if rest[: len(start)] != start[: len(rest)]:
                raise ValueError("its last line has no end, and is not an incomplete record")
            for record in (parse_line(line) for line in lines if line.strip()):
                if record.source != source:
                    raise ValueError(f"it was written by {record.source!r}, not by {source!r}")
                self.done.add((record.image, record.seed))
        except ValueError as error:
            raise ValueError(f"cannot resume {self.path}: {error}; choose another output file") from None
        if rest:
            os.truncate(self.path, self.path.stat().st_size - len(rest))

    def write(self, image: str, description: str, *, score: float | None, seed: int) -> None:
        """Write one description; it is on disk when this returns."""
        entry = {"image": image, "description": description, "seed": seed, "source": self.source}
        append_json_line(self.path, entry if score is None else {**entry, "score": round(score, 6)})
        self.done.add((image, seed))
