"""Scores by content: what the same model has scored before in the same way is not computed again.

In memory, and optionally in a file that several processes may share (SQLite; on a local disk, because SQLite's locks do
not work on network file systems). Contents are hashed by XXH3 with 128 bits: accidental collisions are negligible, but
the hash is not cryptographic.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

# sqlite3 and xxhash are imported where they are used, because ComfyUI imports this module at its start.

DEFAULT_CAPACITY = 65536
"""Scores kept in memory; an entry takes some 200 bytes."""

FILE_CAPACITY = 4_000_000
"""Scores kept in a file; an entry takes some 120 bytes."""

FILE_NAME = "rali-scores.sqlite3"
APPLICATION_ID = 0x52414C49
"""Application id of our SQLite files: "RALI"."""

BUSY_SECONDS = 60.0
"""Seconds that a process waits for another one that writes."""

TOUCH_SECONDS = 3600
"""Minimum seconds between two updates of an entry's last use, so that hits need not write."""

PARALLEL_BYTES = 2**22
"""From so many bytes on, several images are hashed at once."""

Compute = Callable[[list[Tensor]], Sequence[float]]
Key = tuple[str, bytes]
"""Namespace and digest."""


def content_key(image: Tensor) -> bytes:
    """A digest of a tensor's shape, dtype, values and order of axes in memory; it is read without being copied.

    Args:
        image: A tensor of any shape; -0.0 and 0.0 count as different, and so do equal values whose axes lie in another
            order in memory, such as (H, W, C) seen as (C, H, W).
    """
    import xxhash

    values = image.detach().cpu()
    order = sorted(range(values.ndim), key=lambda axis: (values.shape[axis] > 1, values.stride(axis)), reverse=True)
    ordered = values.permute(order)
    if not ordered.is_contiguous():  # gaps or repetitions
        order = list(range(values.ndim))
        ordered = values.contiguous()
    digest = xxhash.xxh3_128(repr((tuple(values.shape), str(values.dtype), order)).encode())
    flat = ordered.flatten()
    if flat.stride(0) != 1:  # a single value may have any
        flat = flat.clone(memory_format=torch.contiguous_format)
    digest.update(flat.view(torch.uint8).numpy().data)
    made: bytes = digest.digest()
    return made


def content_keys(images: Sequence[Tensor]) -> list[bytes]:
    """`content_key` of several images."""
    large = sum(image.numel() * image.element_size() for image in images) >= PARALLEL_BYTES
    if len(images) < 2 or not large:
        return [content_key(image) for image in images]
    with ThreadPoolExecutor(min(len(images), 4)) as pool:  # the hash releases the GIL
        return list(pool.map(content_key, images))


def bytes_key(data: bytes | bytearray | memoryview) -> bytes:
    """A digest of a file's bytes, without a tag of ours; equal to `file_key` of that file."""
    import xxhash

    from .xmp import take_tag

    digest = xxhash.xxh3_128(b"file")
    digest.update(take_tag(bytes(data), strict=False))
    made: bytes = digest.digest()
    return made


def file_key(path: str | os.PathLike[str]) -> bytes:
    """A digest of a file's content.

    Raises:
        OSError: It cannot be read.
    """
    return bytes_key(Path(path).read_bytes())


def tensors_key(tensors: Mapping[str, Tensor]) -> str:
    """A digest of named tensors, such as a model's `state_dict()`; it does not depend on their order."""
    import xxhash

    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + content_key(tensors[name]))
    made: str = digest.hexdigest()
    return made


class ScoreCache:
    """Remembers scores; the least recently used are dropped first.

    Args:
        capacity: How many scores to remember in memory, at least 1.
        folder: Where to keep them for later runs, and for other processes; created if missing.
        file_capacity: How many scores to keep there, at least 1.

    Raises:
        ValueError: A capacity is less than 1, or the folder holds something else under the cache's name.
        OSError: The folder cannot be created or written.

    Examples:
        >>> import torch
        >>> cache = ScoreCache()
        >>> cache.score([torch.zeros(3, 2, 2)], lambda images: [0.25] * len(images), namespace="model")
        [0.25]
        >>> cache.score([torch.zeros(3, 2, 2)], lambda images: 1 / 0, namespace="model")
        [0.25]
    """

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        *,
        folder: str | os.PathLike[str] | None = None,
        file_capacity: int = FILE_CAPACITY,
    ) -> None:
        for name, value in (("capacity", capacity), ("file_capacity", file_capacity)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.capacity = capacity
        self._scores: OrderedDict[Key, float] = OrderedDict()
        self._lock = Lock()
        self._file = None if folder is None else _ScoreFile(Path(folder) / FILE_NAME, file_capacity)

    def __len__(self) -> int:
        """How many scores are in memory."""
        return len(self._scores)

    def find(self, keys: Iterable[Key]) -> dict[Key, float]:
        """The scores of the known keys."""
        wanted = list(dict.fromkeys(keys))
        with self._lock:
            known = {key: self._scores[key] for key in wanted if key in self._scores}
        if self._file is not None and len(known) < len(wanted):
            found = self._file.find([key for key in wanted if key not in known])
            self._remember(found)
            known |= found
        self._remember(known)
        return known

    def put(self, scores: Mapping[Key, float]) -> None:
        """Remember scores."""
        self._remember(scores)
        if self._file is not None and scores:
            self._file.put(scores)

    def score(self, images: Sequence[Tensor], compute: Compute, *, namespace: str) -> list[float]:
        """The images' scores, computed only where they are not known.

        Args:
            images: N images.
            compute: Given the unknown images, each once, in order, returns their scores. It is not called if
                there is none. Its exceptions pass through, and nothing is remembered then.
            namespace: Everything besides the pixels that the score depends on: model, dtype, coverage.

        Returns:
            N scores in input order.
        """
        keys = [(namespace, key) for key in content_keys(images)]
        known = self.find(keys)
        unknown: dict[Key, Tensor] = {}
        for key, image in zip(keys, images, strict=True):
            if key not in known:
                unknown.setdefault(key, image)
        if unknown:
            scores = compute(list(unknown.values()))
            made = {key: float(score) for key, score in zip(unknown, scores, strict=True)}
            self.put(made)
            known |= made
        return [known[key] for key in keys]

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def _remember(self, scores: Mapping[Key, float]) -> None:
        with self._lock:
            for key, score in scores.items():
                self._scores[key] = score
                self._scores.move_to_end(key)
            while len(self._scores) > self.capacity:
                self._scores.popitem(last=False)


class _ScoreFile:
    """The scores in an SQLite file. Processes wait for each other; transactions are atomic."""

    def __init__(self, path: Path, capacity: int) -> None:
        self.path, self.capacity = path, capacity
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = -1
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as connection:
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise ValueError(f"{path} is an SQLite file of another program: name another folder for the cache")

    def find(self, keys: Sequence[Key]) -> dict[Key, float]:
        found: dict[Key, float] = {}
        now = int(time.time())
        with self._open() as connection:
            stale = []
            for key in keys:
                row = connection.execute(
                    "SELECT score, used FROM scores WHERE namespace = ? AND key = ?", key
                ).fetchone()
                if row is not None:
                    found[key] = float(row[0])
                    if now - row[1] > TOUCH_SECONDS:
                        stale.append((now, *key))
            connection.executemany("UPDATE scores SET used = ? WHERE namespace = ? AND key = ?", stale)
        return found

    def put(self, scores: Mapping[Key, float]) -> None:
        now = int(time.time())
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")  # the write lock at once: a later upgrade could be refused
            connection.executemany(
                "INSERT OR REPLACE INTO scores (namespace, key, score, used) VALUES (?, ?, ?, ?)",
                [(*key, score, now) for key, score in scores.items()],
            )
            excess = connection.execute("SELECT count(*) FROM scores").fetchone()[0] - self.capacity
            if excess > 0:
                connection.execute(
                    "DELETE FROM scores WHERE (namespace, key) IN "
                    "(SELECT namespace, key FROM scores ORDER BY used LIMIT ?)",
                    (excess + self.capacity // 20,),  # some slack, so that not every insertion has to evict
                )

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A transaction; errors of a damaged or unusable file say what to do."""
        import sqlite3

        with self._lock:
            try:
                if self._connection is None or self._process != os.getpid():  # a connection must not cross a fork
                    self._connection, self._process = self._connect(), os.getpid()
                with self._connection:
                    yield self._connection
            except sqlite3.OperationalError as error:
                raise OSError(f"the score cache {self.path} cannot be used: {error}") from error
            except sqlite3.DatabaseError as error:
                raise ValueError(
                    f"{self.path} is damaged or no score cache ({error}): delete it, or name another folder"
                ) from error

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scores (namespace TEXT, key BLOB, score REAL, used INTEGER, "
                "PRIMARY KEY (namespace, key)) WITHOUT ROWID"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS scores_used ON scores (used)")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection
