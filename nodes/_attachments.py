"""Attachments: latents, masks, seeds and anything else that belongs to images and is selected with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..rali_core.attachments import Attachment, attach, flat_numbers, join_latents
from ._convert import join_masks

ATTACHMENTS = ("attachment_1", "attachment_2", "attachment_3")
"""Inputs and outputs for anything."""


def block_output() -> ExecutionBlocker:
    """An output value that silently keeps the connected nodes from running."""
    return ExecutionBlocker(None)


@dataclass(frozen=True)
class Attachments:
    """The attachments of N images; None where nothing is wired."""

    attached: tuple[Attachment | None, ...]

    @classmethod
    def split(
        cls,
        count: int,
        latents: list[Any] | None = None,
        masks: list[Tensor] | None = None,
        seeds: list[Any] | None = None,
        **attachments: list[Any] | None,
    ) -> Attachments:
        """One latent, mask, seed and anything else for each of `count` images, or one for all; else an error."""
        wide = [mask if mask.ndim > 2 else mask.unsqueeze(0) for mask in masks or []]
        wired = {"latents": latents, "masks": wide, "seeds": flat_numbers(seeds or [])}
        wired |= {name: attachments.get(name) for name in ATTACHMENTS}
        return cls(tuple(attach(values, count, name) if values else None for name, values in wired.items()))

    def outputs(self, chosen: list[int]) -> list[Any]:
        """Those of the chosen images, in the order of the inputs; an output whose input is not wired is blocked."""
        selected = [each.select(chosen) if each and chosen else block_output() for each in self.attached]
        for place, join in ((0, join_latents), (1, join_masks)):
            if isinstance(selected[place], list) and len(selected[place]) > 1:
                selected[place] = join(selected[place])
        return selected
