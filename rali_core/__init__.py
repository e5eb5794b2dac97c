"""RALI: image quality scores from one image encoder pass (Zhao et al., ICLR 2026).

from rali_core import RaliScorer

result = RaliScorer.from_pretrained().score(["a.jpg", "b.png"])
result.scores, result.bands, result.percentiles
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import CheckpointError, ModelInfo, load_model, read_metadata, save_model
    from .images import ImageError
    from .model import RaliModel
    from .scorer import ImageScore, PrototypeShare, RaliScorer, ScoreResult
    from .selection import at_least, rank, top_k

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
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

_HOMES = {
    "checkpoint": ("CheckpointError", "ModelInfo", "load_model", "read_metadata", "save_model"),
    "images": ("ImageError",),
    "model": ("RaliModel",),
    "scorer": ("ImageScore", "PrototypeShare", "RaliScorer", "ScoreResult"),
    "selection": ("at_least", "rank", "top_k"),
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds: `rali --help` and a ComfyUI start-up should not pay for it.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module("." + module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
