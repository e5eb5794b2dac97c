"""Best of N, early pruning, step scores and guidance for diffusers pipelines.

from rali_core.diffusers_hook import SuccessiveHalving, best_of_n

result = best_of_n(pipe, n=16, prune=SuccessiveHalving(), prompt="a lighthouse at dusk", num_inference_steps=30)
result.images[0], result.scores[0], result.seeds[0]

Only the modular block imports diffusers: otherwise a pipeline is an object that the caller made, used through its
documented protocol (`__call__`, `callback_on_step_end`, `scheduler`, `vae`). docs/diffusers.md has versions and limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import import_on_first_use

if TYPE_CHECKING:
    from .guidance import RaliGuidance
    from .latents import decode_latents, latents_to_pixels
    from .modular import RaliBestOfNBlock
    from .pruning import SuccessiveHalving
    from .result import BestOfN, BestOfNReport, Candidate
    from .search import best_of_n
    from .step_callback import RaliStepCallback, StepScores

__all__ = [
    "BestOfN",
    "BestOfNReport",
    "Candidate",
    "RaliBestOfNBlock",
    "RaliGuidance",
    "RaliStepCallback",
    "StepScores",
    "SuccessiveHalving",
    "best_of_n",
    "decode_latents",
    "latents_to_pixels",
]

__getattr__ = import_on_first_use(
    __name__,
    {
        "search": ("best_of_n",),
        "guidance": ("RaliGuidance",),
        "latents": ("decode_latents", "latents_to_pixels"),
        "modular": ("RaliBestOfNBlock",),
        "pruning": ("SuccessiveHalving",),
        "result": ("BestOfN", "BestOfNReport", "Candidate"),
        "step_callback": ("RaliStepCallback", "StepScores"),
    },
    old_names={"Report": "BestOfNReport"},
)


def __dir__() -> list[str]:
    return __all__
