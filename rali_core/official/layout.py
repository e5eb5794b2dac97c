"""Where a release keeps its files, and what its two JSON files say about the encoder and its input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..encoder import EncoderConfig
from ..preprocess import PreprocessConfig

CHECKPOINT, PCA, BASIS = "ckpt.pt", "pca.pkl", "basis.npz"
MODEL_CONFIG, PROCESSOR_CONFIG = "best/config.json", "best/preprocessor_config.json"
REQUIRED = (CHECKPOINT, PCA, BASIS, MODEL_CONFIG, PROCESSOR_CONFIG)
ENCODER_WEIGHTS = ("best/model.safetensors", "best/pytorch_model.bin")
"""Needed only where `ckpt.pt` holds no encoder; the first that exists is taken."""

VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What transformers takes for a key that config.json leaves out: `CLIPVisionConfig`."""

PROJECTION_DEFAULT = 512
BICUBIC = 3
"""Pillow's number of bicubic interpolation."""


@dataclass(frozen=True)
class Architecture:
    """The encoder as `best/` describes it.

    Attributes:
        encoder: Its configuration for open_clip.
        preprocess: Size and normalisation of its input.
        intermediate: Width of the hidden layer of each MLP.
    """

    encoder: EncoderConfig
    preprocess: PreprocessConfig
    intermediate: int

    @property
    def width(self) -> int:
        """Width of the transformer."""
        return int(self.encoder.vision_cfg["width"])

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.encoder.vision_cfg["layers"])

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.encoder.vision_cfg["patch_size"])


def find_release(folder: Path) -> Path:
    """The folder that holds `ckpt.pt`: `folder`, or `RALI` inside it, as in the authors' repository.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: It is a file.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected the folder of a release ({', '.join(REQUIRED)}), got a file: {folder}")
    inside = folder / "RALI"
    return inside if not (folder / CHECKPOINT).exists() and (inside / CHECKPOINT).exists() else folder


def read_architecture(release: Path, problems: list[str]) -> Architecture | None:
    """Read `best/config.json` and `best/preprocessor_config.json`.

    Args:
        release: The release's folder; both files exist.
        problems: What is wrong is appended.

    Returns:
        None where a problem was found.
    """
    before = len(problems)
    encoder, intermediate = _collect(release, MODEL_CONFIG, _parse_model, problems) or (None, 0)
    preprocess = _collect(release, PROCESSOR_CONFIG, _parse_processor, problems)
    if encoder is not None and preprocess is not None and encoder.image_size != preprocess.image_size:
        problems.append(
            f"best/: the encoder takes {encoder.image_size} pixels, the image processor makes {preprocess.image_size}"
        )
    if encoder is None or preprocess is None or len(problems) > before:
        return None
    return Architecture(encoder, preprocess, intermediate)


def _collect(release: Path, name: str, parse: Callable[[dict[str, Any], list[str]], Any], problems: list[str]) -> Any:
    found: list[str] = []
    result = None
    try:
        values = json.loads((release / name).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, got {type(values).__name__}")
        result = parse(values, found)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, OSError) as error:
        found.append(f"not readable ({type(error).__name__}: {str(error)[:300]})")
    problems += [f"{name}: {problem}" for problem in found]
    return None if found else result


def _parse_model(values: dict[str, Any], problems: list[str]) -> tuple[EncoderConfig, int]:
    if values.get("model_type") != "clip":
        problems.append(f"model_type: expected 'clip', got {values.get('model_type')!r}")
    # Early versions of transformers wrote the settings twice; where there is the second copy, it alone counts.
    written = values.get("vision_config_dict")
    vision = {**VISION_DEFAULTS, **((values.get("vision_config") or {}) if written is None else written)}
    whole = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    sizes = {name: vision[name] for name in whole}
    sizes["projection_dim"] = values.get("projection_dim", PROJECTION_DEFAULT)
    wrong = [f"{k}: expected a positive whole number, got {v!r}" for k, v in sizes.items() if not _is_size(v)]
    if wrong:
        problems += wrong
        return EncoderConfig(1, {}), 0
    width, heads, image, patch = (sizes[k] for k in ("hidden_size", "num_attention_heads", "image_size", "patch_size"))
    if width % heads:
        problems.append(f"hidden_size {width} cannot be divided by num_attention_heads {heads}")
    if image < patch:
        problems.append(f"image_size {image} is smaller than patch_size {patch}")
    if vision["num_channels"] != 3:
        problems.append(f"num_channels: expected 3, got {vision['num_channels']!r}")
    if vision["hidden_act"] not in ("quick_gelu", "gelu"):
        problems.append(f"hidden_act: expected quick_gelu or gelu, got {vision['hidden_act']!r}")
    if vision["layer_norm_eps"] != 1e-5:
        problems.append(f"layer_norm_eps: expected 1e-05, got {vision['layer_norm_eps']!r}")
    ratio = sizes["intermediate_size"] / width
    if int(width * ratio) != sizes["intermediate_size"]:
        problems.append(f"intermediate_size {sizes['intermediate_size']} is no usable multiple of {width}")
    config = {
        "image_size": image,
        "layers": sizes["num_hidden_layers"],
        "width": width,
        "head_width": width // heads,
        "mlp_ratio": ratio,
        "patch_size": patch,
    }
    return EncoderConfig(sizes["projection_dim"], config, vision["hidden_act"] == "quick_gelu"), sizes[
        "intermediate_size"
    ]


def _parse_processor(values: dict[str, Any], problems: list[str]) -> PreprocessConfig:
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    problems += [f"{k}: expected true, got {values[k]!r}" for k in steps if values.get(k, True) is not True]
    if values.get("resample", BICUBIC) != BICUBIC:
        problems.append(f"resample: expected {BICUBIC} (bicubic), got {values['resample']!r}")
    factor = values.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
        problems.append(f"rescale_factor: expected 1/255, got {factor!r}")
    size, crop = values.get("size"), values.get("crop_size")
    if isinstance(size, dict):  # early versions wrote one number
        size = size.get("shortest_edge") if set(size) == {"shortest_edge"} else size
    if isinstance(crop, dict):
        crop = crop.get("height") if crop.get("height") == crop.get("width") else crop
    if not _is_size(size) or size != crop:
        problems.append(
            f"size (the shortest edge) and crop_size (square): expected one whole number, got {size!r} and {crop!r}"
        )
        size = 1
    mean, std = values.get("image_mean"), values.get("image_std")
    if not isinstance(mean, list) or not isinstance(std, list):
        problems.append(f"expected image_mean and image_std, three numbers each, got {mean!r} and {std!r}")
        mean, std = [0.0] * 3, [1.0] * 3
    elif not all(isinstance(value, int | float) and math.isfinite(value) for value in (*mean, *std)):
        problems.append(f"image_mean and image_std: expected finite numbers, got {mean!r} and {std!r}")
        mean, std = [0.0] * 3, [1.0] * 3
    # The official recipe resizes 8-bit images with Pillow.
    return PreprocessConfig(size, tuple(mean), tuple(std), eight_bit=True)  # type: ignore[arg-type]  # it checks both


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 65536
