"""`pca.pkl`: the fitted PCA, read without scikit-learn, joblib or any unpickler.

The file is needed for one thing above all: the mean of the training embeddings, which is nowhere else in the release.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ReleaseError
from .pickles import Record, read_pickle, unwrap

MAX_BYTES = 128 * 2**20
"""Upper limit of the uncompressed file; the official PCA (768 to 512) needs 3 MB."""

LZMA_MEMORY = 256 * 2**20


@dataclass(frozen=True)
class PcaRecord:
    """What the release needs of a fitted PCA.

    Attributes:
        estimator: `"PCA"` or `"IncrementalPCA"`.
        sklearn_version: Version that fitted it, where the file says so.
        mean: (D,) float32 mean of the training embeddings.
        components_shape: (P, D) of the fitted components; None where the file has none.
    """

    estimator: str
    sklearn_version: str | None
    mean: NDArray[np.float32]
    components_shape: tuple[int, ...] | None


def read_pca(path: Path) -> PcaRecord:
    """Read a fitted PCA.

    Args:
        path: A pickle or joblib file, also a compressed one (zlib, gzip, bz2, lzma, xz).

    Raises:
        ReleaseError: The file is damaged or too large, holds anything but a fitted PCA or IncrementalPCA, or its
            mean is missing, not a vector or not finite.
    """
    estimator = read_pickle(read_uncompressed(path))
    if not isinstance(estimator, Record):
        raise ReleaseError(f"expected a fitted scikit-learn PCA, got {type(estimator).__name__}")
    values = {name: unwrap(value) for name, value in estimator.attributes.items()}
    mean = values.get("mean_")
    if not isinstance(mean, np.ndarray):
        raise ReleaseError(
            "the PCA has no mean_, and no other file of the release holds the mean: every score would be wrong; "
            "get the file again, or fit the PCA again"
        )
    if mean.ndim != 1 or mean.dtype.kind != "f":
        raise ReleaseError(f"mean_: expected a vector of floats, got shape {mean.shape} of {mean.dtype}")
    with np.errstate(over="ignore"):
        single = mean.astype(np.float32)
    if not np.isfinite(single).all():
        raise ReleaseError("mean_: holds NaN or infinite values")
    components = values.get("components_")
    version = values.get("_sklearn_version")
    return PcaRecord(
        estimator=estimator.kind.name,
        sklearn_version=version if isinstance(version, str) else None,
        mean=single,
        components_shape=components.shape if isinstance(components, np.ndarray) else None,
    )


def read_uncompressed(path: Path) -> bytes:
    """The file's bytes, decompressed where joblib compressed them.

    Raises:
        ReleaseError: More than `MAX_BYTES`, a compression that Python does not know, or a damaged file.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ReleaseError(f"larger than {MAX_BYTES // 2**20} MiB, which no PCA of image embeddings needs")
    data = path.read_bytes()
    decompressor: Any
    if data[:1] == b"\x78" or data[:2] == b"\x1f\x8b":
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: zlib or gzip, by their headers
    elif data[:3] == b"BZh":
        decompressor = bz2.BZ2Decompressor()
    elif data[:6] == b"\xfd7zXZ\x00" or data[:3] == b"\x5d\x00\x00":
        decompressor = lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
    elif data[:4] == b"\x04\x22\x4d\x18" or data[:2] == b"ZF":
        raise ReleaseError("compressed with lz4, or by a joblib before 0.10: save it again with joblib.dump(pca, file)")
    else:
        return data
    try:
        content: bytes = decompressor.decompress(data, MAX_BYTES)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise ReleaseError(f"damaged compressed file ({error})") from error
    if not decompressor.eof:
        if len(content) >= MAX_BYTES:
            raise ReleaseError(f"unpacks to more than {MAX_BYTES // 2**20} MiB, which no PCA of image embeddings needs")
        raise ReleaseError("damaged compressed file (it ends early)")
    return content
