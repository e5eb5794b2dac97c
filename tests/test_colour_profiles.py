"""ICC profiles of grey, CMYK and Lab images: what is scored is what a colour-managed viewer shows."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from rali_core import images
from rali_core.images import decode_image, to_pixels

D50 = (0.9642, 1.0, 0.8249)


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def make_profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2.4."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), **tags}
    table, content = b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">2I", 132 + 12 * len(tags) + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    body = struct.pack(">I", len(tags)) + table + content
    head = struct.pack(">I4xI", 128 + len(body), 0x02400000) + kind + space + connection
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*D50)
    return head.ljust(128, b"\0") + body


@pytest.fixture(scope="module")
def linear_grey() -> bytes:
    """Values are proportional to light, as scientific and rendered images have them."""
    return make_profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(8)})


@pytest.fixture(scope="module")
def press() -> bytes:
    """A press whose first ink is red and whose other inks are black, whatever they are called."""
    paper, red, black = (255, 128, 128), (138, 209, 198), (0, 128, 128)  # L, a, b in 8 bits
    corners = [paper if number == 0 else red if number == 8 else black for number in range(16)]
    straight = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + straight * 4
    return make_profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut + bytes(sum(corners, ())) + straight * 3})


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("L", "JPEG"), ("L", "TIFF"), ("LA", "PNG")])
def test_linear_grey_is_brightened_as_srgb_has_it(linear_grey: bytes, mode: str, kind: str) -> None:
    values = np.linspace(8, 255, 24 * 20).round().astype(np.uint8).reshape(20, 24)
    image = Image.fromarray(values).convert(mode)
    light = values / 255
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    options = {"quality": 100} if kind == "JPEG" else {}
    seen = decode_image(encoded(image, kind, icc_profile=linear_grey, **options), "a")
    assert np.abs(seen.numpy() - expected).max() < (0.02 if kind == "JPEG" else 0.006)
    assert (seen - to_pixels(image)).abs().max() > 0.2


@pytest.mark.parametrize(("kind", "options"), [("TIFF", {}), ("JPEG", {"quality": 100})])
def test_cmyk_is_printed_as_its_profile_says(press: bytes, kind: str, options: dict[str, Any]) -> None:
    inks = np.zeros((16, 48, 4), dtype=np.uint8)
    inks[:, 16:32, 0] = 255
    inks[:, 32:, 3] = 255
    image = Image.frombytes("CMYK", (48, 16), inks.tobytes())
    seen = decode_image(encoded(image, kind, icc_profile=press, **options), "a")
    for column, colour in ((8, (1, 1, 1)), (24, (1, 0, 0)), (40, (0, 0, 0))):
        assert seen[:, 8, column].numpy() == pytest.approx(colour, abs=0.04)
    plain = decode_image(encoded(image, kind, **options), "a")
    assert plain[:, 8, 24].numpy() == pytest.approx((0, 1, 1), abs=0.04), "without a profile Pillow's own conversion"


def test_lab_is_read_with_its_profile_and_without() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(60, 190, (12, 16, 3), dtype=np.uint8))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(photo, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab is not None
    profile = ImageCms.ImageCmsProfile(profiles[1]).tobytes()
    for options in ({}, {"icc_profile": profile}):
        seen = decode_image(encoded(lab, "TIFF", **options), "a")
        assert (seen - to_pixels(photo)).abs().max() < 5 / 255, options


def test_a_profile_of_another_kind_of_image_changes_nothing(linear_grey: bytes, press: bytes) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    for image, profile in ((photo, linear_grey), (photo, press), (photo.convert("L"), press)):
        assert torch.equal(decode_image(encoded(image, "PNG", icc_profile=profile), "a"), to_pixels(image))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK"])
def test_a_large_image_is_converted_in_bands_like_a_small_one(
    linear_grey: bytes, press: bytes, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 20, 3), dtype=np.uint8))
    image.putalpha(image.convert("L"))
    image = image.quantize(32) if mode == "P" else image.convert(mode)
    image.info["icc_profile"] = {"L": linear_grey, "LA": linear_grey, "CMYK": press}.get(mode, b"none")
    whole = to_pixels(image)
    monkeypatch.setattr(images, "COPIED_PIXELS", 41)  # bands of two rows, and one at the end
    assert torch.equal(to_pixels(image), whole)
