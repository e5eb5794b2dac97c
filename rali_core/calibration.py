"""What a score means: its percentile among the scores of stated pictures, and its band."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .constants import BAND_NAMES, BAND_THRESHOLDS

QUANTILES = 101
"""Stored quantiles: the 0th, 1st, ... 100th percentile."""


@dataclass(frozen=True)
class Calibration:
    """Reference distribution and band limits of a model.

    Attributes:
        quantiles: Ascending scores of the reference pictures at percentiles 0, 1, ... 100; None where the maker had no
            reference pictures, so that there are bands and no percentiles.
        reference: Which pictures these are, or why there are none.
        band_thresholds: Ascending lower limits of poor, fair, good and excellent.
    """

    quantiles: tuple[float, ...] | None
    reference: str
    band_thresholds: tuple[float, ...] = BAND_THRESHOLDS

    def __post_init__(self) -> None:
        for name, length in (("quantiles", QUANTILES), ("band_thresholds", len(BAND_NAMES) - 1)):
            if name == "quantiles" and self.quantiles is None:
                continue
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape != (length,) or not np.isfinite(values).all() or (np.diff(values) < 0).any():
                raise ValueError(f"{name} must be {length} ascending finite numbers, got {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(values.tolist()))
        if not isinstance(self.reference, str):
            raise ValueError(f"reference must be a text, got {self.reference!r}")

    def percentiles(self, scores: ArrayLike) -> NDArray[np.float32]:
        """Percentage of the reference pictures that score lower, 0..100, linear between the stored quantiles.

        Args:
            scores: (N,) scores; NaN stays NaN.

        Returns:
            (N,); all NaN where there are no reference pictures.
        """
        if self.quantiles is None:
            return np.full(np.shape(scores), np.nan, dtype=np.float32)
        # Equal neighbours would make the interpolation ambiguous: keep the last of each run of equal quantiles.
        knots = np.asarray(self.quantiles)
        keep = np.append(np.diff(knots) > 0, True)
        percent = np.linspace(0.0, 100.0, QUANTILES)
        values: NDArray[np.float64] = np.interp(np.asarray(scores, dtype=np.float64), knots[keep], percent[keep])
        return values.astype(np.float32)

    def bands(self, scores: ArrayLike) -> tuple[str, ...]:
        """Name of each score's band: bad, poor, fair, good or excellent.

        Args:
            scores: (N,) scores, none of them NaN.
        """
        values = np.asarray(scores, dtype=np.float64).ravel().tolist()
        return tuple(BAND_NAMES[bisect_right(self.band_thresholds, value)] for value in values)

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain JSON types."""
        return {
            "quantiles": None if self.quantiles is None else list(self.quantiles),
            "reference": self.reference,
            "band_thresholds": list(self.band_thresholds),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """The calibration from what `to_dict` gave.

        Raises:
            ValueError: A key is missing or unknown, or a value is unusable.
        """
        if not isinstance(values, dict) or set(values) != {"quantiles", "reference", "band_thresholds"}:
            raise ValueError(f"expected the keys quantiles, reference and band_thresholds, got {values!r}")
        quantiles = values["quantiles"]
        quantiles = None if quantiles is None else tuple(quantiles)
        return cls(quantiles, values["reference"], tuple(values["band_thresholds"]))

    @classmethod
    def from_scores(cls, scores: ArrayLike, reference: str) -> Calibration:
        """The calibration on the scores of reference pictures, with the default bands."""
        quantiles = np.quantile(np.asarray(scores, dtype=np.float64), np.linspace(0.0, 1.0, QUANTILES))
        # Rounded, so that no two of them differ by less than interpolation between them can bear.
        return cls(tuple(np.maximum.accumulate(quantiles).round(6).tolist()), reference)
