"""One image of a data set: its id and where its bytes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..frames import DEFAULT_FPS, DEFAULT_MAX_FRAMES
from .storage import UNKNOWN, FoundFile, relative

Kind = Literal["files", "list", "parquet", "webdataset"]
"""What a source is; "files" is a folder or a glob."""

Payload = Literal["file", "tar", "parquet"]
"""Where the bytes of all images of a source are: each in its own file, inside a tar, in a Parquet column."""


@dataclass(frozen=True)
class ClipSettings:
    """How videos and animations of a data set are scored.

    Attributes:
        videos: The source's videos are part of it.
        animations: GIF, WebP, APNG and AVIF are scored frame by frame, and not by their first frame.
        fps: As for `frames.FrameSampling`.
        max_frames: Likewise.
        aggregate: Which figure of `video.AGGREGATES` is the score.
    """

    videos: bool = False
    animations: bool = False
    fps: float = DEFAULT_FPS
    max_frames: int = DEFAULT_MAX_FRAMES
    aggregate: str = "mean"

    @property
    def any(self) -> bool:
        """Whether there may be videos or animations."""
        return self.videos or self.animations


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        id: Unique within the data set.
        uri: The file's path or URL, as shown; `#` and the member or row inside a container.
        path: What is opened; may hold bytes that are not UTF-8, as surrogates.
        offset: First byte inside a tar, or 0-based row inside a Parquet file.
        length: Bytes inside a tar, or 0-based place in the row's list of images; unknown otherwise.
        file_size: Bytes of the file at `path` when it was listed.
        modified: Last change of the file at `path` when it was listed, nanoseconds since 1970.
        problem: Why this cannot be scored; it becomes a row with this error.
        carried: Values of the columns that are carried into the result.
    """

    id: str
    uri: str
    path: str
    offset: int = 0
    length: int = UNKNOWN
    file_size: int = UNKNOWN
    modified: int = UNKNOWN
    problem: str | None = None
    carried: tuple[Any, ...] = ()

    @classmethod
    def of(cls, file: FoundFile, root: str) -> Item:
        """A whole file, named relative to a folder."""
        return cls(
            to_unicode(relative(file.path, root)), to_unicode(file.path), file.path,
            file_size=file.size, modified=file.modified, problem=file.problem,
        )  # fmt: skip


def to_unicode(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become \\x escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
