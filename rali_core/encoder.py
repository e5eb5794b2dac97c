"""The image encoder: any open_clip vision encoder, built from a configuration in the model file.

Plain vision transformers, the bundled model's and the authors' among them, are built by `vision_transformer`, so that
open_clip and timm need not be imported to score; any other encoder by open_clip. The parameters' names are the same.

No text tower is built. The encoder's output is the pooled, projected, **un-normalised** embedding (B, D), which is
what RALI's head takes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from .vision_transformer import build_plain


@dataclass(frozen=True)
class EncoderConfig:
    """An open_clip vision encoder.

    Attributes:
        embed_dim: Dimension D of the embedding.
        vision_cfg: open_clip's `vision_cfg`, such as `{"image_size": 336, "layers": 24, "width": 1024, ...}`, or a
            timm encoder, `{"timm_model_name": "vit_small_patch14_dinov2", "image_size": 224, ...}`.
        quick_gelu: True for the QuickGELU activation of OpenAI's CLIP.
    """

    embed_dim: int
    vision_cfg: dict[str, Any] = field(hash=False)
    quick_gelu: bool = False

    def __post_init__(self) -> None:
        if type(self.embed_dim) is not int or self.embed_dim < 1:
            raise ValueError(f"embed_dim must be a positive whole number, got {self.embed_dim!r}")
        if not isinstance(self.vision_cfg, dict) or not all(isinstance(key, str) for key in self.vision_cfg):
            raise ValueError(f"vision_cfg must be a dictionary of open_clip settings, got {self.vision_cfg!r}")
        if not isinstance(self.quick_gelu, bool):
            raise ValueError(f"quick_gelu must be true or false, got {self.quick_gelu!r}")

    @property
    def image_size(self) -> int:
        """Side of the encoder's square input, in pixels."""
        size = self.vision_cfg.get("image_size", 224)
        if type(size) is not int:
            raise ValueError(f"vision_cfg's image_size must be one whole number (square input), got {size!r}")
        return size

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """The configuration from a `to_dict`.

        Raises:
            ValueError: A key is missing or unknown, or a value is of the wrong type.
        """
        if not isinstance(values, dict) or set(values) != {"embed_dim", "vision_cfg", "quick_gelu"}:
            raise ValueError(f"expected the keys embed_dim, vision_cfg and quick_gelu, got {values!r}")
        return cls(**values)

    @classmethod
    def from_open_clip(cls, name: str) -> EncoderConfig:
        """The vision part of one of open_clip's own model configurations.

        Args:
            name: open_clip's model name, such as `"ViT-L-14-336-quickgelu"`.

        Raises:
            ValueError: open_clip has no model of that name.
        """
        import open_clip

        config = open_clip.get_model_config(name)
        if config is None:
            raise ValueError(f"open_clip knows no model {name!r}; open_clip.list_models() lists its names")
        return cls(
            embed_dim=config["embed_dim"],
            vision_cfg=dict(config["vision_cfg"]),
            quick_gelu=bool(config.get("quick_gelu", False)),
        )


def build_encoder(config: EncoderConfig) -> nn.Module:
    """Build the encoder with random weights, to be filled from a checkpoint.

    Args:
        config: Which encoder.

    Returns:
        A module from (B, 3, S, S) normalised input to (B, D) embeddings, float32, in evaluation mode.

    Raises:
        ValueError: open_clip or timm cannot build an encoder from this configuration.
    """
    plain = _build_plain(config)
    if plain is not None:
        return plain.eval()
    # open_clip has no public builder for the vision encoder alone; create_model would build a text tower too.
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    settings = dict(config.vision_cfg)
    timm_name = settings.get("timm_model_name")
    if timm_name:
        import timm

        # A name such as "hf-hub:..." would make timm access the network, controlled by the author of the file.
        if not timm.is_model(timm_name):
            raise ValueError(f"timm has no model {timm_name!r}; a newer timm may be needed (pip install -U timm)")
        settings["timm_model_pretrained"] = False
    try:
        encoder = _build_vision_tower(config.embed_dim, CLIPVisionCfg(**settings), config.quick_gelu)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise ValueError(f"open_clip cannot build a vision encoder from {config.vision_cfg!r}: {error}") from error
    if timm_name and hasattr(encoder.trunk, "set_input_size"):
        # open_clip does not pass its image_size to timm, whose DINOv2 would insist on 518 pixels.
        encoder.trunk.set_input_size(img_size=(config.image_size, config.image_size))
    module: nn.Module = encoder.eval()
    return module


def _build_plain(config: EncoderConfig) -> nn.Module | None:
    try:
        return build_plain(config.embed_dim, config.vision_cfg, quick_gelu=config.quick_gelu)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"cannot build a vision encoder from {config.vision_cfg!r}: {error}") from error
