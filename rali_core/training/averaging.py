"""Averages the weights of models that were trained from the same start.

Source: Wortsman et al., "Model soups", ICML 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..model import RaliModel


def average_models(models: Sequence[RaliModel], weights: Sequence[float] | None = None) -> RaliModel:
    """The weighted average of models of one architecture, encoder and head.

    Heads of different trainings have unrelated prototypes, so the averaged encoder needs a new head: train with the
    averaged file as backbone, without align and tune. Probes of attributes and domains are left
    out: they belong to one encoder.

    Args:
        models: At least two.
        weights: One for each model, at least 0; they are divided by their sum. By default equal.

    Returns:
        A new model in evaluation mode.

    Raises:
        ValueError: Fewer than two models, weights that do not fit, or models of different architectures.
    """
    shares = [1.0] * len(models) if weights is None else list(weights)
    if len(models) < 2 or len(shares) != len(models):
        raise ValueError(f"expected at least two models and a weight for each, got {len(models)} and {len(shares)}")
    if min(shares) < 0 or not sum(shares) > 0:
        raise ValueError(f"weights must be at least 0 and not all 0, got {shares}")
    first = models[0]
    for model in models[1:]:
        if model.encoder_config != first.encoder_config or model.preprocess_config != first.preprocess_config:
            raise ValueError("the models have different encoders or preprocessing: only alike models can be averaged")
    states = [
        {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("probes.")}
        for model in models
    ]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes[1:]):
        raise ValueError("the models have heads of different sizes: only alike models can be averaged")
    result = RaliModel(
        first.encoder_config, first.preprocess_config,
        pca_dim=len(first.head.components), prototypes=len(first.head.scores), coverage=first.coverage,
    )  # fmt: skip
    total = sum(shares)
    result.load_state_dict({
        name: torch.stack([state[name].float() * (share / total) for state, share in zip(states, shares, strict=True)])
        .sum(dim=0)
        for name in states[0]
    })  # fmt: skip
    return result.eval()
