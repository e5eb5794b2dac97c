"""Numpy arrays as pickles and joblib store them, rebuilt from their bytes; numbers only, never Python objects."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DIMENSIONS = 4
MAX_LENGTH = 2**31
NUMBERS = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1)")


class ArrayFormatError(ValueError):
    """An array in a pickle cannot be used."""


def parse_dtype(code: Any, order: Any) -> np.dtype[Any]:
    """A dtype of numbers.

    Args:
        code: numpy's code, such as `"f8"`, or the dtype that it made.
        order: `"<"`, `">"`, `"|"` or `"="`.

    Raises:
        ArrayFormatError: Python objects, texts, records, or no dtype at all.
    """
    text = code.str if isinstance(code, np.dtype) else code
    match = NUMBERS.fullmatch(text) if isinstance(text, str) else None
    if match is None or order not in ("<", ">", "|", "="):
        shown = repr(text) if isinstance(text, str) and len(text) < 20 else "something else"
        raise ArrayFormatError(f"refused: the pickle holds an array that is not of numbers (dtype {shown})")
    dtype: np.dtype[Any] = np.dtype(order + match[1])
    return dtype


def parse_shape(shape: Any) -> tuple[int, ...]:
    """A shape of at most four lengths.

    Raises:
        ArrayFormatError: Anything else.
    """
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        raise ArrayFormatError("damaged pickle (the shape of an array)")
    if not all(type(length) is int and 0 <= length < MAX_LENGTH for length in shape):
        raise ArrayFormatError("damaged pickle (the shape of an array)")
    return shape


def array_from_bytes(data: bytes, dtype: Any, shape: tuple[int, ...], *, fortran: bool = False) -> NDArray[np.generic]:
    """Rebuild an array.

    Raises:
        ArrayFormatError: The bytes are not as many as the shape needs.
    """
    if not isinstance(dtype, np.dtype) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ArrayFormatError("damaged pickle (an array has more or fewer bytes than its shape needs)")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def read_inline_array(file: io.BytesIO, state: dict[str, Any]) -> NDArray[np.generic]:
    """Read an array whose bytes joblib wrote right behind the instruction that described it.

    Args:
        file: Positioned behind that instruction; afterwards, behind the array.
        state: joblib's description: shape, order, dtype and, from joblib 1.2 on, `numpy_array_alignment_bytes`.

    Raises:
        ArrayFormatError: The description is incomplete, or the file ends early.
    """
    shape, dtype = parse_shape(state.get("shape")), state.get("dtype")
    if not isinstance(dtype, np.dtype) or state.get("order") not in ("C", "F"):
        raise ArrayFormatError("damaged pickle (the description of an array)")
    if state.get("numpy_array_alignment_bytes") is not None:
        padding = file.read(1)
        file.read(padding[0] if padding else 0)
    data = file.read(math.prod(shape) * dtype.itemsize)
    return array_from_bytes(data, dtype, shape, fortran=state["order"] == "F")
