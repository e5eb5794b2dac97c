"""Data sets of any size: scored so that nothing is lost or twice, filtered, and summed up.

| name | what it does |
|---|---|
| `score_dataset` | a folder, glob, list, Parquet files or WebDataset tars to a folder of Parquet shards; resumes |
| `RaliBatchScorer` | for `ray.data.Dataset.map_batches` in a pipeline of your own |
| `filter_dataset` | the rows that reach a score or are among the best, of all or of each group |
| `summarise`, `summarise_groups` | counts, quantiles, bands, histogram |

Needs the extra `dataset` (pyarrow, fsspec), the engine for clusters the extra `ray`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_scorer import RaliBatchScorer
    from .filter import Selection, filter_dataset
    from .score import DatasetResult, score_dataset
    from .stats import GroupSummary, Summary, summarise, summarise_groups

__all__ = [
    "DatasetResult",
    "GroupSummary",
    "RaliBatchScorer",
    "Selection",
    "Summary",
    "filter_dataset",
    "score_dataset",
    "summarise",
    "summarise_groups",
]

_HOMES = {
    "batch_scorer": ("RaliBatchScorer",),
    "filter": ("Selection", "filter_dataset"),
    "score": ("DatasetResult", "score_dataset"),
    "stats": ("GroupSummary", "Summary", "summarise", "summarise_groups"),
}


def __getattr__(name: str) -> Any:
    # pyarrow and torch take seconds to import.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module("." + module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
