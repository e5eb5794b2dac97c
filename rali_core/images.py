"""Image files and in-memory images to pixels: one (3, H, W) float32 tensor in [0, 1] each.

What is done, and said in the documentation: EXIF orientation is applied to files and PIL images; transparent images
are composited on white; grey is repeated to RGB; palette and CMYK are converted by Pillow (embedded ICC profiles are
not applied); 16-bit grey is divided by 65535; of animated files the first frame is scored.
"""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .files import IMAGE_SUFFIXES as IMAGE_SUFFIXES

ImageInput: TypeAlias = Union[str, "os.PathLike[str]", Image.Image, NDArray[np.generic], Tensor]
"""One image: a path, a PIL image, a numpy array (H, W[, C]) or a torch tensor (C, H, W)."""

RANGE_TOLERANCE = 1e-3
"""Float images may leave [0, 1] by this much, from rounding; they are clipped."""


class ImageError(ValueError):
    """An image cannot be read or is not an image; the message says which and why."""


def load_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image file.

    Args:
        path: A file that Pillow can read.

    Returns:
        (3, H, W) float32 in [0, 1], RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: The file is not an image, is damaged or truncated, or has more than 179 megapixels.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():
        raise ImageError(f"expected an image file, got {'a folder' if path.is_dir() else 'a special file'}: {path}")
    return _decode(path, str(path))


def decode_image(data: bytes, name: str) -> Tensor:
    """Decode the bytes of an image file.

    Args:
        data: What the file holds, in any format that Pillow can read.
        name: What errors call it.

    Returns:
        (3, H, W) float32 in [0, 1], RGB.

    Raises:
        ImageError: As for `load_image`.
    """
    return _decode(BytesIO(data), name)


def _decode(source: Path | BytesIO, name: str) -> Tensor:
    try:
        with warnings.catch_warnings():
            # Pillow warns from half its limit on, and of odd metadata; the limit itself is an error.
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                return pixels_from_pil(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError:
        size = source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes
        reason = "the file is empty" if size == 0 else "not an image that Pillow can read"
        raise ImageError(f"{reason}: {name}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large to open safely: {name}: {error}") from error
    except PermissionError as error:
        raise ImageError(f"no permission to read {name}") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise ImageError(f"damaged image file {name}: {type(error).__name__}: {error}") from error


def pixels_from_pil(image: Image.Image) -> Tensor:
    """Turn a PIL image of any mode into pixels.

    Args:
        image: Any mode; 16-bit grey is read as 0..65535, float ("F") must lie in [0, 1].

    Returns:
        (3, H, W) float32 in [0, 1], RGB; transparency composited on white, EXIF orientation applied.

    Raises:
        ImageError: The image has no pixels, or a grey image of 32 bits or floats leaves its range.
    """
    if 0 in image.size:
        raise ImageError(f"expected at least 1 x 1 pixel, got {image.size[0]} x {image.size[1]}")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        return _finish(torch.from_numpy(np.array(image)).unsqueeze(0), "a PIL image of mode F")
    if image.mode.startswith("I"):  # "I", "I;16", "I;16B": 16-bit grey
        values = torch.from_numpy(np.array(image).astype(np.float32))
        return _finish(values.unsqueeze(0) / 65535.0, f"a PIL image of mode {image.mode}, divided by 65535,")
    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).float() / 255.0


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit PIL image of any mode as RGB, transparency composited on white."""
    if image.mode == "La":  # the one mode that Pillow cannot turn into RGB at once
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image.convert("RGB")


def to_picture(image: ImageInput) -> Image.Image:
    """What the scorer sees of an image, as an 8-bit RGB PIL picture to look at.

    Args:
        image: Any image that can be scored.

    Returns:
        A new picture; EXIF orientation applied, transparency on white, 16-bit grey divided by 257.

    Raises:
        TypeError, FileNotFoundError, ImageError: As for `to_pixels`.
    """
    if isinstance(image, Image.Image) and image.mode != "F" and not image.mode.startswith("I"):
        return to_rgb(ImageOps.exif_transpose(image))  # 8 bits stay what they are
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
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "; this looks like (C, H, W): transpose it" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"expected a numpy array of shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}{hint}")
    if array.dtype == np.uint16:
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
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        looks_hwc = tensor.ndim == 3 and tensor.shape[2] in (1, 3, 4)
        hint = "; this looks like (H, W, C): permute it with x.permute(2, 0, 1)" if looks_hwc else ""
        raise ImageError(f"expected a tensor of shape (C, H, W) with C = 1, 3 or 4, got {tuple(tensor.shape)}{hint}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ImageError(f"expected uint8 or floating-point values, got {tensor.dtype}")
    return _scale(tensor.detach(), f"a tensor of type {tensor.dtype}")


def to_pixels(image: ImageInput) -> Tensor:
    """Turn one image of any accepted kind into (3, H, W) float32 pixels in [0, 1].

    Raises:
        TypeError: Not a path, PIL image, numpy array or tensor.
        FileNotFoundError: A path that does not exist.
        ImageError: It cannot be read, or its shape, type or range is not what an image has.
    """
    if isinstance(image, str | os.PathLike):
        return load_image(image)
    if isinstance(image, Image.Image):
        return pixels_from_pil(image)
    if isinstance(image, np.ndarray):
        return pixels_from_array(image)
    if isinstance(image, Tensor):
        return pixels_from_tensor(image)
    raise TypeError(f"expected a path, PIL image, numpy array or torch tensor, got {type(image).__name__}")


def _scale(tensor: Tensor, what: str) -> Tensor:
    return _finish(tensor.float() / 255.0 if tensor.dtype == torch.uint8 else tensor.float(), what)


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
    elif values.shape[0] == 1:
        values = values.expand(3, -1, -1)
    return values.contiguous()
