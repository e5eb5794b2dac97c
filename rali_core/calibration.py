"""What a score means: its percentile among reference images, and its band."""

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
class Population:
    """The scores of reference images of one kind.

    Attributes:
        name: The kind of images, such as `"photographs"`.
        reference: Which images these are.
        quantiles: Ascending scores at percentiles 0, 1, ... 100.
    """

    name: str
    reference: str
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantiles", _ascending("quantiles", self.quantiles, QUANTILES))
        for name in ("name", "reference"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}")

    @classmethod
    def from_scores(cls, name: str, scores: ArrayLike, reference: str) -> Population:
        """The population of (N,) scores of reference images."""
        quantiles = np.quantile(np.asarray(scores, dtype=np.float64), np.linspace(0.0, 1.0, QUANTILES))
        # Rounded, so that no two of them are too close for interpolation between them.
        return cls(name, reference, tuple(np.maximum.accumulate(quantiles).round(6).tolist()))


def _ascending(name: str, values: Any, length: int) -> tuple[float, ...]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (length,) or not np.isfinite(array).all() or (np.diff(array) < 0).any():
        raise ValueError(f"{name} must be {length} ascending finite numbers, got {values!r}")
    return tuple(array.tolist())


@dataclass(frozen=True)
class Calibration:
    """Reference populations and band limits of a model.

    Attributes:
        populations: Reference images of one or several kinds; the first is the default for
            percentiles. Empty if there are no reference images: then there are bands but no percentiles.
        band_thresholds: Ascending lower limits of poor, fair, good and excellent.
    """

    populations: tuple[Population, ...] = ()
    band_thresholds: tuple[float, ...] = BAND_THRESHOLDS

    def __post_init__(self) -> None:
        limits = _ascending("band_thresholds", self.band_thresholds, len(BAND_NAMES) - 1)
        object.__setattr__(self, "band_thresholds", limits)
        names = self.population_names
        if len(set(names)) < len(names):
            raise ValueError(f"each population needs its own name, got {names}")

    @property
    def population_names(self) -> tuple[str, ...]:
        """Names of the kinds of reference images, such as `("photographs", "generated images")`."""
        return tuple(population.name for population in self.populations)

    @property
    def reference(self) -> str:
        """Which images the percentiles are among, in one line."""
        shown = [f"{population.name}: {population.reference}" for population in self.populations]
        return "; ".join(shown) or "no reference images"

    def percentiles(self, scores: ArrayLike, population: str | None = None) -> NDArray[np.float32]:
        """Percentile of each score among reference images, 0..100, linear between the stored quantiles.

        Args:
            scores: (N,) scores; NaN stays NaN.
            population: Which kind of reference images; by default the first.

        Returns:
            (N,) percentage of the reference images that score lower; all NaN without reference images.

        Raises:
            ValueError: There is no such population.
        """
        if population is not None and population not in self.population_names:
            raise ValueError(f"no population {population!r}; there are: {', '.join(self.population_names) or 'none'}")
        found = [each for each in self.populations if population in (None, each.name)]
        if not found:
            return np.full(np.shape(scores), np.nan, dtype=np.float32)
        # Equal neighbours would make the interpolation ambiguous: keep the last of each run of equal quantiles.
        knots = np.asarray(found[0].quantiles)
        keep = np.append(np.diff(knots) > 0, True)
        percent = np.linspace(0.0, 100.0, QUANTILES)
        values: NDArray[np.float64] = np.interp(np.asarray(scores, dtype=np.float64), knots[keep], percent[keep])
        return values.astype(np.float32)

    def describe(self, score: float) -> str:
        """A score's percentiles in words, such as "better than 92 % of photographs, 88 % of generated images"."""
        shares = [(float(self.percentiles([score], name)[0]), name) for name in self.population_names]
        return "better than " + ", ".join(f"{share:.0f} % of {name}" for share, name in shares) if shares else ""

    def bands(self, scores: ArrayLike) -> tuple[str, ...]:
        """Name of each score's band: bad, poor, fair, good or excellent.

        Args:
            scores: (N,) scores, none of them NaN.
        """
        values = np.asarray(scores, dtype=np.float64).ravel().tolist()
        return tuple(BAND_NAMES[bisect_right(self.band_thresholds, value)] for value in values)

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain JSON types."""
        populations = [
            {"name": each.name, "reference": each.reference, "quantiles": list(each.quantiles)}
            for each in self.populations
        ]
        return {"populations": populations, "band_thresholds": list(self.band_thresholds)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """The calibration from a `to_dict` of this version or of 0.1 (one unnamed population).

        Raises:
            ValueError: A key is missing or unknown, or a value is unusable.
        """
        if isinstance(values, dict) and set(values) == {"quantiles", "reference", "band_thresholds"}:
            quantiles, reference = values["quantiles"], values["reference"]
            old = () if quantiles is None else (Population("reference images", reference, tuple(quantiles)),)
            return cls(old, tuple(values["band_thresholds"]))
        if not isinstance(values, dict) or set(values) != {"populations", "band_thresholds"}:
            raise ValueError(f"expected the keys populations and band_thresholds, got {values!r}")
        try:
            populations = tuple(
                Population(each["name"], each["reference"], tuple(each["quantiles"])) for each in values["populations"]
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"populations must be a list of name, reference and quantiles: {error!r}") from error
        return cls(populations, tuple(values["band_thresholds"]))

    @classmethod
    def from_scores(cls, populations: dict[str, tuple[ArrayLike, str]]) -> Calibration:
        """A calibration from scores of reference images, with the default bands.

        Args:
            populations: Name to ((N,) scores, which images these are).
        """
        return cls(tuple(Population.from_scores(name, *given) for name, given in populations.items()))
