"""The description file: JSON lines of {image, description, score?, seed?, source?}, appended one by one.

Each line is on disk before the next one is begun. A program that is killed while it writes leaves a line without a line
end: `read_descriptions` reports it, and `DescriptionLog` drops it and resumes after the last whole line.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_PROBLEMS = 10
"""At most so many problems of a file are listed in an error."""


@dataclass(frozen=True)
class DescriptionRecord:
    """One description of one image.

    Attributes:
        image: The image file, relative to the folder of all images, with forward slashes; or an absolute path.
        description: What is said about its quality.
        score: In [0, 1], 1 is best; None if there is none.
        seed: Tells several descriptions of one image apart; 0, 1, ...
        source: Who wrote it, such as `"measured"`; None if the file does not say.
    """

    image: str
    description: str
    score: float | None
    seed: int
    source: str | None = None


def read_descriptions(path: str | Path, *, root: str | Path | None = None) -> list[DescriptionRecord]:
    """Read and check a description file.

    Args:
        path: JSON lines, UTF-8. Every line is an object with `image` and `description` (strings, not empty) and
            optionally `score` (number in [0, 1], or null), `seed` (integer from 0, default 0) and `source`. Other keys
            are ignored; blank lines are skipped.
        root: Folder of the images. If given, each image must exist there.

    Returns:
        The records, in file order.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line is invalid, an image and seed occur twice, an image is missing, or the file is empty; the
            message lists the line numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no description file {path}; expected JSON lines, such as `rali describe` writes")
    records: list[DescriptionRecord] = []
    problems: list[str] = []
    seen: dict[tuple[str, int], int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_line(line)
            if root is not None and not (Path(root) / record.image).is_file():
                raise ValueError(f"no file {Path(root) / record.image}")
            first = seen.setdefault((record.image, record.seed), number)
            if first != number:
                raise ValueError(f"image {record.image!r} with seed {record.seed} is already in line {first}")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
        else:
            records.append(record)
    if problems:
        rest = len(problems) - MAX_PROBLEMS
        listed = "\n  ".join(problems[:MAX_PROBLEMS]) + (f"\n  and {rest} more" if rest > 0 else "")
        raise ValueError(f"{path} has {len(problems)} unusable line(s):\n  {listed}")
    if not records:
        raise ValueError(f"{path} holds no descriptions")
    return records


def parse_line(line: bytes) -> DescriptionRecord:
    """Check one line of a description file.

    Raises:
        ValueError: It is not as `read_descriptions` describes it.
    """
    try:
        entry: Any = json.loads(line.decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both
        raise ValueError(f"not JSON in UTF-8 ({error}); was the program killed while writing?") from None
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object {{...}}, got {type(entry).__name__}")
    for key in ("image", "description"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f"{key} must be a non-empty string, got {entry.get(key)!r}")
    score, seed, source = entry.get("score"), entry.get("seed", 0), entry.get("source")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
        raise ValueError(f"score must be a number in [0, 1] or left out, got {score!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer from 0, got {seed!r}")
    if source is not None and not isinstance(source, str):
        raise ValueError(f"source must be a string or left out, got {source!r}")
    return DescriptionRecord(
        entry["image"], entry["description"].strip(), None if score is None else float(score), seed, source
    )


def image_name(file: Path, root: Path) -> str:
    """Name of an image in a description file: its path relative to `root` if it lies inside, else its absolute path."""
    file, root = file.absolute(), root.absolute()
    return PurePosixPath(file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


class JsonLines:
    """A crash-safe file of JSON lines, opened for appending; an incomplete line at its end is dropped."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = self.path.open("ab+")
        self.file.seek(0)
        content = self.file.read()
        whole = content.rfind(b"\n") + 1
        self.dropped = len(content) - whole
        """Bytes of an incomplete line that were dropped."""
        if self.dropped:
            self.file.truncate(whole)
        self.lines = [line for line in content[:whole].split(b"\n") if line.strip()]
        """The lines that the file held when it was opened."""

    def append(self, entry: dict[str, Any]) -> None:
        """Write one line; it is on disk when this returns."""
        self.file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


class DescriptionLog(JsonLines):
    """A description file opened for writing or resuming.

    Args:
        path: The file; created if it does not exist.
        source: Who writes. A file of another source is refused, so that one file never mixes two.

    Raises:
        ValueError: The file exists and is not a description file, or another source wrote it.
    """

    def __init__(self, path: str | Path, *, source: str) -> None:
        super().__init__(path)
        self.source = source
        self.done: set[tuple[str, int]] = set()
        """(image, seed) of each description in the file."""
        try:
            for record in map(parse_line, self.lines):
                if record.source != source:
                    raise ValueError(f"it was written by {record.source!r}, not by {source!r}")
                self.done.add((record.image, record.seed))
        except ValueError as error:
            self.file.close()
            raise ValueError(f"cannot resume {self.path}: {error}; choose another output file") from None

    def write(self, image: str, description: str, *, score: float | None, seed: int) -> None:
        """Write one description."""
        entry: dict[str, Any] = {"image": image, "description": description, "seed": seed, "source": self.source}
        if score is not None:
            entry["score"] = round(score, 6)
        self.append(entry)
        self.done.add((image, seed))
