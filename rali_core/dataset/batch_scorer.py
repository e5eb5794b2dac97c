"""A class for `ray.data.Dataset.map_batches` that loads the model once per actor and adds columns to batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..constants import Coverage, DtypeName
from ..content import has_content
from ..images import decode_image, to_pixels
from ..scorer import RaliScorer
from .decode import Decoded
from .items import to_unicode
from .score_shards import score_batch
from .shards import ScoredRow


class RaliBatchScorer:
    """Adds score, band, percentile, width, height, error and reason to batches of images.

    A column of images holds, per row, encoded bytes, a path or URL, a `{"bytes", "path"}` record, or an array
    (H, W, 3) as `ray.data.read_images` makes them. Decoding happens in the actor itself: a decoder that crashes takes
    the actor with it. `score_dataset` with `engine="ray"` is safe against that, writes shards and resumes.

    Args:
        model: As for `RaliScorer.from_pretrained`; a file must exist on every machine.
        image_column: Which column holds the images.
        device: As for `RaliScorer`; Ray shows an actor only the GPUs that it was given.
        dtype: Of the image encoder.
        batch_size: Images per forward pass; batches of any size come in.
        coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"`; by default the model's own setting.
        domain: What kind of images these are, see `RaliScorer`.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: As for `RaliScorer.from_pretrained`.

    Examples:
        >>> scored = dataset.map_batches(  # doctest: +SKIP
        ...     RaliBatchScorer, concurrency=2, num_gpus=0.5, batch_size=64
        ... )
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        image_column: str = "image",
        device: str | None = None,
        dtype: DtypeName = "float32",
        batch_size: int = 8,
        coverage: Coverage | None = None,
        domain: str | None = None,
    ) -> None:
        self.image_column = image_column
        self._scorer = RaliScorer.from_pretrained(
            model, device=device, dtype=dtype, batch_size=batch_size, coverage=coverage, domain=domain
        )

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Score a batch.

        Args:
            batch: Columns of equal length.

        Returns:
            The same columns, and score (float32, NaN with an error), band (text, empty with an error), percentile
            (float32), width and height (int32, 0 with an error), error (text, empty without one) and reason ("no
            content" for a blank image, else empty).

        Raises:
            ValueError: There is no such column.
        """
        if self.image_column not in batch:
            raise ValueError(f"there is no column {self.image_column!r}; the columns are {', '.join(batch)}")
        images, size = batch[self.image_column], self._scorer.batch_size
        rows: list[ScoredRow] = []
        for start in range(0, len(images), size):  # crops of one forward pass are in memory at a time
            rows += score_batch(self._scorer, [self._decode(image) for image in images[start : start + size]])
        return {
            **batch,
            "score": np.array([np.nan if row.score is None else row.score for row in rows], dtype=np.float32),
            "band": np.array([row.band or "" for row in rows], dtype=object),
            "percentile": np.array(
                [np.nan if row.percentile is None else row.percentile for row in rows], dtype=np.float32
            ),
            "width": np.array([row.width or 0 for row in rows], dtype=np.int32),
            "height": np.array([row.height or 0 for row in rows], dtype=np.int32),
            "error": np.array([row.error or "" for row in rows], dtype=object),
            "reason": np.array([row.reason or "" for row in rows], dtype=object),
        }

    def _decode(self, image: Any) -> Decoded:
        try:
            pixels = _read_pixels(image)
            if not has_content(pixels):
                return Decoded(None, pixels.shape[2], pixels.shape[1])
            with torch.inference_mode():
                crops = self._scorer.model.preprocess(pixels.unsqueeze(0), coverage=self._scorer.coverage)[0]
            return Decoded(crops, pixels.shape[2], pixels.shape[1])
        except (OSError, ValueError, TypeError) as error:
            return Decoded(None, error=to_unicode(str(error)))


def _read_pixels(image: Any) -> Tensor:
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if image is None:
        raise ValueError("the image column is empty here")
    if isinstance(image, bytes):
        return decode_image(image, "the image")
    return to_pixels(image)
