"""What is to be scored: files, folders, patterns that the shell left as they are, lists on standard input, and URLs."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from ..content_hints import register_plugins
from ..files import Survey, find_images
from ..text_files import find_listed, name_to_text, read_list
from ._console import say

Input: TypeAlias = Path | str
"""A local file, or a URL as text."""


@dataclass
class Inputs:
    """What was found.

    Attributes:
        files: Images, each once; what was named explicitly is kept, whatever it is.
        survey: What else is in the folders.
    """

    files: list[Input]
    survey: Survey = field(default_factory=Survey)

    def report(self) -> int:
        """Report what was left out and which folders cannot be read; returns the number of these folders."""
        if line := self.survey.describe_left_out():
            say(line)
        for text in self.survey.unreadable:
            say(f"the folder cannot be read, so its images are not scored: {text}")
        return len(self.survey.unreadable)


def find_inputs(options: argparse.Namespace) -> Inputs:
    """The images that the arguments name.

    Raises:
        FileNotFoundError: There are none.
        ModuleNotFoundError: A URL is among them, and fsspec or its package for the protocol is missing.
    """
    register_plugins()
    names = list(_expand(options.paths, null=options.null))
    survey = Survey()
    files: dict[str, Input] = {}
    problem: FileNotFoundError | None = None
    for name in names:
        if is_url(name):
            from ..urls import check_url

            check_url(name)  # before the work
            files.setdefault(name, name)
            continue
        try:
            found = find_images([name], recursive=options.recursive, survey=survey, videos=options.videos)
        except FileNotFoundError as error:
            problem = error
            continue
        for file in found:
            files.setdefault(os.path.abspath(file), file)
    inputs = Inputs(list(files.values()), survey)
    if not files:
        inputs.report()
        if not names:
            raise FileNotFoundError("the list on standard input is empty")
        hint = "" if options.recursive else " (folders inside folders are searched with --recursive)"
        raise problem if problem and len(names) == 1 else FileNotFoundError(f"no images in {', '.join(names)}{hint}")
    return inputs


def is_url(name: str) -> bool:
    """Whether it is a URL, and nothing on the disk has this name."""
    if ":" not in name:
        return False
    from .. import urls

    return urls.is_url(name)


def display_name(file: Input) -> str:
    """A file's name in tables and JSON: bytes that are not UTF-8 are surrogate escapes, whatever the locale."""
    return name_to_text(str(file))


@contextmanager
def local_file(file: Input) -> Iterator[Path]:
    """The file itself, or for a URL a temporary copy that exists within the block.

    Raises:
        OSError: The URL cannot be read.
    """
    if isinstance(file, Path):
        yield file
        return
    with TemporaryDirectory(prefix="rali-") as folder:
        yield download(file, Path(folder) / "image")


def download(url: str, path: Path) -> Path:
    """Download a URL to a file.

    Raises:
        OSError: It cannot be read; the message names the URL.
    """
    from ..urls import read_url

    path.write_bytes(read_url(url))
    return path


def _expand(paths: list[str], *, null: bool) -> Iterator[str]:
    for text in paths:
        if text == "-":
            if sys.stdin is None:
                raise ValueError("- is a list on standard input, and there is none")
            for name in read_list(sys.stdin.buffer, null=null):
                found = find_listed("", name)
                yield found.strip() if is_url(found.strip()) else found
        elif os.path.lexists(text) or is_url(text):
            yield text
        else:
            expanded = os.path.expanduser(text)
            matches = sorted(glob.glob(expanded, recursive=True)) if glob.has_magic(expanded) else []
            yield from matches or [expanded]
