"""Files behind URLs: http(s) by itself, every other protocol by fsspec."""

from __future__ import annotations

import os
import re
import urllib.request
from importlib.util import find_spec
from typing import Any

URL_SECONDS = 60.0
"""Timeout of a web server in seconds."""


def is_url(path: str) -> bool:
    """Whether `path` is one that fsspec opens (`s3://...`, `zip://...::file.zip`), and not a local path.

    An existing local file is local whatever its name, and so is every absolute path.
    """
    return bool(re.match(r"[A-Za-z][\w+.-]+(://|::)", path)) and not os.path.lexists(path)


def check_url(url: str) -> None:
    """Check that the packages for a URL are installed.

    Raises:
        ModuleNotFoundError: fsspec or its package for the protocol is missing.
        FileNotFoundError: fsspec knows no such protocol.
    """
    if find_spec("fsspec") is None or not _by_urllib(url):
        find_filesystem(url)


def read_url(url: str) -> bytes:
    """All bytes behind a URL.

    Raises:
        ModuleNotFoundError, FileNotFoundError: See `check_url`.
        OSError: It cannot be read; the message names the URL.
    """
    system, inner = (None, url) if _by_urllib(url) else find_filesystem(url)
    try:
        if system is not None:
            return bytes(system.cat_file(inner))
        request = urllib.request.Request(url, headers={"User-Agent": "rali"})
        with urllib.request.urlopen(request, timeout=URL_SECONDS) as response:
            return bytes(response.read())
    except Exception as error:  # every protocol's package has its own exceptions
        missing = isinstance(error, FileNotFoundError)  # whose text is the URL again
        reason = "there is no such file" if missing else str(error) or type(error).__name__
        raise OSError(f"{url} cannot be read: {reason}") from error


def _by_urllib(url: str) -> bool:
    """Whether a web address is read without fsspec, which needs aiohttp for it without requiring it."""
    return re.match("https?://", url, re.IGNORECASE) is not None and find_spec("aiohttp") is None


def find_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        ModuleNotFoundError, FileNotFoundError: See `check_url`.
    """
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{url} is a URL, and reading it needs fsspec: pip install "rali-score[dataset]"'
        ) from error
    try:
        system, inner = fsspec.url_to_fs(url)
    except ImportError as error:  # fsspec names the package that the protocol needs
        raise ModuleNotFoundError(f"{url}: {error}") from error
    except ValueError as error:  # a protocol that fsspec does not know
        raise FileNotFoundError(f"{url} cannot be read: no such file, and no URL that fsspec knows: {error}") from error
    return system, inner
