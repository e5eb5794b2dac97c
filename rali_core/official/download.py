"""The authors' release from the hub: into the user's cache or a given folder, each file checked by its hash.

The transfer is huggingface_hub's: it shows progress, obeys `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_HOME`, resumes
a connection that was cut, and keeps whole files for the next attempt. It does not verify
hashes, so this module does. PyTorch is not imported here.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..files import hash_file
from . import layout

REPOSITORY, FOLDER = "ByteDance/Q-Insight", "RALI"
ATTEMPTS = 3
"""Attempts at a transfer that breaks off, besides the hub client's own retries."""

PAUSE_SECONDS = 1.0
NETWORK_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Whose exceptions mean that the transfer broke off; which of them it is depends on huggingface_hub's version."""

T = TypeVar("T")


class DownloadError(OSError):
    """The release could not be downloaded; the message says why and what to do."""


@dataclass(frozen=True)
class Downloaded:
    """A release on the disk.

    Attributes:
        folder: Holds `ckpt.pt` and the other files.
        revision: The repository's commit, 40 hexadecimal digits; None where only the hub could have said it.
    """

    folder: Path
    revision: str | None

    @property
    def origin(self) -> dict[str, str]:
        """Where it came from, for the metadata of the converted file."""
        origin = {"repository": REPOSITORY, "folder": FOLDER}
        return origin if self.revision is None else {**origin, "revision": self.revision}


@dataclass(frozen=True)
class _Remote:
    """A file in the repository: its size in bytes, and the hash that git or git-lfs knows it by."""

    size: int
    digest: str


def download(
    folder: str | os.PathLike[str] | None = None,
    *,
    revision: str = "main",
    with_encoder_weights: bool = False,
    report: Callable[[str], object] = str,
) -> Downloaded:
    """Download the release, or find it where it is complete already.

    Args:
        folder: Where to put it, as `folder/RALI`; by default the hub client's cache.
        revision: Branch, tag or commit.
        with_encoder_weights: Also the weights in `best/`, which only a `ckpt.pt` without an encoder needs.
        report: Called with a line about each step that takes its time.

    Returns:
        Where it lies.

    Raises:
        DownloadError: No connection, no such repository or file, a wrong hash, no space, no permission; no file under
            its final name is incomplete.
    """
    from huggingface_hub import constants, snapshot_download

    patterns = [
        f"{FOLDER}/{name}" for name in (*layout.REQUIRED, *(layout.ENCODER_WEIGHTS if with_encoder_weights else ()))
    ]
    target = Path(folder).expanduser() if folder is not None else None
    place = target or Path(constants.HF_HUB_CACHE)
    remote: dict[str, _Remote] | None = None
    commit: str | None = None
    if not constants.HF_HUB_OFFLINE:
        commit, remote = _retry(lambda: _list_files(revision), place)
        missing = [name for name in layout.REQUIRED if f"{FOLDER}/{name}" not in remote]
        if missing:
            raise DownloadError(
                f"{REPOSITORY} at {commit} lacks {', '.join(f'{FOLDER}/{name}' for name in missing)}: the release "
                "may have moved; a newer version of this package may know where, or give --revision"
            )
        remote = {name: remote[name] for name in patterns if name in remote}
        _check_room(place, target, remote)
    snapshot = Path(
        _retry(
            # The branch's name and not the commit: the client notes it, and finds it again without a connection.
            lambda: snapshot_download(REPOSITORY, revision=revision, allow_patterns=patterns, local_dir=target),
            place,
        )
    )
    if target is None:
        commit = snapshot.name
    release = snapshot / FOLDER
    absent = [name for name in layout.REQUIRED if not (release / name).is_file()]
    if absent:
        raise DownloadError(
            f"{release} lacks {', '.join(absent)}: run `rali download official` again, with a connection"
        )
    report(f"comparing the hashes of the files in {release}")
    _check_hashes(snapshot, patterns, remote)
    return Downloaded(release, commit)


def _list_files(revision: str) -> tuple[str, dict[str, _Remote]]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    commit = api.repo_info(REPOSITORY, revision=revision).sha
    if commit is None:
        raise DownloadError(f"the server at {api.endpoint} names no commit for {REPOSITORY}: is it a hub?")
    found = {}
    for item in api.list_repo_tree(REPOSITORY, FOLDER, recursive=True, revision=commit):
        if isinstance(item, RepoFile):
            found[item.path] = _Remote(item.size, item.lfs.sha256 if item.lfs is not None else item.blob_id)
    return commit, found


def _retry(work: Callable[[], T], place: Path) -> T:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except DownloadError:
            raise
        except Exception as error:
            broke_off = type(error).__module__.split(".")[0] in NETWORK_PACKAGES
            if not broke_off or attempt == ATTEMPTS:
                raise _explain(error, place) from error
            time.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _explain(error: Exception, place: Path) -> DownloadError:
    """The hub client's exception as one that says what to do."""
    from huggingface_hub import constants, errors

    endpoint, text = constants.ENDPOINT, str(error).strip().split("\n")[0]
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(f"{REPOSITORY} on {endpoint} asks for a login: run `hf auth login` and try again ({text})")
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(f"{endpoint} has no repository {REPOSITORY} (404); is HF_ENDPOINT right? ({text})")
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{REPOSITORY} on {endpoint} has no such revision (404): {text}")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return DownloadError(
                f"HF_HUB_OFFLINE is set and the release is not complete in {place}: download it once with a connection"
            )
        return DownloadError(f"{endpoint} cannot be reached, and the release is not in {place}: {text}")
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", "an error")
        return DownloadError(f"{endpoint} answered {status} for a file of {REPOSITORY}/{FOLDER}: {text}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DownloadError(f"no space left in {place} ({text}): make room, set HF_HOME or give --folder")
    if isinstance(error, OSError) and error.errno in (
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EEXIST,
    ):
        return DownloadError(f"cannot write to {place} ({text}): set HF_HOME or give --folder")
    if type(error).__module__.split(".")[0] in NETWORK_PACKAGES:
        return DownloadError(
            f"the connection to {endpoint} failed {ATTEMPTS} times ({type(error).__name__}: {text}); what was "
            "downloaded whole is kept: run the same command again, or set HF_HUB_OFFLINE=1 to use what is there"
        )
    return DownloadError(f"the download from {endpoint} failed: {type(error).__name__}: {text}")


def _check_room(place: Path, target: Path | None, remote: dict[str, _Remote]) -> None:
    """Find out before the transfer, not at its end, that the disk has too little space for it."""
    from huggingface_hub import try_to_load_from_cache

    needed = 0
    for name, file in remote.items():
        if target is not None:
            there = (target / name).is_file() and (target / name).stat().st_size == file.size
        else:
            there = isinstance(try_to_load_from_cache(REPOSITORY, name), str)
        needed += 0 if there else file.size
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DownloadError(
            f"no space left in {place}: the download needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
            "make room, set HF_HOME or give --folder"
        )


def _check_hashes(snapshot: Path, names: Iterable[str], remote: dict[str, _Remote] | None) -> None:
    for name in names:
        path = snapshot / name
        if not path.is_file():
            continue
        if remote is not None and name in remote:
            expected = remote[name].digest
        elif path.is_symlink():
            # Without a connection: the cache names the content behind the link by the hash that the hub gave.
            expected = Path(os.readlink(path)).name
        else:
            continue
        found = hash_like(path, expected)
        if found != expected:
            for bad in (Path(os.path.realpath(path)), path):
                bad.unlink(missing_ok=True)
            raise DownloadError(
                f"{name}: expected the hash {expected}, got {found}: the transfer was damaged, or the file is not "
                "what the repository says; it was deleted, so run the same command again"
            )


def hash_like(path: Path, expected: str) -> str:
    """A file's hash of the kind that `expected` is: SHA-256 (git-lfs), or git's own SHA-1 with its header."""
    if len(expected) == 64:
        return hash_file(path)
    return hash_file(path, "sha1", b"blob %d\0" % path.stat().st_size)
