from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.images import (
    ImageError,
    decode_image,
    load_image,
    pixels_from_array,
    pixels_from_pil,
    pixels_from_tensor,
    to_pixels,
)


@pytest.fixture
def image() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return Image.fromarray(values)


def expected(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_all_kinds_of_the_same_image_give_the_same_pixels(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "image.png")
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds: list[Any] = [
        tmp_path / "image.png", str(tmp_path / "image.png"), image, array, array.astype(np.float32) / 255,
        array.astype(np.float64) / 255, np.asfortranarray(array), tensor, tensor.float() / 255, array[::-1][::-1],
        array.astype(np.uint16) * 257, (array / 255).astype(">f4"),
    ]  # fmt: skip
    for kind in kinds:
        pixels = to_pixels(kind)
        assert pixels.dtype == torch.float32
        assert torch.allclose(pixels, expected(image), atol=1e-6), type(kind)


def test_exif_orientation_is_applied(image: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(load_image(tmp_path / "turned.png"), expected(upright))


def test_transparency_is_composited_on_white(image: Image.Image, tmp_path: Path) -> None:
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (0, 0, 10, 12))
    clear = image.copy()
    clear.putalpha(alpha)
    clear.save(tmp_path / "clear.png")
    for pixels in (load_image(tmp_path / "clear.png"), pixels_from_array(np.array(clear))):
        assert torch.equal(pixels[:, :, :10], expected(image)[:, :, :10])
        assert (pixels[:, :, 10:] == 1).all()
    half = pixels_from_tensor(torch.full((4, 2, 2), 0.5))
    assert torch.allclose(half, torch.full((3, 2, 2), 0.75))


def test_a_palette_with_a_transparent_colour_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    image.save(tmp_path / "palette.gif", transparency=0)
    pixels = load_image(tmp_path / "palette.gif")
    assert torch.allclose(pixels[:, 0, 0] * 255, torch.tensor([200.0, 100.0, 50.0]))
    assert (pixels[:, 1:, :] == 1).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "LA", "PA", "La"])
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (5, 4))
    pixels = pixels_from_pil(image)
    assert pixels.shape == (3, 4, 5)
    assert ((pixels >= 0) & (pixels <= 1)).all()


def test_sixteen_bit_grey_keeps_its_precision(tmp_path: Path) -> None:
    values = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "deep.png")
    pixels = load_image(tmp_path / "deep.png")
    assert torch.allclose(pixels[1], torch.from_numpy(values.astype(np.float32) / 65535), atol=1e-7)


def test_a_float_image_must_lie_in_the_unit_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(tmp_path / "unit.tiff")
    assert torch.allclose(load_image(tmp_path / "unit.tiff"), torch.full((3, 2, 2), 0.5))
    Image.fromarray(np.full((2, 2), 900.0, dtype=np.float32)).save(tmp_path / "wide.tiff")
    with pytest.raises(ImageError, match=r"wide.tiff: expected a PIL image of mode F in \[0, 1\], got values from 900"):
        load_image(tmp_path / "wide.tiff")


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert torch.allclose(load_image(tmp_path / "moving.gif")[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes of data do not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_unreadable_files_are_refused_with_the_reason(image: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: .*absent.png"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="got a folder"):
        load_image(tmp_path)
    image.save(tmp_path / "whole.png")
    cases = {
        "empty.png": (b"", "the file is empty"),
        "text.png": (b"this is no image", "not an image that Pillow can read"),
        "cut.png": ((tmp_path / "whole.png").read_bytes()[:200], "damaged image file"),
        "bomb.png": (png_claiming(100_000, 100_000), "too large to open safely"),
        "short.png": (png_claiming(300, 300), "damaged image file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=message) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("head", "seems"),
    [
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "an MP4 or QuickTime video: its name should end in .mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "an MP4 or QuickTime video"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\1", "a Matroska or WebM video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image: pip install pillow-heif"),
        (b"\xff\x0a\xfa\x1f\x41", "a JPEG XL image: pip install pillow-jxl-plugin"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg width="3">', "an SVG"),
        (b"%PDF-1.7", "a PDF"),
        (b"PK\x03\x04\x14", "a ZIP archive"),
    ],
)
def test_what_is_no_image_is_told_by_its_content(head: bytes, seems: str, tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(head)
    for source in (tmp_path / "a.gif", head):
        with pytest.raises(ImageError, match=f"^not an image that Pillow can read: .*; it seems to be {seems}"):
            load_image(source) if isinstance(source, Path) else decode_image(head, "a.gif")
    with pytest.raises(ImageError, match="image that Pillow can read: text$"):
        decode_image(b"this is no image", "text")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((3, 8, 9)), r"got \(3, 8, 9\); this looks like \(C, H, W\): transpose it"),
        (np.zeros((8, 9, 2)), r"shape \(H, W\), \(H, W, 3\) or \(H, W, 4\), got \(8, 9, 2\)"),
        (np.zeros((8, 9), dtype=np.int64), "uint8, uint16 or floating-point values, got int64"),
        (np.full((4, 4, 3), 255.0), "divide by 255"),
        (np.full((4, 4, 3), np.nan), "holds NaN or infinite values"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "at least 1 x 1 pixel"),
        (torch.zeros(8, 9, 3), r"got \(8, 9, 3\); this looks like \(H, W, C\): permute it"),
        (torch.zeros(2, 8, 9), r"C = 1, 3 or 4, got \(2, 8, 9\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "uint8 or floating-point values, got torch.int32"),
        (torch.full((3, 4, 4), -1.0), r"map it with \(x \+ 1\) / 2"),
        (torch.full((3, 4, 4), float("inf")), "holds NaN or infinite values"),
    ],
)
def test_arrays_and_tensors_that_are_no_images_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        to_pixels(value)


def test_other_types_are_refused() -> None:
    with pytest.raises(
        TypeError, match="expected a path, PIL image, numpy array or torch tensor, or .* open file, got int"
    ):
        to_pixels(3)  # type: ignore[arg-type]


def test_the_input_is_left_as_it_is() -> None:
    array, tensor = np.full((4, 4, 4), 0.5), torch.full((4, 4, 4), 0.5)
    to_pixels(array)
    to_pixels(tensor)
    assert (array == 0.5).all()
    assert (tensor == 0.5).all()


def test_open_files_and_tensors_without_values_are_one_images_error() -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    for image, message in (
        (closed, "the open file cannot be read"),
        (torch.zeros(3, 9, 9).to_sparse(), "expected a dense tensor with values, got one of layout torch.sparse_coo"),
        (torch.zeros(3, 9, 9, device="meta"), "on the meta device, which holds no values"),
        ("x" * 5000, "File name too long"),
        ("a\0b.png", "embedded null byte"),
    ):
        with pytest.raises(ImageError, match=message):
            to_pixels(image)
