"""Best of N, early pruning, step scores and guidance for diffusers pipelines.

from rali_core.diffusers_hook import SuccessiveHalving, best_of_n

result = best_of_n(pipe, n=16, prune=SuccessiveHalving(), prompt="a lighthouse at dusk", num_inference_steps=30)
result.images[0], result.scores[0], result.seeds[0]

Nothing here imports diffusers: a pipeline is an object that the caller made, used through its documented protocol
(`__call__`, `callback_on_step_end`, `scheduler`, `vae`). See docs/diffusers.md for versions and limits.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .best_of_n import best_of_n
    from .guidance import RaliGuidance
    from .halving import SuccessiveHalving
    from .latents import decode_latents, latents_to_pixels
    from .result import BestOfN, Candidate, Report
    from .step_callback import RaliStepCallback, StepScores

__all__ = [
    "BestOfN",
    "Candidate",
    "RaliGuidance",
    "RaliStepCallback",
    "Report",
    "StepScores",
    "SuccessiveHalving",
    "best_of_n",
    "decode_latents",
    "latents_to_pixels",
]

_HOMES = {
    "best_of_n": ("best_of_n",),
    "guidance": ("RaliGuidance",),
    "halving": ("SuccessiveHalving",),
    "latents": ("decode_latents", "latents_to_pixels"),
    "result": ("BestOfN", "Candidate", "Report"),
    "step_callback": ("RaliStepCallback", "StepScores"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module("." + module, __name__), name)
            # Importing the submodule of the same name set the module itself as our attribute: put the function there.
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
