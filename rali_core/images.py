"""Image files and in-memory images to pixels: one (3, H, W) tensor each, float32 in [0, 1] or uint8.

For files, bytes, streams and members of archives alike: EXIF orientation is applied (to PIL images too);
an embedded ICC profile is converted to sRGB, if Pillow and the profile allow it, else the values are used
unchanged; transparent images are composited on white; grey is repeated to RGB; palette and CMYK without profile are
converted by Pillow; of animated files the first frame is scored.

Range: 16-bit grey is divided by 65535, or by a TIFF's MaxSampleValue; nothing is stretched per image, and a 16-bit
image that only uses 12 bits is dark, which is logged. 16-bit RGB is read by Pillow as its upper 8 bits.

JPEGs are decoded whole. Pillow's draft mode would take 0.37 of the time on photographs of 8 megapixels, but moves their
scores by 0.002 (`bench/jpeg_draft.py`), and a file must score as the same image in memory does.

The global state of the host program (Pillow's limits and flags, Python's warning filters) has no influence and is not
changed permanently: while an image is decoded it is set as `ReadLimits` says, and restored after the last thread.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO, Any, TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from .content_hints import HEAD_BYTES, describe_content
from .files import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from .files import readable_formats
from .lazy import renamed
from .urls import is_url, read_url

log = logging.getLogger("rali")

__getattr__ = renamed(__name__, {"to_picture": "to_pil_image"})

ImageInput: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], Image.Image, NDArray[np.generic], Tensor
]
"""One image: a path, an image file's bytes or an open binary file of it, a PIL image, a numpy array (H, W[, C]) or a
torch tensor (C, H, W)."""

RANGE_TOLERANCE = 1e-3
"""Float images may leave [0, 1] by this much, from rounding; they are clipped."""

ORIENTATION = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_SAMPLE_VALUE = 281
"""TIFF tag."""

COPIED_PIXELS = 2**20
"""Pixels that are converted from a PIL image at a time."""

NOT_AN_IMAGE = "not an image that Pillow can read"
"""How the error begins for what is no image at all."""

SAME_COLOUR = 2
"""A profile that changes no colour by more than this (of 255) counts as sRGB and is not applied."""


class ImageError(ValueError):
    """An image cannot be read or is not an image; the message names it and the reason."""


@dataclass(frozen=True)
class ReadLimits:
    """Limits for an image file.

    Attributes:
        max_pixels: Larger images are refused by their header, before they are decoded.
        max_text_bytes: Decompressed bytes of all text chunks of a PNG together, and of its colour profile.
        pixels_in_flight: Pixels decoded at one time by the threads that read ahead; a larger image is decoded alone.
            Each takes some 8 bytes, twice that if it must be rotated.
    """

    max_pixels: int = 178_956_970
    max_text_bytes: int = 2**27
    pixels_in_flight: int = 100_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


DEFAULT_LIMITS = ReadLimits()


def load_image(path: str | os.PathLike[str], *, limits: ReadLimits = DEFAULT_LIMITS) -> Tensor:
    """Read an image file.

    Args:
        path: A file that Pillow can read.
        limits: Limits for the file.

    Returns:
        (3, H, W) float32 in [0, 1], RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: The file is not an image, is damaged or truncated, or larger than `limits` allow.
    """
    return to_float(read_pixels(Path(path), limits=limits))


def decode_image(data: bytes, name: str, *, limits: ReadLimits = DEFAULT_LIMITS) -> Tensor:
    """Decode the bytes of an image file.

    Args:
        data: The file's bytes, in any format that Pillow can read.
        name: Its name in errors.
        limits: Limits for the file.

    Returns:
        (3, H, W) float32 in [0, 1], RGB.

    Raises:
        ImageError: As for `load_image`.
    """
    return to_float(read_pixels(data, name=name, limits=limits))


@contextmanager
def open_image(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes],
    *,
    name: str | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[Image.Image]:
    """The one reader of image files: within the block the image is open, its size is known and nothing is decoded yet.

    Args:
        source: A path, the bytes of a file, or an open binary file, which is read from its start.
        name: Its name in errors.
        limits: Limits for the file.

    Raises:
        FileNotFoundError, ImageError: As for `load_image`; any exception of Pillow within the block becomes one.
    """
    file, name = _as_file(source, name)
    try:
        with _pillow_set(limits), Image.open(file, formats=readable_formats()) as image:
            pixels = image.width * image.height
            if pixels > limits.max_pixels:
                raise Image.DecompressionBombError(f"{pixels} pixels, more than the limit of {limits.max_pixels}")
            try:
                yield image
            finally:
                image.close()  # frees its pixels, whoever still refers to it
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError:
        head = _head(file)
        seems = describe_content(head)
        reason = f"{NOT_AN_IMAGE}: {name}" if head else f"the file is empty: {name}"
        raise ImageError(f"{reason}; it seems to be {seems}" if seems else reason) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large to open safely: {name}: {error}") from error
    except PermissionError as error:
        raise ImageError(f"no permission to read {name}") from error
    except MemoryError as error:
        raise ImageError(f"not enough memory to decode {name}") from error
    except Exception as error:  # Pillow's decoders raise any kind of exception for a damaged file
        raise ImageError(f"damaged image file {name}: {type(error).__name__}: {error}") from error


def _head(file: Path | BytesIO) -> bytes:
    if isinstance(file, BytesIO):
        return bytes(file.getbuffer()[:HEAD_BYTES])
    with file.open("rb") as opened:
        return opened.read(HEAD_BYTES)


def _as_file(source: Any, name: str | None) -> tuple[Path | BytesIO, str]:
    source = open_if_url(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesIO(source), name or "image data"
    if is_stream(source):
        return BytesIO(read_stream(source)), name or str(getattr(source, "name", None) or "image data")
    path = Path(source)
    name = name or str(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no such file: {name}") from None
    except PermissionError:
        raise ImageError(f"no permission to read {name}") from None
    except (OSError, ValueError) as error:  # a name that is too long or holds a null byte, a loop of links
        raise ImageError(f"{getattr(error, 'strerror', None) or error}: {name}") from None
    if not stat.S_ISREG(mode):
        raise ImageError(
            f"expected an image file, got {'a folder' if stat.S_ISDIR(mode) else 'a special file'}: {name}"
        )
    return path, name


def open_if_url(source: Any) -> Any:
    """What is behind a URL as an open file that has its name; everything else as it is.

    Raises:
        ModuleNotFoundError: fsspec or its package for the protocol is missing.
        ImageError: The URL cannot be read.
    """
    if not isinstance(source, str) or not is_url(source):
        return source
    try:
        file = BytesIO(read_url(source))
    except OSError as error:
        raise ImageError(str(error)) from error
    file.name = source
    return file


def is_stream(image: object) -> bool:
    """Whether something is an open file, rather than a path or pixels."""
    return callable(getattr(image, "read", None)) and not isinstance(image, os.PathLike)


def read_stream(stream: IO[bytes]) -> bytes:
    """All bytes of an open binary file; where it can seek, from its start, and its position is kept.

    Raises:
        TypeError: It was opened for text.
        ImageError: It cannot be read, such as a closed one.
    """
    if isinstance(stream, io.TextIOBase):
        raise TypeError("expected a file opened in binary mode ('rb'), got one opened for text")
    try:
        seekable = bool(getattr(stream, "seekable", lambda: False)())
        position = stream.tell() if seekable else 0
        if seekable:
            stream.seek(0)
        data = stream.read()
        if seekable:
            stream.seek(position)
    except (OSError, ValueError) as error:
        raise ImageError(f"the open file cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise TypeError(f"expected a file whose read() gives bytes, got {type(data).__name__}")
    return data


class _PixelLimit(float):
    """As Pillow's MAX_IMAGE_PIXELS: images are refused above the limit, and there is no warning below it."""

    limit: int

    def __rmul__(self, other: float) -> float:  # Pillow compares with twice its limit, and warns from once it on
        return self.limit if other == 2 else super().__rmul__(other)


_OURS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""A filter of warnings: warnings about odd metadata must neither be shown nor, in a strict host, become errors."""

_active: list[ReadLimits] = []
_host: dict[tuple[Any, str], Any] = {}
_set: dict[tuple[Any, str], Any] = {}
_filtered: list[list[Any]] = []
_pillow_lock = Lock()


@contextmanager
def _pillow_set(limits: ReadLimits) -> Iterator[None]:
    """Set Pillow's global state as `limits` say; several threads share it, the last one restores the previous state.

    In between the host's values are never restored: another thread may be decoding.
    """
    with _pillow_lock:
        _active.append(limits)
        if len(_active) == 1:
            _filtered.append(warnings.filters)  # type: ignore[arg-type]
            _filtered[0].insert(0, _OURS)
        _set_globals()
    try:
        yield
    finally:
        with _pillow_lock:
            _active.remove(limits)
            if _active:
                _set_globals()
            else:
                _give_back()


def _set_globals() -> None:
    pixels = _PixelLimit("inf")
    pixels.limit = max(limits.max_pixels for limits in _active)
    texts = max(limits.max_text_bytes for limits in _active)
    for module, name, value in (
        (Image, "MAX_IMAGE_PIXELS", pixels),
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
        (PngImagePlugin, "MAX_TEXT_CHUNK", texts),
        (PngImagePlugin, "MAX_TEXT_MEMORY", texts),
    ):
        key, now = (module, name), getattr(module, name)
        if key not in _set or now is not _set[key]:  # the host's, which may have changed meanwhile
            _host[key] = now
        _set[key] = value
        setattr(module, name, value)


def _give_back() -> None:
    for (module, name), value in _set.items():
        if getattr(module, name) is value:  # otherwise the host has changed it meanwhile, and that is kept
            setattr(module, name, _host[module, name])
    _set.clear()
    _host.clear()
    _filtered.append(warnings.filters)  # type: ignore[arg-type]  # the host may be in a `catch_warnings` since
    while _filtered:
        filters = _filtered.pop()
        while _OURS in filters:
            filters.remove(_OURS)


def pixels_from_pil(image: Image.Image) -> Tensor:
    """Turn a PIL image of any mode into pixels.

    Args:
        image: Any mode; 16-bit grey is read as 0..65535, float ("F") must lie in [0, 1].

    Returns:
        (3, H, W) float32 in [0, 1], RGB; transparency composited on white, EXIF orientation and ICC profile applied.

    Raises:
        ImageError: The image has no pixels, or a grey image of 32 bits or floats leaves its range.
    """
    return to_float(read_pixels(image))


def decode_pil(image: Image.Image) -> Tensor:
    """The pixels of an image that `open_image` opened: (3, H, W), uint8, or float32 in [0, 1] of more than 8 bits."""
    if 0 in image.size:
        raise ImageError(f"expected at least 1 x 1 pixel, got {image.size[0]} x {image.size[1]}")
    image.load()  # the mode of some files is known only after loading
    if image.mode == "F":
        return _finish(_grey_values(image), "a PIL image of mode F")
    if image.mode.startswith("I"):  # "I", "I;16", "I;16B": 16-bit grey
        full = _full_scale(image)
        values = _grey_values(image)
        _tell_dark(float(values.max()), full)
        return _finish(values.div_(full), f"a PIL image of mode {image.mode}, divided by {full:.0f},")
    return _to_levels(upright(image))


def _grey_values(image: Image.Image) -> Tensor:
    """(1, H, W) float32."""
    return torch.from_numpy(np.array(upright(image), dtype=np.float32)).unsqueeze(0)


def _to_levels(image: Image.Image) -> Tensor:
    """(3, H, W) uint8, some rows at a time, because each conversion is a copy."""
    width, height = image.size
    transform = _transform_to_srgb(image)
    levels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, COPIED_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        levels[top:bottom] = np.asarray(_to_rgb(image.crop((0, top, width, bottom)), transform))
    return torch.from_numpy(levels).permute(2, 0, 1)


def _full_scale(image: Image.Image) -> float:
    """The value of white in a grey image of more than 8 bits: 65535, or less if a TIFF says so."""
    try:
        said = getattr(image, "tag_v2", {}).get(MAX_SAMPLE_VALUE, 65535)
        said = max(said) if isinstance(said, tuple) else said
        return float(said) if 255 < said < 65535 else 65535.0
    except (TypeError, ValueError):
        return 65535.0


def _tell_dark(highest: float, full: float) -> None:
    if full == 65535.0 and 255 < highest <= 4095:
        log.warning(
            "a 16-bit image has no value above %d of 65535 and is scored as it is, nearly black; "
            "if it holds 10 or 12 bits, multiply its values by 64 or 16", int(highest),
        )  # fmt: skip


def upright(image: Image.Image) -> Image.Image:
    """A PIL image rotated as its EXIF orientation says; malformed EXIF data are ignored."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # any exception of Pillow for malformed metadata: the pixels may be fine
        return image
    method = TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info.pop("exif", None)
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit PIL image of any mode as sRGB: its ICC profile applied, transparency composited on white."""
    return _to_rgb(image, _transform_to_srgb(image))


def _to_rgb(image: Image.Image, transform: Any) -> Image.Image:
    if transform is not None:
        image = _apply(image, transform)
    if image.mode == "La":  # the one mode that Pillow cannot convert to RGB directly
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image.convert("RGB")


def _apply(image: Image.Image, transform: Any) -> Image.Image:
    """The image's colours by a transform of `_transform_to_srgb`; alpha is unchanged."""
    from PIL import ImageCms

    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    try:
        converted = ImageCms.applyTransform(_colours(image), transform)
    except (ImageCms.PyCMSError, ValueError) as error:
        log.debug("a colour profile cannot be applied, and is left out: %s", error)
        return image
    if converted is None:
        return image
    converted.info.pop("transparency", None)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _colours(image: Image.Image) -> Image.Image:
    """An image without alpha and palette, as colour profiles describe it."""
    if image.mode in ("LA", "La"):
        return image.convert("LA").convert("L")
    if image.mode in ("P", "PA", "RGBA", "RGBa", "RGBX"):
        return image.convert("RGBA").convert("RGB")
    return image


def _transform_to_srgb(image: Image.Image) -> Any:
    """The transform of the image's ICC profile; None without one, or if it is sRGB, broken, or of another type."""
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    from PIL import ImageCms  # few images have a profile

    mode = _colours(image.crop((0, 0, 1, 1))).mode
    if mode not in ("RGB", "L", "CMYK", "LAB"):
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
        return None if _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError) as error:
        log.debug("a colour profile cannot be applied, and is left out: %s", error)
        return None


def _changes_nothing(transform: Any, mode: str) -> bool:
    from PIL import ImageCms

    if mode not in ("RGB", "L"):
        return False
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "L":
        probe = levels[None]
        expected = np.repeat(probe[..., None], 3, axis=2)
    else:
        probe = expected = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    got = ImageCms.applyTransform(Image.fromarray(probe), transform)
    return got is not None and int(np.abs(np.asarray(got).astype(int) - expected).max()) <= SAME_COLOUR


def to_pil_image(image: ImageInput) -> Image.Image:
    """An image as the scorer sees it, as an 8-bit RGB PIL image.

    Args:
        image: Any image that can be scored.

    Returns:
        A new image; EXIF orientation applied, transparency on white, 16-bit grey divided by 257.

    Raises:
        TypeError, FileNotFoundError, ImageError: As for `to_pixels`.
    """
    if isinstance(image, Image.Image) and image.mode != "F" and not image.mode.startswith("I"):
        return to_rgb(upright(image))  # 8-bit values are kept
    values = to_pixels(image).mul(255.0).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(values))


def pixels_from_array(array: NDArray[np.generic]) -> Tensor:
    """Turn a numpy array into pixels.

    Args:
        array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8 in 0..255, uint16 in 0..65535, float in [0, 1].

    Returns:
        (3, H, W) float32 in [0, 1]; a fourth channel is alpha, composited on white.

    Raises:
        ImageError: Another shape, type or range.
    """
    return to_float(_from_array(array))


def _from_array(array: NDArray[np.generic]) -> Tensor:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "; this looks like (C, H, W): transpose it" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"expected a numpy array of shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}{hint}")
    if array.dtype == np.uint16:
        if array.size:
            _tell_dark(float(array.max()), 65535.0)
        tensor = torch.from_numpy(array.astype(np.float32) / np.float32(65535.0))
    elif array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating):
        native = array.astype(array.dtype.newbyteorder("="), copy=True)  # also drops strides that torch refuses
        tensor = torch.from_numpy(native)
    else:
        raise ImageError(f"expected uint8, uint16 or floating-point values, got {array.dtype}")
    return _scale(tensor.permute(2, 0, 1), f"a numpy array of type {array.dtype}")


def pixels_from_tensor(tensor: Tensor) -> Tensor:
    """Turn a torch tensor into pixels, on its own device; no gradient is kept (`RaliScorer.model` keeps it).

    Args:
        tensor: (C, H, W) with C = 1, 3 or 4; uint8 in 0..255 or floating point in [0, 1].

    Returns:
        (3, H, W) float32 in [0, 1]; a fourth channel is alpha, composited on white.

    Raises:
        ImageError: Another shape, type or range.
    """
    return to_float(_from_tensor(tensor))


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        looks_hwc = tensor.ndim == 3 and tensor.shape[2] in (1, 3, 4)
        hint = "; this looks like (H, W, C): permute it with x.permute(2, 0, 1)" if looks_hwc else ""
        raise ImageError(f"expected a tensor of shape (C, H, W) with C = 1, 3 or 4, got {tuple(tensor.shape)}{hint}")
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "on the meta device, which holds no values" if tensor.is_meta else f"of layout {tensor.layout}"
        raise ImageError(f"expected a dense tensor with values, got one {kind}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ImageError(f"expected uint8 or floating-point values, got {tensor.dtype}")
    return _scale(tensor.detach(), f"a tensor of type {tensor.dtype}")


def to_pixels(image: ImageInput, *, limits: ReadLimits = DEFAULT_LIMITS) -> Tensor:
    """Turn one image of any accepted kind into (3, H, W) float32 pixels in [0, 1].

    Raises:
        TypeError: Not a path, bytes, open file, PIL image, numpy array or tensor.
        FileNotFoundError: A path that does not exist.
        ImageError: It cannot be read, or its shape, type or range is not that of an image.
    """
    return to_float(read_pixels(image, limits=limits))


def read_pixels(image: ImageInput, *, name: str | None = None, limits: ReadLimits = DEFAULT_LIMITS) -> Tensor:
    """As `to_pixels`, but images of 8 bits stay uint8, which takes a quarter of the memory.

    Args:
        image: Any kind of image.
        name: Name of an image file in errors.
        limits: Limits for an image file.

    Returns:
        (3, H, W), uint8 or float32 in [0, 1]; tensors stay on their device.
    """
    if isinstance(image, Image.Image):
        try:
            with _pillow_set(limits):  # it may not be decoded yet
                return decode_pil(image)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"the PIL image cannot be decoded: {type(error).__name__}: {error}") from error
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, str | os.PathLike | bytes | bytearray | memoryview) or is_stream(image):
        with open_image(image, name=name, limits=limits) as opened:
            return decode_pil(opened)
    raise TypeError(
        "expected a path, PIL image, numpy array or torch tensor, or an image file's bytes or open file, "
        f"got {type(image).__name__}"
    )


def to_float(pixels: Tensor) -> Tensor:
    """Pixels of `read_pixels` as float32 in [0, 1]."""
    return (pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels).contiguous()


def _scale(tensor: Tensor, what: str) -> Tensor:
    if tensor.dtype != torch.uint8:
        return _finish(tensor.float(), what)
    if tensor.shape[0] == 4 or 0 in tensor.shape:
        return _finish(tensor.float() / 255.0, what)
    return tensor.expand(3, -1, -1)


def _finish(values: Tensor, what: str) -> Tensor:
    """(C, H, W) float32 with C = 1, 3 or 4 that should lie in [0, 1], to (3, H, W)."""
    if 0 in values.shape:
        raise ImageError(f"expected at least 1 x 1 pixel, got {what} of shape {tuple(values.shape)} (C, H, W)")
    low, high = (float(value) for value in torch.aminmax(values))
    if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN makes a comparison false
        raise ImageError(f"{what} holds NaN or infinite values")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        hint = "divide by 255" if high > 1.5 else "map it with (x + 1) / 2 if it lies in [-1, 1], or clip it"
        raise ImageError(f"expected {what} in [0, 1], got values from {low:.4g} to {high:.4g}; {hint}")
    values = values.clamp(0.0, 1.0)
    if values.shape[0] == 4:
        alpha = values[3:]
        values = values[:3] * alpha + (1.0 - alpha)
    return values.expand(3, -1, -1)
