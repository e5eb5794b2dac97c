"""Data sets of any size: scored so that nothing is lost or scored twice, filtered, and summarised.

| name | what it does |
|---|---|
| `score_dataset` | a folder, glob, list, Parquet files or WebDataset tars to a folder of Parquet shards; resumes |
| `RaliBatchScorer` | for `ray.data.Dataset.map_batches` in your own pipeline |
| `filter_dataset` | the rows that reach a score or are among the best, of all or of each group |
| `summarise`, `summarise_groups` | counts, quantiles, bands, histogram |

Needs the extra `dataset` (pyarrow, fsspec), the engine for clusters the extra `ray`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import import_on_first_use

if TYPE_CHECKING:
    from .batch_scorer import RaliBatchScorer
    from .filter import Selection, filter_dataset
    from .score import DatasetResult, score_dataset
    from .stats import DatasetSummary, GroupSummary, summarise, summarise_groups

__all__ = [
    "DatasetResult",
    "DatasetSummary",
    "GroupSummary",
    "RaliBatchScorer",
    "Selection",
    "filter_dataset",
    "score_dataset",
    "summarise",
    "summarise_groups",
]

# pyarrow and torch take seconds to import.
__getattr__ = import_on_first_use(
    __name__,
    {
        "batch_scorer": ("RaliBatchScorer",),
        "filter": ("Selection", "filter_dataset"),
        "score": ("DatasetResult", "score_dataset"),
        "stats": ("DatasetSummary", "GroupSummary", "summarise", "summarise_groups"),
    },
    old_names={"Summary": "DatasetSummary"},
)
