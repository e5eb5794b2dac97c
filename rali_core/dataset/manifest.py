"""A result folder's manifest: which source, model and options, so that a second run can resume it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..constants import Coverage, DtypeName
from ..files import atomic_write, remove_leftovers
from .items import ClipSettings, Payload
from .listing import Listing
from .shards import SHARD_GLOB, shard_path, shard_problem
from .storage import LISTING, MANIFEST

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunSettings:
    """The settings that determine the rows of a result; a second run must use the same.

    Attributes:
        source: Where the images are.
        kind: "files", "list", "parquet", "webdataset"; None if it follows from the source.
        image_column: Parquet column of the images, None for the usual names.
        id_column: Parquet column of the ids, None for file and row.
        carry: Parquet columns copied into the result.
        model_name: Name stored in the model file.
        model_hash: SHA-256 of the model file.
        dtype: Arithmetic of the image encoder.
        coverage: "center", "tiles", "adaptive" or "full".
        shard_size: Images per shard.
        max_pixels: Larger images are errors.
        plugins: Modules that teach Pillow further formats.
        clips: How videos and animations are scored.
        reasons: Columns for what is wrong with each image, see `shards.reason_columns`; empty without them.
        domain: The kind of images that was told, None for what the model finds out.
    """

    source: str
    kind: str | None
    image_column: str | None
    id_column: str | None
    carry: tuple[str, ...]
    model_name: str
    model_hash: str
    dtype: DtypeName
    coverage: Coverage
    shard_size: int
    max_pixels: int
    plugins: tuple[str, ...]
    clips: ClipSettings = field(default_factory=ClipSettings)
    reasons: tuple[str, ...] = ()
    domain: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A result folder's description.

    Attributes:
        run: Identifier that every shard carries.
        settings: What the rows depend on.
        payload: Where the images' bytes are.
        image_column: The column of them that was found in a Parquet source.
        images: How many there are in the first listing.
        created: When the listing was made, ISO 8601.
        added: Number of images of each later listing, which hold what was new in the source.
        revisions: Number of revision files, which hold the state of images that were retried.
    """

    run: str
    settings: RunSettings
    payload: Payload
    image_column: str | None
    images: int
    created: str
    added: tuple[int, ...] = ()
    revisions: int = 0

    def listing(self, folder: Path) -> Listing:
        """The images of the result."""
        names = [LISTING, *(added_listing(number) for number in range(1, len(self.added) + 1))]
        revised = [revision(number) for number in range(1, self.revisions + 1)]
        return Listing([folder / name for name in names], [folder / name for name in revised])

    def sizes(self, listing: Listing) -> list[int]:
        """How many images each shard has."""
        return listing.sizes((self.images, *self.added), self.settings.shard_size)

    @classmethod
    def create(cls, settings: RunSettings, payload: Payload, image_column: str | None, images: int) -> Manifest:
        """A new result's description."""
        return cls(
            uuid.uuid4().hex,
            settings,
            payload,
            image_column,
            images,
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def save(self, folder: Path) -> None:
        """Write it; from then on the folder counts as a result."""
        with atomic_write(folder / MANIFEST) as temporary:
            values = asdict(self)
            for name in ("added", "revisions"):  # older versions can read results without them
                if not values[name]:
                    del values[name]
            if not self.settings.clips.any:
                del values["settings"]["clips"]
            for name in ("reasons", "domain"):
                if not values["settings"][name]:
                    del values["settings"][name]
            text = json.dumps({"format": "rali-dataset", "format_version": FORMAT_VERSION, **values}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read a result folder's description.

        Raises:
            FileNotFoundError: The folder holds no result.
            ValueError: The description is damaged, or from a later version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no result of `rali dataset score`: {path} is missing")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != "rali-dataset" or (version := values.pop("format_version")) != FORMAT_VERSION:
                raise ValueError(f"format {version!r}; this version reads {FORMAT_VERSION}")
            settings = values.pop("settings")
            settings |= {key: tuple(settings[key]) for key in ("carry", "plugins")}
            settings["reasons"] = tuple(settings.get("reasons", ()))
            settings["clips"] = ClipSettings(**settings.get("clips", {}))
            values["added"] = tuple(values.get("added", ()))
            return cls(settings=RunSettings(**settings), **values)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be used: {error}") from error

    def check_settings(self, settings: RunSettings) -> None:
        """Compare with a second run's settings.

        Raises:
            ValueError: They differ; the message says in what.
        """
        ours, theirs = asdict(self.settings), asdict(settings)
        different = [key for key in ours if ours[key] != theirs[key]]
        if "model_hash" in different:  # the name alone may be equal
            different = [key for key in different if key != "model_name"]
        if different:
            lines = [
                f"  {_option(key)}: {_show(self.settings, key)} in the first run, {_show(settings, key)} now"
                for key in different
            ]
            raise ValueError(
                "this folder was started with other options:\n" + "\n".join(lines)
                + "\nUse the first run's options to resume it, or another folder to start afresh."
            )  # fmt: skip


def missing_shards(folder: Path, manifest: Manifest, listing: Listing) -> tuple[list[int], list[str]]:
    """The shards that are missing.

    Returns:
        Their numbers, and a text for each shard that exists but is unusable and will be re-scored.

    Raises:
        ValueError: There are shards of another result.
    """
    missing, problems = [], []
    present = {path.name for path in folder.glob(SHARD_GLOB)}
    for shard, size in enumerate(manifest.sizes(listing)):
        path = shard_path(folder, shard)
        if size == 0:  # its rows were removed when it was retried
            present.discard(path.name)
            continue
        if path.name not in present:
            missing.append(shard)
            continue
        present.discard(path.name)
        problem = shard_problem(path, manifest.run, size)
        if problem is not None:
            missing.append(shard)
            problems.append(f"{path}: {problem}")
    if present:
        raise ValueError(f"{folder} holds Parquet files that are not of this result, such as {min(present)}: move them")
    return missing, problems


def added_listing(number: int) -> str:
    """File name of a listing of later images, by its 1-based number."""
    return LISTING.replace("listing", f"listing-{number:03d}")


def revision(number: int) -> str:
    """File name of a revision, by its 1-based number."""
    return LISTING.replace("listing", f"revision-{number:03d}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder against a second run; the lock ends with the process, however it ends.

    Raises:
        OSError: Another run is writing there, or the folder cannot be written.
    """
    try:
        (folder / MANIFEST).parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / MANIFEST.replace("manifest.json", "lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise OSError(f"another run is writing to {folder}") from None
    except OSError as error:
        raise OSError(error.errno, f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        for place in (folder, (folder / MANIFEST).parent):
            remove_leftovers(place)
        yield
    finally:
        lock.release()


def _option(key: str) -> str:
    names = {"source": "SOURCE", "model_hash": "--model", "max_pixels": "--max-megapixels", "plugins": "--plugin",
             "carry": "--keep-column", "clips": "--videos, --frames, --fps, --max-frames, --aggregate"}  # fmt: skip
    return names.get(key, "--" + key.replace("_", "-"))


def _show(settings: RunSettings, key: str) -> str:
    if key == "model_hash":
        return f"{settings.model_name} ({settings.model_hash[:12]})"
    value = getattr(settings, key)
    if key == "clips":
        return ", ".join(f"{name} {value}" for name, value in asdict(value).items())
    if key == "max_pixels":
        return f"{value / 1e6:g}"
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)
