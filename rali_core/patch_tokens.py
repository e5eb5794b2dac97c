"""Embeddings of single patches, in the space in which the head scores whole pictures.

Not part of the paper: RALI scores the pooled embedding only. Each patch token goes through what the tower does to its
class token (norm, projection), and so through the same head. The head never saw patch tokens in training: such scores
tell where in a picture the evidence lies, they are not calibrated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def embed_patches(encoder: nn.Module, inputs: Tensor) -> Tensor:
    """Patch embeddings of a tower.

    Args:
        encoder: A tower from `encoder.build_encoder` with a class token.
        inputs: (N, 3, S, S) normalised encoder input in the tower's dtype.

    Returns:
        (N, g, g, D) un-normalised embeddings, rows from top to bottom.

    Raises:
        ValueError: The tower has no class token, or its tokens form no square.
    """
    tower: Any = encoder
    trunk = getattr(tower, "trunk", None)
    if trunk is not None:
        tokens = _timm_tokens(trunk, inputs)
        embedded: Tensor = tower.head(trunk.forward_head(tokens.reshape(-1, 1, tokens.shape[-1])))
        embedded = embedded.view(*tokens.shape[:2], -1)
    else:
        embedded = _open_clip_tokens(tower, inputs)
    side = math.isqrt(embedded.shape[1])
    if side * side != embedded.shape[1]:
        raise ValueError(f"expected a square of patches, got {embedded.shape[1]} tokens")
    return embedded.reshape(len(embedded), side, side, -1)


def _timm_tokens(trunk: Any, inputs: Tensor) -> Tensor:
    if getattr(trunk, "global_pool", None) != "token":
        raise ValueError("this tower pools its patches without a class token: use tiles instead of patch tokens")
    tokens: Tensor = trunk.forward_features(inputs)
    patches: Tensor = tokens[:, trunk.num_prefix_tokens :]
    return patches


def _open_clip_tokens(tower: Any, inputs: Tensor) -> Tensor:
    if getattr(tower, "pool_type", None) != "tok" or getattr(tower, "attn_pool", None) is not None:
        raise ValueError("this tower pools its patches without a class token: use tiles instead of patch tokens")
    before = tower.output_tokens
    tower.output_tokens = True
    try:
        _, tokens = tower(inputs)
    finally:
        tower.output_tokens = before
    projected: Tensor = tokens if tower.proj is None else torch.matmul(tokens, tower.proj)
    return projected
