"""RALI's head: PCA, cosine with prototypes, softmax, weighted sum of the prototypes' scores.

Source: Zhao et al., "Reasoning as Representation", ICLR 2026 (arXiv 2510.11369), section 4, stages 2 and 3:

    z     = (x - mean) / |scale| @ components^T          x: un-normalised image embedding
    z_P   = that of the domain                           only where the domain is told; beyond the paper
    w     = softmax_i( cos(z, mu_i) * logit_scale )      logit_scale = 1 / tau
    score = sum_i w_i f_i

Everything here is computed in float32 or better, whatever the encoder's dtype: cosines near 1 under a temperature of
0.07 lose too much in 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

LOGIT_SCALE_FLOOR = 1e-6
"""The official module's lower limit of logit_scale; a negative one would invert the ranking."""


def compress(embedding: Tensor, mean: Tensor, scale: Tensor, components: Tensor) -> Tensor:
    """Centre, divide by the scale, project on the principal components; arguments as for `project`, (B, P)."""
    return (embedding - mean) / scale.abs() @ components.T


def project(
    embedding: Tensor, mean: Tensor, scale: Tensor, components: Tensor, *, domain_coordinate: float | None = None
) -> Tensor:
    """Compress embeddings: centre, divide by the scale, project on the principal components, L2-normalise.

    Args:
        embedding: (B, D), **not** L2-normalised.
        mean: (D,) mean of the training embeddings.
        scale: (D,) divisor per dimension; its sign is ignored.
        components: (P, D) principal components.
        domain_coordinate: Takes the place of the last coordinate, see `PrototypeHead.domain_coordinate`.

    Returns:
        (B, P) of unit length.
    """
    projected = compress(embedding, mean, scale, components)
    if domain_coordinate is not None:
        last = torch.full_like(projected[..., -1:], domain_coordinate)
        projected = torch.cat([projected[..., :-1], last], dim=-1)
    return functional.normalize(projected, dim=-1)


def weigh_prototypes(projected: Tensor, prototypes: Tensor, logit_scale: Tensor) -> Tensor:
    """Softmax over the cosines with the prototypes.

    Args:
        projected: (B, P) of unit length.
        prototypes: (K, P) of any length; normalised here.
        logit_scale: () inverse temperature 1 / tau; values under 1e-6 count as 1e-6.

    Returns:
        (B, K), each row sums to 1.
    """
    cosine = projected @ functional.normalize(prototypes, dim=-1).T
    return (cosine * logit_scale.clamp_min(LOGIT_SCALE_FLOOR)).softmax(dim=-1)


def score_embeddings(
    embedding: Tensor,
    *,
    mean: Tensor,
    scale: Tensor,
    components: Tensor,
    prototypes: Tensor,
    scores: Tensor,
    logit_scale: Tensor,
    domain_coordinate: float | None = None,
) -> Tensor:
    """The whole head as one pure function: (B, D) embeddings to (B,) scores; arguments as in the parts above.

    Examples:
        >>> x = torch.tensor([[2.0, 0.0]])
        >>> eye = torch.eye(2)
        >>> f = torch.tensor([0.9, 0.1])
        >>> one = torch.ones(2)
        >>> score = score_embeddings(x, mean=0 * one, scale=one, components=eye, prototypes=eye, scores=f,
        ...                          logit_scale=torch.tensor(10.0))
        >>> round(float(score), 4)
        0.9
    """
    projected = project(embedding, mean, scale, components, domain_coordinate=domain_coordinate)
    weights = weigh_prototypes(projected, prototypes, logit_scale)
    return weights @ scores


class PrototypeHead(nn.Module):
    """Holds the head's tensors.

    Args:
        embed_dim: D, dimension of the embedding.
        pca_dim: P, dimension after PCA.
        prototypes: K, number of prototypes.

    Attributes:
        domain_coordinate: Where the domain of the images is known, what their last coordinate is then: that component
            tells the domains apart (`CompressConfig.set_scale`). None: each image's own. Not part of the state dict.
    """

    mean: Tensor
    domain_coordinate: float | None = None

    def __init__(self, embed_dim: int, pca_dim: int, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.scale = nn.Parameter(torch.ones(embed_dim))
        self.components = nn.Parameter(torch.zeros(pca_dim, embed_dim))
        self.prototypes = nn.Parameter(torch.zeros(prototypes, pca_dim))
        self.scores = nn.Parameter(torch.zeros(prototypes))
        self.logit_scale = nn.Parameter(torch.ones(()))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> PrototypeHead:
        """A head of these tensors, by their names in its state dict."""
        pca_dim, embed_dim = state["components"].shape
        head = cls(embed_dim, pca_dim, len(state["prototypes"]))
        head.load_state_dict(dict(state))
        return head

    def weights(self, embedding: Tensor) -> Tensor:
        """(B, D) embeddings of any floating dtype to (B, K) prototype weights in float32 or better."""
        tensors = self._tensors()
        with torch.autocast(embedding.device.type, enabled=False):
            projected = project(
                embedding.to(tensors["mean"].dtype), tensors["mean"], tensors["scale"], tensors["components"],
                domain_coordinate=self.domain_coordinate,
            )  # fmt: skip
            return weigh_prototypes(projected, tensors["prototypes"], tensors["logit_scale"])

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) embeddings of any floating dtype to (B,) scores in float32 or better."""
        tensors = self._tensors()
        with torch.autocast(embedding.device.type, enabled=False):
            embedding = embedding.to(tensors["mean"].dtype)
            return score_embeddings(embedding, **tensors, domain_coordinate=self.domain_coordinate)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}
