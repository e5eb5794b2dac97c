"""Latents, masks and seeds that belong to images and go where these go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ._convert import check_numbers, join_latents, join_masks, split_latents, split_masks


def nothing() -> ExecutionBlocker:
    """Silently keeps whatever hangs on an output from running."""
    return ExecutionBlocker(None)


@dataclass(frozen=True)
class Followers:
    """What belongs to N images and is selected with them; None where nothing is wired."""

    latents: list[Any] | None
    masks: list[Tensor] | None
    seeds: list[int] | None

    @classmethod
    def split(
        cls, count: int, latents: list[Any] | None, masks: list[Tensor] | None, seeds: list[int] | None
    ) -> Followers:
        """One latent, mask and seed for each of `count` images; another number is an error."""
        return cls(split_latents(latents, count), split_masks(masks, count), check_numbers(seeds, count, "seeds"))

    def outputs(self, chosen: list[int]) -> tuple[Any, Any, Any]:
        """Of the chosen images; nothing runs on an output without an input."""
        latents, masks, seeds = (
            [items[index] for index in chosen] if items else [] for items in (self.latents, self.masks, self.seeds)
        )
        return (
            join_latents(latents) if latents else nothing(),
            join_masks(masks) if masks else nothing(),
            seeds or nothing(),
        )
