"""Small sound image files of every format that Pillow reads here, in many kinds: what `hostile_files.py` mutates.

Formats that Pillow writes are written by it; the few that it only reads are put together by hand.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from rali_core.files import readable_formats

WIDTH, HEIGHT = 56, 40
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "LAB", "YCbCr", "I;16", "F")

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "AVIF": {"": {}, "metadata": {"exif": True, "icc_profile": True}, "animated": {"frames": True}},
    "BLP": {"1": {"blp_version": "BLP1"}, "2": {"blp_version": "BLP2"}},
    "DDS": {"": {}, **{kind: {"pixel_format": kind} for kind in ("DXT1", "DXT3", "DXT5", "BC2", "BC3", "BC5")}},
    "GIF": {"": {}, "interlaced": {"interlace": 1}, "animated": {"frames": True}},
    "ICNS": {},
    "ICO": {"": {}, "bitmaps": {"bitmap_format": "bmp", "sizes": [(16, 16), (32, 32)]}},
    "JPEG": {
        "": {},
        "progressive": {"progressive": True, "exif": True, "icc_profile": True, "comment": b"made for a test"},
        "4:4:4": {"subsampling": 0, "quality": 95},
        "restart markers": {"restart_marker_rows": 1},
        "several images": {"frames": True, "format": "MPO"},
    },
    "JPEG2000": {
        "": {},
        "codestream": {"no_jp2": True},
        "tiles": {"tile_size": (16, 16), "irreversible": True, "quality_layers": [20, 5]},
    },
    "PNG": {
        "": {},
        "metadata": {"exif": True, "icc_profile": True, "pnginfo": True},
        "animated": {"frames": True},
    },
    "PPM": {"": {}},
    "TGA": {"": {}, "run lengths": {"compression": "tga_rle"}},
    "TIFF": {
        "": {"exif": True, "icc_profile": True},
        **{
            kind: {"compression": kind}
            for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group3", "group4", "lzma", "zstd")
        },
        "pages": {"frames": True},
    },
    "WEBP": {
        "": {},
        "lossless": {"lossless": True, "exif": True, "icc_profile": True},
        "animated": {"frames": True},
    },
}  # fmt: skip
"""Ways of writing a format, by name: options of `Image.save`. True stands for metadata or frames made here."""


def make_image(seed: int = 0) -> Image.Image:
    """A small image with coarse and fine structure."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    fine = Image.fromarray(generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    return Image.blend(coarse, fine, 0.2)


def sound_files() -> dict[str, dict[str, bytes]]:
    """The files' contents by Pillow's name of the format, then by kind; all of them can be read.

    Raises:
        RuntimeError: A format that is opened here has no file: it must be added.
    """
    Image.init()
    made: dict[str, dict[str, bytes]] = {}
    for name in readable_formats():
        kinds = {kind: content() for kind, content in BY_HAND.get(name, {}).items()}
        if name in Image.SAVE:
            for option, settings in OPTIONS.get(name, {"": {}}).items():
                for mode in MODES:
                    content = _write(name, mode, settings)
                    if content is not None:
                        kinds[f"{mode} {option}".strip()] = content
        made[name] = {kind: content for kind, content in kinds.items() if _is_read(content)}
        if not made[name]:
            raise RuntimeError(f"there is no sound file of the format {name} here yet, which Pillow opens")
    return made


def _write(name: str, mode: str, settings: dict[str, Any]) -> bytes | None:
    """None where Pillow does not write this mode in this way."""
    settings = {"format": name, **settings}
    if settings.get("exif"):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "a camera"
        settings["exif"] = exif
    if settings.get("icc_profile"):
        if mode not in ("RGB", "RGBA", "P"):
            del settings["icc_profile"]
        else:
            settings["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if settings.get("pnginfo"):
        settings["pnginfo"] = PngImagePlugin.PngInfo()
        settings["pnginfo"].add_text("prompt", '{"3": {"class_type": "KSampler"}}' * 20, zip=True)
        settings["pnginfo"].add_itxt("workflow", "{}" * 50, zip=True)
    try:
        if settings.pop("frames", False):
            settings.update(save_all=True, append_images=[_in_mode(1, mode), _in_mode(2, mode)])
        buffer = io.BytesIO()
        _in_mode(0, mode).save(buffer, **settings)
    except (OSError, ValueError, KeyError, TypeError, SystemError, RuntimeError):
        return None
    return buffer.getvalue()


def _in_mode(seed: int, mode: str) -> Image.Image:
    image = make_image(seed)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L"), dtype=np.float32) / 255)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        return ImageCms.applyTransform(image, to_lab) or image
    if mode in ("RGBA", "LA"):
        image.putalpha(image.convert("L"))
    return image.convert(mode)


def _is_read(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
        return True
    except Exception:  # of the few that are made by hand, or written in a mode that Pillow itself cannot read
        return False


def _levels() -> bytes:
    return make_image().convert("L").tobytes()


def _cur() -> bytes:
    icon = _write("ICO", "RGBA", {"bitmap_format": "bmp", "sizes": [(32, 32)]}) or b""
    return icon[:2] + b"\2\0" + icon[4:]


def _dcx() -> bytes:
    page = _write("PCX", "RGB", {}) or b""
    return struct.pack("<1025I", 987654321, 4100, *[0] * 1023) + page


def _flc(kind: int) -> bytes:
    if kind == 16:
        pixels = _levels()
    else:  # run lengths: each row the number of packets, which is not used, then runs
        pixels = b"".join(b"\1" + struct.pack("<bB", WIDTH, 9 * row % 256) for row in range(HEIGHT))
    part = struct.pack("<IH", 6 + len(pixels), kind) + pixels
    colours = struct.pack("<HBB", 1, 0, 0) + bytes(range(256)) * 3
    palette = struct.pack("<IH", 6 + len(colours), 4) + colours
    frame = struct.pack("<IHH8x", 16 + len(palette) + len(part), 0xF1FA, 2) + palette + part
    header = struct.pack("<IHHHHHHI", 128 + 2 * len(frame), 0xAF12, 2, WIDTH, HEIGHT, 8, 3, 40)
    return header.ljust(128, b"\0") + frame * 2


def _ftex(kind: int) -> bytes:
    pixels = make_image().tobytes() if kind == 1 else bytes(range(256)) * 5
    header = b"FTEX" + struct.pack("<5i", 0, WIDTH, HEIGHT, 1, 1) + struct.pack("<2i", kind, 32)
    return header + struct.pack("<i", len(pixels)) + pixels


def _gbr(channels: int) -> bytes:
    pixels = make_image().convert("RGBA" if channels == 4 else "L").tobytes()
    return struct.pack(">5I4sI", 34, 2, WIDTH, HEIGHT, channels, b"GIMP", 10) + b"brush\0" + pixels


def _icns(kind: bytes) -> bytes:
    if kind == b"ic11":
        parts = {kind: _write("PNG", "RGBA", {}) or b""}
    else:  # run lengths of 32 x 32 pixels, each plane of its own, and a mask
        parts = {b"il32": b"".join(bytes([0xFD, n % 256]) for n in range(24)) * 3, b"l8mk": bytes(range(256)) * 4}
    content = b"".join(name + struct.pack(">I", 8 + len(part)) + part for name, part in parts.items())
    return b"icns" + struct.pack(">I", 8 + len(content)) + content


def _pcd() -> bytes:
    content = bytearray(96 * 2048 + 768 * 512 * 3 // 2)
    content[2048:2052], content[2048 + 1538] = b"PCD_", 1
    content[96 * 2048 :] = np.random.default_rng(0).bytes(len(content) - 96 * 2048)
    return bytes(content)


def _pixar() -> bytes:
    header = bytearray(1024)
    header[:4] = b"\200\350\000\000"
    header[416:420] = struct.pack("<2H", HEIGHT, WIDTH)
    header[424:428] = struct.pack("<2H", 14, 2)
    return bytes(header) + make_image().tobytes()


def _psd(mode: int, channels: int, *, runs: bool = False) -> bytes:
    pixels = b"".join(plane.tobytes() for plane in make_image().convert("CMYK" if mode == 4 else "RGB").split())
    pixels = (pixels * 2)[: channels * WIDTH * HEIGHT]
    if runs:
        rows = [bytes([WIDTH - 1]) + pixels[start : start + WIDTH] for start in range(0, len(pixels), WIDTH)]
        pixels = struct.pack(f">{len(rows)}H", *map(len, rows)) + b"".join(rows)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if mode == 3 else b""
    resource = b"8BIM" + struct.pack(">HHI", 1039, 0, len(profile)) + profile + b"\0" * (len(profile) % 2)
    return (
        b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, HEIGHT, WIDTH, 8, mode) + struct.pack(">I", 0)
        + struct.pack(">I", len(resource)) + resource + struct.pack(">IH", 0, int(runs)) + pixels
    )  # fmt: skip


def _sun(kind: int) -> bytes:
    pixels = make_image().tobytes() if kind == 1 else b"".join(b"\x80\x0d" + bytes([n % 128]) for n in range(480))
    return struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 24, len(pixels), kind, 0, 0) + pixels


def _xpm() -> bytes:
    letters = "abcdefgh"
    rows = [
        "".join(letters[value % 8] for value in _levels()[row * WIDTH : (row + 1) * WIDTH]) for row in range(HEIGHT)
    ]
    lines = [f"{WIDTH} {HEIGHT} 8 1", *(f"{letter} c #{n * 30:02x}40{n * 9:02x}" for n, letter in enumerate(letters))]
    text = ",\n".join(f'"{line}"' for line in [*lines, *rows])
    return f"/* XPM */\nstatic char * image[] = {{\n{text}\n}};\n".encode()


def _tiled_tiff() -> bytes:
    """A TIFF whose strips are out of order and whose MaxSampleValue is less than 16 bits can hold."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH)).save(
        buffer, "TIFF", tiffinfo={281: 4095, 278: 8}
    )
    return buffer.getvalue()


BY_HAND: dict[str, dict[str, Callable[[], bytes]]] = {
    "CUR": {"bitmap": _cur},
    "DCX": {"one page": _dcx},
    "FLI": {"copied": lambda: _flc(16), "run lengths": lambda: _flc(15)},
    "FTEX": {"plain": lambda: _ftex(1), "DXT1": lambda: _ftex(0)},
    "GBR": {"grey": lambda: _gbr(1), "colour": lambda: _gbr(4)},
    "ICNS": {"PNG": lambda: _icns(b"ic11"), "run lengths": lambda: _icns(b"il32")},
    "PCD": {"turned": _pcd},
    "PIXAR": {"colour": _pixar},
    "PPM": {
        "text": lambda: f"P3 {WIDTH} {HEIGHT} 255\n".encode() + b" ".join(b"%d" % n for n in make_image().tobytes()),
        "floats": lambda: f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode()
        + np.linspace(0, 1, WIDTH * HEIGHT, dtype="<f4").tobytes(),
    },
    "PSD": {
        "colour": lambda: _psd(3, 3), "with alpha": lambda: _psd(3, 4), "run lengths": lambda: _psd(3, 3, runs=True),
        "CMYK": lambda: _psd(4, 4), "grey": lambda: _psd(1, 1),
    },
    "SUN": {"plain": lambda: _sun(1), "run lengths": lambda: _sun(2)},
    "TIFF": {"strips of 12 bits": _tiled_tiff},
    "XPM": {"eight colours": _xpm},
}  # fmt: skip
