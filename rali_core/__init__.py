"""RALI: image quality scores from one image encoder pass (Zhao et al., ICLR 2026).

from rali_core import RaliScorer

result = RaliScorer.from_pretrained().score(["a.jpg", "b.png"])
result.scores, result.bands, result.percentiles
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import import_on_first_use

if TYPE_CHECKING:
    from .attributes import ImageAttributes
    from .checkpoint import CheckpointError, ModelInfo, load_model, read_metadata, save_model
    from .explain import PrototypeShare
    from .images import ImageError
    from .model import RaliModel
    from .results import ImageScore, ScoreResult
    from .scorer import RaliScorer
    from .selection import at_least, rank, top_k

__version__ = "0.3.0"

__all__ = [
    "CheckpointError",
    "ImageAttributes",
    "ImageError",
    "ImageScore",
    "ModelInfo",
    "PrototypeShare",
    "RaliModel",
    "RaliScorer",
    "ScoreResult",
    "__version__",
    "at_least",
    "load_model",
    "rank",
    "read_metadata",
    "save_model",
    "top_k",
]

__getattr__ = import_on_first_use(
    __name__,
    {
        "attributes": ("ImageAttributes",),
        "checkpoint": ("CheckpointError", "ModelInfo", "load_model", "read_metadata", "save_model"),
        "explain": ("PrototypeShare",),
        "images": ("ImageError",),
        "model": ("RaliModel",),
        "results": ("ImageScore", "ScoreResult"),
        "scorer": ("RaliScorer",),
        "selection": ("at_least", "rank", "top_k"),
    },
)


def __dir__() -> list[str]:
    return __all__
