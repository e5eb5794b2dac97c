"""WebDataset tars: every member with the ending of an image is an image; its bytes are read in place."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator

from ..files import Survey, is_companion, is_wanted
from . import storage
from .items import Item, to_unicode
from .storage import FoundFile


def list_tar(root: str, file: FoundFile, videos: bool, survey: Survey) -> Iterator[Item]:
    """The images of one uncompressed tar, by its headers.

    Args:
        root: Folder that names are relative to.
        file: The tar.
        videos: Also list its videos.
        survey: Collects what is left out.

    Yields:
        One item per image; for a damaged tar one with a problem after those that could be listed.
    """
    name = storage.relative(file.path, root)
    whole = Item.of(file, root)
    if file.problem is not None:
        yield whole
        return
    try:
        with storage.open_binary(file.path) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            end, seen = 0, Counter[str]()
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                end = member.offset_data + member.size
                if not member.isreg() or is_companion(member.name):
                    continue
                ending = os.path.splitext(member.name)[1].lower()
                if not is_wanted(ending, videos):
                    survey.note(member.name, ending)
                else:
                    seen[member.name] += 1
                    again = f"#{seen[member.name]}" if seen[member.name] > 1 else ""  # a tar may repeat a name
                    yield whole._replace(
                        id=to_unicode(f"{name}/{member.name}{again}"),
                        uri=to_unicode(f"{file.path}#{member.name}{again}"),
                        offset=member.offset_data,
                        length=member.size,
                    )
            if file.size != storage.UNKNOWN and end > file.size:
                raise tarfile.ReadError("it ends in the middle of a member")
    except (tarfile.TarError, OSError) as error:
        yield whole._replace(problem=f"not a complete, uncompressed tar: {error}: {to_unicode(file.path)}")
