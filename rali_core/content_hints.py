"""What a file that is no readable image seems to be by its first bytes, and what to do about it: for errors."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from importlib import import_module
from importlib.util import find_spec

logger = logging.getLogger("rali")

HEAD_BYTES = 512
"""Bytes that `describe_content` looks at."""

HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""Brands of ISO base media files that are HEIF images, ISO/IEC 23008-12."""
AVIF_BRANDS = frozenset({b"avif", b"avis"})

PLUGIN_PACKAGES = {
    ".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".jxl": "pillow-jxl-plugin",
}  # fmt: skip
"""Endings of image formats that Pillow reads with another package."""

PLUGIN_MODULES = {"pillow-heif": "pillow_heif.HeifImagePlugin", "pillow-jxl-plugin": "pillow_jxl"}
"""The module of each of these packages that registers its formats when it is imported."""


def _how_to_read(what: str, package: str) -> str:
    return f"{what}: pip install {package} (in Python also import {PLUGIN_MODULES[package]})"


_BEGINNINGS = (
    ((b"\xff\x0a", b"\x00\x00\x00\x0cJXL "), _how_to_read("a JPEG XL image", "pillow-jxl-plugin")),
    ((b"\x1aE\xdf\xa3",), "a Matroska or WebM video: its name should end in .mkv or .webm"),
    ((b"version https://git-lfs",), "a pointer of Git LFS: fetch the file itself with git lfs pull"),
    ((b"%PDF",), "a PDF: save its pages as images first"),
    ((b"PK\x03\x04",), "a ZIP archive: unpack it first"),
    ((b"\x1f\x8b",), "a gzip file: unpack it first"),
)


def describe_content(head: bytes) -> str:
    """What the first bytes of a file seem to be if not an image, with what to do; "" if they tell nothing.

    Args:
        head: Up to `HEAD_BYTES` bytes.
    """
    brand = head[8:12] if head[4:8] == b"ftyp" else b""  # of an ISO base media file
    if brand in HEIF_BRANDS:
        return _how_to_read("a HEIC image", "pillow-heif")
    if brand and brand not in AVIF_BRANDS:
        return "an MP4 or QuickTime video: its name should end in .mp4 or .mov"
    for beginnings, what in _BEGINNINGS:
        if head.startswith(beginnings):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, such as an error or a login: download the image again"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "an SVG, which has no pixels: save it as PNG first"
    return ""


def name_missing_plugins(endings: Collection[str]) -> str:
    """What to install for image formats that Pillow does not read by itself; "" for other endings.

    Args:
        endings: Of files that were left out, such as `.heic`.
    """
    missing = dict.fromkeys(PLUGIN_PACKAGES[ending] for ending in endings if ending in PLUGIN_PACKAGES)
    return f"pip install {' '.join(missing)}" if missing else ""


def register_plugins() -> None:
    """Let Pillow read HEIC and JPEG XL in this process, if the packages for them are installed and work."""
    for module in PLUGIN_MODULES.values():
        if find_spec(module.partition(".")[0]) is not None:
            try:
                import_module(module)
            except ImportError as error:  # other images do not need it
                logger.warning("%s is installed but cannot be imported: %s", module, error)


def import_plugins(names: Iterable[str]) -> None:
    """Import modules that teach Pillow further formats.

    Args:
        names: Of modules; `pillow_heif`, whose import alone registers nothing, stands for its submodule.

    Raises:
        ValueError: One cannot be imported.
    """
    for name in names:
        try:
            import_module(PLUGIN_MODULES.get(name.replace("_", "-"), name))
        except ImportError as error:
            raise ValueError(f"the plugin {name} cannot be imported: {error}") from error
