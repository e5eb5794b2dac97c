"""Embeddings of single patches, in the space in which the head scores whole images.

Not part of the paper: RALI scores the pooled embedding only. Each patch token passes through the class token's
layers (norm, projection) and the same head. The head never saw patch tokens in training: such scores show where in an
image the evidence is, they are not calibrated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def embed_patches(encoder: nn.Module, inputs: Tensor) -> Tensor:
    """Patch embeddings of an encoder.

    Args:
        encoder: An encoder from `encoder.build_encoder` with a class token.
        inputs: (N, 3, S, S) normalised encoder input in the encoder's dtype.

    Returns:
        (N, g, g, D) un-normalised embeddings, rows from top to bottom.

    Raises:
        ValueError: The encoder has no class token, or its tokens form no square.
    """
    module: Any = encoder
    trunk = getattr(module, "trunk", None)
    if trunk is not None:
        tokens = _timm_tokens(trunk, inputs)
        embedded: Tensor = module.head(trunk.forward_head(tokens.reshape(-1, 1, tokens.shape[-1])))
        embedded = embedded.view(*tokens.shape[:2], -1)
    else:
        embedded = _open_clip_tokens(module, inputs)
    side = math.isqrt(embedded.shape[1])
    if side * side != embedded.shape[1]:
        raise ValueError(f"expected a square of patches, got {embedded.shape[1]} tokens")
    return embedded.reshape(len(embedded), side, side, -1)


def _timm_tokens(trunk: Any, inputs: Tensor) -> Tensor:
    if getattr(trunk, "global_pool", None) != "token":
        raise ValueError("this encoder pools its patches without a class token: use tiles instead of patch tokens")
    tokens: Tensor = trunk.forward_features(inputs)
    patches: Tensor = tokens[:, trunk.num_prefix_tokens :]
    return patches


def _open_clip_tokens(encoder: Any, inputs: Tensor) -> Tensor:
    if getattr(encoder, "pool_type", None) != "tok" or getattr(encoder, "attn_pool", None) is not None:
        raise ValueError("this encoder pools its patches without a class token: use tiles instead of patch tokens")
    before = encoder.output_tokens
    encoder.output_tokens = True
    try:
        _, tokens = encoder(inputs)
    finally:
        encoder.output_tokens = before
    projected: Tensor = tokens if encoder.proj is None else torch.matmul(tokens, encoder.proj)
    return projected
