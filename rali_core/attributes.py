"""Image attributes: what is wrong with an image, by linear probes on the embedding that its score is made from.

An attribute is a kind of flaw, such as "blur". Its probe, a logistic regression on the encoder's embedding (G. Alain
and Y. Bengio, "Understanding intermediate layers using linear classifier probes", 2016, arXiv 1610.01644), estimates
its severity from 0 (none) to 1. `rali_core/training/attributes.py` fits the probes; a model file need not have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

VERSION = 1
"""Version of the metadata in model files."""


@dataclass(frozen=True)
class Attribute:
    """A kind of flaw that a model can detect.

    Attributes:
        name: A plain identifier, such as `"blur"`.
        word: The word for an image that has it, such as `"blurred"`.
        threshold: The severity from which on the word is used, above 0 and at most 1.
        auc: Area under the ROC curve on images that were held out of its fit, in [0, 1].
    """

    name: str
    word: str
    threshold: float
    auc: float

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or not self.word:
            raise ValueError(f"expected a plain name and a word, got {self.name!r} and {self.word!r}")
        if not 0.0 < self.threshold <= 1.0 or not 0.0 <= self.auc <= 1.0:
            raise ValueError(
                f"{self.name}: expected a threshold above 0 and at most 1 and an AUC in [0, 1], got {self.threshold} "
                f"and {self.auc}"
            )


@dataclass(frozen=True)
class ImageAttributes:
    """The attributes of one image.

    Attributes:
        values: Severity in [0, 1] by the attribute's name; 0 is none. The mean over the image's crops.
        words: The words of those that reach their threshold, most severe first; empty for an image without flaws.
    """

    values: dict[str, float]
    words: tuple[str, ...]


def no_probes(name: str) -> ValueError:
    """The error for a model of this name that is asked for attributes and has no probes."""
    return ValueError(
        f"the model {name!r} tells no attributes, because its file has no probes: ask for scores alone, or take a "
        "model file that has them (docs/model-file.md)"
    )


def to_metadata(attributes: Sequence[Attribute]) -> dict[str, Any]:
    """Attributes as the metadata of a model file, in plain JSON types."""
    return {"version": VERSION, "probes": [asdict(attribute) for attribute in attributes]}


def from_metadata(values: Any) -> tuple[Attribute, ...]:
    """The attributes from a `to_metadata`.

    Raises:
        ValueError: Another version, keys are missing or unknown, or a value is out of range.
    """
    if not isinstance(values, dict) or values.keys() != {"version", "probes"} or not isinstance(values["probes"], list):
        raise ValueError(f"expected the keys version and probes, a list, got {values!r}")
    if values["version"] != VERSION:
        raise ValueError(f"expected version {VERSION}, got {values['version']!r}: update the package (pip install -U)")
    try:
        attributes = tuple(Attribute(**each) for each in values["probes"])
    except TypeError as error:
        raise ValueError(f"expected name, word, threshold and auc of each probe ({error})") from error
    if not attributes or len({attribute.name for attribute in attributes}) < len(attributes):
        raise ValueError(f"expected probes of different names, got {[attribute.name for attribute in attributes]}")
    return attributes


class AttributeProbes(nn.Module):
    """Severities of A attributes: sigmoid(weight @ embedding + bias), in float32 or better.

    Args:
        attributes: A attributes.
        embed_dim: D, dimension of the embedding.
    """

    def __init__(self, attributes: Sequence[Attribute], embed_dim: int) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.weight = nn.Parameter(torch.zeros(len(attributes), embed_dim))
        self.bias = nn.Parameter(torch.zeros(len(attributes)))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) un-normalised embeddings of any floating dtype to (B, A) severities in [0, 1]."""
        with torch.autocast(embedding.device.type, enabled=False):
            return (embedding.to(self.weight.dtype) @ self.weight.T + self.bias).sigmoid()

    def describe(self, values: Sequence[float]) -> ImageAttributes:
        """One image's A severities with the words for them."""
        found = [
            ((value - attribute.threshold) / max(1.0 - attribute.threshold, 1e-6), attribute.word)
            for attribute, value in zip(self.attributes, values, strict=True)
            if value >= attribute.threshold
        ]
        names = [attribute.name for attribute in self.attributes]
        words = tuple(word for _, word in sorted(found, key=lambda pair: -pair[0]))
        return ImageAttributes(dict(zip(names, map(float, values), strict=True)), words)
