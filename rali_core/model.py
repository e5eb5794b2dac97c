"""Pixels to scores: preprocessing, image encoder and head as one differentiable module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attributes import Attribute, AttributeProbes
from .constants import Coverage
from .devices import to_device
from .encoder import EncoderConfig, build_encoder
from .head import PrototypeHead
from .preprocess import PreprocessConfig, preprocess, view_weights
from .vision_transformer import ClipEncoder, DinoEncoder


def find_domain(domains: Iterable[str], name: str | None) -> str | None:
    """The one of a model's domains that is called so or begins so; None for None.

    Raises:
        ValueError: None of them, or several, begin so.
    """
    if name is None:
        return None
    found = [known for known in domains if name and known.startswith(name)]
    if len(found) != 1:
        known = ", ".join(map(repr, domains)) or "none: leave `domain` (--domain) out"
        raise ValueError(f"unknown domain {name!r}; this model knows {known}")
    return found[0]


class RaliModel(nn.Module):
    """RALI (Zhao et al., ICLR 2026): image encoder and prototype head.

    Args:
        encoder_config: Which image encoder.
        preprocess_config: Size and normalisation of its input.
        pca_dim: P, dimension after PCA.
        prototypes: K, number of prototypes.
        coverage: How `forward` scores images that are not square, by default.
        attributes: Attributes of its probes; without any, `probes` is None.
        domains: Kinds of images that can be told, see `set_domain`, with `head.domain_coordinate` of each.

    Attributes:
        domain: The one that was told, or None.

    Raises:
        ValueError: The encoder cannot be built, or its input size differs from the preprocessing's.

    Examples:
        >>> from rali_core import RaliScorer
        >>> model = RaliScorer.from_pretrained().model
        >>> pixels = torch.rand(1, 3, 256, 256, requires_grad=True)
        >>> model(pixels).sum().backward()
        >>> tuple(pixels.grad.shape)
        (1, 3, 256, 256)
    """

    def __init__(
        self,
        encoder_config: EncoderConfig,
        preprocess_config: PreprocessConfig,
        *,
        pca_dim: int,
        prototypes: int,
        coverage: Coverage = "center",
        attributes: Sequence[Attribute] = (),
        domains: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if encoder_config.image_size != preprocess_config.image_size:
            raise ValueError(
                f"the encoder takes {encoder_config.image_size} pixels, the preprocessing makes "
                f"{preprocess_config.image_size}"
            )
        self.encoder_config = encoder_config
        self.preprocess_config = preprocess_config
        self.coverage: Coverage = coverage
        self.domains = dict(domains or {})
        self.domain: str | None = None
        self.encoder = build_encoder(encoder_config)
        self.head = PrototypeHead(encoder_config.embed_dim, pca_dim, prototypes)
        self.probes = AttributeProbes(attributes, encoder_config.embed_dim) if attributes else None

    def set_domain(self, name: str | None) -> None:
        """Tell what kind of images will be scored, which the model otherwise finds out from each image.

        Args:
            name: One of `domains`, or the beginning of one, such as `"generated"`; None: it is not known.

        Raises:
            ValueError: None of them, or several, begin so.
        """
        self.domain = find_domain(self.domains, name)
        self.head.domain_coordinate = None if self.domain is None else self.domains[self.domain]

    def preprocess(self, pixels: Tensor, *, coverage: Coverage | None = None) -> Tensor:
        """(B, 3, H, W) pixels in [0, 1] to (B, T, 3, S, S) encoder input; see `preprocess.preprocess`."""
        return preprocess(pixels, self.preprocess_config, coverage=coverage or self.coverage)

    def view_weights(self, height: int, width: int, *, coverage: Coverage | None = None) -> Tensor:
        """(T,) what the crops of an image count for in its score; see `preprocess.view_weights`."""
        return view_weights(height, width, self.preprocess_config, coverage=coverage or self.coverage)

    def embed(self, inputs: Tensor) -> Tensor:
        """(N, 3, S, S) encoder input to (N, D) un-normalised embeddings, in the encoder's dtype.

        On a CPU a plain encoder gets the fastest number at a time, `ViTConfig.max_batch`.
        """
        dtype = next(self.encoder.parameters()).dtype
        passes = 1
        if inputs.device.type == "cpu" and isinstance(self.encoder, ClipEncoder | DinoEncoder):
            passes = max(1, math.ceil(len(inputs) / self.encoder.shape.max_batch(dtype.itemsize)))
        return torch.cat([self._embed_once(part.to(dtype)) for part in inputs.tensor_split(passes)])

    def _embed_once(self, inputs: Tensor) -> Tensor:
        embedding = self.encoder(inputs)
        pooled: Tensor = embedding[0] if isinstance(embedding, tuple) else embedding  # output_tokens returns a pair
        return pooled

    def weights(self, pixels: Tensor, *, coverage: Coverage | None = None) -> Tensor:
        """(B, 3, H, W) pixels in [0, 1] to (B, K) prototype weights, averaged over the crops; rows sum to 1.

        The score is their inner product with `head.scores`.
        """
        crops = self.preprocess(pixels, coverage=coverage)
        weights = self.head.weights(self.embed(crops.flatten(0, 1))).view(*crops.shape[:2], -1)
        shares = to_device(self.view_weights(*pixels.shape[-2:], coverage=coverage).to(weights.dtype), weights.device)
        return (weights * shares.unsqueeze(-1)).sum(dim=1)

    def forward(self, pixels: Tensor, *, coverage: Coverage | None = None) -> Tensor:
        """Score images of one size; differentiable.

        Args:
            pixels: (B, 3, H, W), floating point, RGB in [0, 1], on the model's device.
            coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"`; by default the model's own setting.

        Returns:
            (B,) float32 scores, higher is better; averaged over the crops, see `view_weights`.

        Raises:
            TypeError, ValueError: `pixels` has another type, shape or range; see `preprocess.check_pixels`.
        """
        crops = self.preprocess(pixels, coverage=coverage)
        scores: Tensor = self.head(self.embed(crops.flatten(0, 1))).view(crops.shape[:2])
        shares = to_device(self.view_weights(*pixels.shape[-2:], coverage=coverage).to(scores.dtype), scores.device)
        return (scores * shares).sum(dim=1)

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """What the probes tell besides the score; empty for a model without probes."""
        return () if self.probes is None else self.probes.attributes

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.head.mean.device


def with_image_size(model: RaliModel, image_size: int) -> RaliModel:
    """The same model for another input size; its position embeddings are resampled (bicubic, antialiased).

    Args:
        model: A model whose encoder is a plain vision transformer.
        image_size: Side of the new input in pixels.

    Raises:
        ValueError: The encoder is not a plain vision transformer.
    """
    if image_size == model.preprocess_config.image_size:
        return model
    names = [name for name in ("encoder.trunk.pos_embed", "encoder.positional_embedding") if name in model.state_dict()]
    if not names:
        raise ValueError(
            f"only a plain vision transformer can take another image size, got {type(model.encoder).__name__}"
        )
    encoder_config = replace(
        model.encoder_config, vision_cfg={**model.encoder_config.vision_cfg, "image_size": image_size}
    )
    result = RaliModel(
        encoder_config, replace(model.preprocess_config, image_size=image_size),
        pca_dim=len(model.head.components), prototypes=len(model.head.scores), coverage=model.coverage,
        attributes=model.attributes, domains=model.domains,
    )  # fmt: skip
    result.set_domain(model.domain)
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    positions, wanted = state[names[0]], result.state_dict()[names[0]]
    old, new = (math.isqrt(tensor.shape[-2] - 1) for tensor in (positions, wanted))
    grid = positions.reshape(-1, positions.shape[-1])[1:].T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    patches = grid.reshape(positions.shape[-1], -1).T
    state[names[0]] = torch.cat([positions.reshape(-1, positions.shape[-1])[:1], patches]).reshape(wanted.shape)
    result.load_state_dict(state)
    return result.eval()
