"""RALI as a reward: one core, and thin adapters in the shapes that trainers and search scripts take.

| project | adapter | called as |
|---|---|---|
| your own loop | `RaliReward` | `reward(images) -> list[float]` |
| flow_grpo | `flow_grpo_score(device)` | `fn(images, prompts, metadata) -> (scores, info)` |
| TRL DDPO, AlignProp | `TrlReward` | `fn(images, prompts, metadata) -> (tensor, info)` |
| ReNO | `RenoLoss` | `loss(image, prompt) -> tensor with gradient` |
| tt-scale-flux | `ScaleFluxVerifier` | `score(prepare_inputs(images, prompts))` |
| torchmetrics | `RaliImageQuality` | `update(images)`, `compute()` |

A score says nothing about the prompt, and any reward that is optimised for long enough is hacked: combine it with
others (`CombinedReward`), clip it (`Clip`), rank it within the batch (`Ranks`), and look at the images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import import_on_first_use

if TYPE_CHECKING:
    from .combine import CombinedReward
    from .core import RaliReward
    from .flow_grpo import FlowGrpoReward, flow_grpo_score
    from .image_quality_metric import RaliImageQuality
    from .loss import RaliLoss
    from .reno import RenoLoss
    from .scale_flux import ScaleFluxVerifier
    from .transforms import Clip, Ranks, Standardise
    from .trl import TrlReward

__all__ = [
    "Clip",
    "CombinedReward",
    "FlowGrpoReward",
    "RaliImageQuality",
    "RaliLoss",
    "RaliReward",
    "Ranks",
    "RenoLoss",
    "ScaleFluxVerifier",
    "Standardise",
    "TrlReward",
    "flow_grpo_score",
]

__getattr__ = import_on_first_use(
    __name__,
    {
        "combine": ("CombinedReward",),
        "core": ("RaliReward",),
        "flow_grpo": ("FlowGrpoReward", "flow_grpo_score"),
        "image_quality_metric": ("RaliImageQuality",),
        "loss": ("RaliLoss",),
        "reno": ("RenoLoss",),
        "scale_flux": ("ScaleFluxVerifier",),
        "transforms": ("Clip", "Ranks", "Standardise"),
        "trl": ("TrlReward",),
    },
)


def __dir__() -> list[str]:
    return __all__
