"""The ComfyUI nodes; each turns its inputs into tensors, makes one call into `rali_core` and turns the result back."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ._models import register_model_folder
from .combine import RaliCombineScores
from .draw import RaliDrawScore
from .folder import RaliLoadScore, RaliScoreFolder
from .gate import RaliGate
from .guide import RaliGuidance
from .load import RaliLoadModel
from .retry import RaliRetryEnd, RaliRetryStart
from .sample import RaliBestOfNCustom, RaliBestOfNSampler
from .save import RaliSaveImage
from .score import RaliScore
from .select import RaliBestOfN, RaliFilter
from .video import RaliScoreVideo
from .view import RaliContactSheet, RaliQualityMap

NODES: list[type[io.ComfyNode]] = [
    RaliLoadModel,
    RaliScore,
    RaliBestOfN,
    RaliFilter,
    RaliGate,
    RaliBestOfNSampler,
    RaliBestOfNCustom,
    RaliRetryStart,
    RaliRetryEnd,
    RaliGuidance,
    RaliQualityMap,
    RaliContactSheet,
    RaliCombineScores,
    RaliSaveImage,
    RaliScoreFolder,
    RaliScoreVideo,
    RaliLoadScore,
    RaliDrawScore,
]


class RaliExtension(ComfyExtension):
    """Lists the nodes for ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes."""
        return NODES


async def comfy_entrypoint() -> RaliExtension:
    """Called by ComfyUI when it loads the pack."""
    register_model_folder()
    return RaliExtension()
