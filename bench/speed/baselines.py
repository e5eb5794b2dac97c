"""The baselines: ways from images to quality scores.

Weights are random wherever the published ones would have to be downloaded: the cost is the same, and the scores mean
nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rali_core.benchmark import EMBED_DIM as EMBED
from rali_core.benchmark import OFFICIAL_SHAPE as OFFICIAL
from rali_core.benchmark import Benchmarked, BenchmarkedModel, random_head, random_model
from rali_core.checkpoint import ModelInfo, save_model
from rali_core.constants import DtypeName
from rali_core.head import score_embeddings
from rali_core.scorer import RaliScorer

TINY = {"image_size": 56, "layers": 2, "width": 64, "head_width": 32, "patch_size": 14}
"""For tests of the benchmark itself."""
REFERENCE = "official recipe"
OFFICIAL_FILE = "RALI_BENCHMARK_OFFICIAL_FILE"
"""Environment variable: a file of `write_official`. Read from a file, as users do, a model never is in memory twice."""


class OfficialRecipe:
    """transformers' whole `CLIPModel` in float32, its image processor, and the head: as the authors' code runs."""

    dtype: str | None = None

    def __init__(self, shape: dict[str, Any] = OFFICIAL) -> None:
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

        model: Any = CLIPModel(CLIPConfig(**clip_config(shape)))
        self._model = model.eval()
        size = shape["image_size"]
        self._processor: Any = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)
        self._head = random_head(EMBED)

    def score(self, images: list[Image.Image] | Tensor) -> list[float]:
        """Tensors are turned into 8-bit images first, which is what the recipe takes."""
        if isinstance(images, Tensor):
            values = images.mul(255).byte().permute(0, 2, 3, 1).numpy()
            images = [Image.fromarray(value) for value in values]
        with torch.no_grad():
            inputs = self._processor(images=images, return_tensors="pt")["pixel_values"]
            features = self._model.get_image_features(pixel_values=inputs)
            embedding = features if isinstance(features, Tensor) else features.pooler_output
            return cast("list[float]", score_embeddings(embedding, **self._head).tolist())


def clip_config(shape: dict[str, Any]) -> dict[str, Any]:
    """transformers' configuration of CLIP ViT-L/14, or of a smaller vision encoder beside a text tower as small."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    if shape is not OFFICIAL:
        text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    width = shape["width"]
    vision = {
        "image_size": shape["image_size"], "patch_size": shape["patch_size"], "hidden_size": width,
        "intermediate_size": 4 * width, "num_hidden_layers": shape["layers"],
        "num_attention_heads": width // shape["head_width"], "projection_dim": EMBED,
    }  # fmt: skip
    return {"vision_config": vision, "text_config": {**text, "projection_dim": EMBED}, "projection_dim": EMBED}


def benchmark_info() -> ModelInfo:
    """What a model with random weights says about itself."""
    return ModelInfo("benchmark", "Apache-2.0")


def write_official(path: Path, shape: dict[str, Any] = OFFICIAL) -> None:
    """A model file of the authors' architecture with random weights, in 16 bits as `rali convert` writes it."""
    model = random_model(shape)
    model.encoder.half()
    save_model(path, model, benchmark_info())


def ours_official(dtype: DtypeName, device: str = "cpu", shape: dict[str, Any] = OFFICIAL) -> BenchmarkedModel:
    """This package with the authors' architecture, random weights; from the file named by `OFFICIAL_FILE`, if any."""
    if file := os.environ.get(OFFICIAL_FILE):
        return BenchmarkedModel(RaliScorer.from_pretrained(file, device=device, dtype=dtype))
    return BenchmarkedModel(RaliScorer(random_model(shape), benchmark_info(), device=device, dtype=dtype))


def ours_bundled(dtype: DtypeName, device: str = "cpu") -> BenchmarkedModel:
    """This package with the bundled model."""
    return BenchmarkedModel(RaliScorer.from_pretrained(device=device, dtype=dtype, coverage="center"))


class ClipIqa:
    """CLIP-IQA (Wang et al., AAAI 2023) as torchmetrics has it, on CLIP ViT-L/14 at 336 pixels with random weights."""

    dtype: str | None = None

    def __init__(self, shape: dict[str, Any] = OFFICIAL) -> None:
        from torchmetrics.multimodal import CLIPImageQualityAssessment
        from transformers import CLIPConfig, CLIPModel

        for method in ("get_text_features", "get_image_features"):
            setattr(CLIPModel, method, pooled(getattr(CLIPModel, method)))
        name = "openai/clip-vit-large-patch14-336"  # one of the few that the class takes; here a folder of that name
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root, name)
            CLIPModel(CLIPConfig(**clip_config(shape))).save_pretrained(folder)
            write_processor(folder, shape["image_size"])
            os.chdir(root)
            try:
                self._metric: Any = CLIPImageQualityAssessment(model_name_or_path=cast(Any, name))
            finally:
                os.chdir(before)

    def score(self, images: list[Image.Image] | Tensor) -> list[float]:
        """One score per image."""
        images = stack_images(images)
        with torch.no_grad():
            scores = self._metric(images)
        self._metric.reset()
        return cast("list[float]", scores.flatten().tolist())


def stack_images(images: list[Image.Image] | Tensor) -> Tensor:
    """PIL images of one size, or the tensor that they are already, to (B, 3, H, W) in [0, 1]."""
    if isinstance(images, Tensor):
        return images
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255.0 for image in images])


def pooled(features: Callable[..., Any]) -> Callable[..., Any]:
    """A method of transformers' `CLIPModel` whose result is a tensor, as torchmetrics expects; 5 gives objects."""

    def call(*inputs: Any, **options: Any) -> Any:
        output = features(*inputs, **options)
        return output if isinstance(output, Tensor) else output.pooler_output

    return call


def write_processor(folder: Path, size: int) -> None:
    """A CLIP processor whose vocabulary is the bytes alone: the text is read, which is all that the cost needs."""
    from transformers import CLIPImageProcessor, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size).save_pretrained(folder)


class Backbone:
    """The network of a published measure with random weights and a linear layer behind it: for its cost only.

    Args:
        name: timm's name.
        side: Side of the square that it takes; None for whole images.
    """

    dtype: str | None = None

    def __init__(self, name: str, side: int | None) -> None:
        import timm

        self._model: Any = timm.create_model(name, pretrained=False, num_classes=1).eval()
        self._side = side

    def score(self, images: list[Image.Image] | Tensor) -> list[float]:
        """All images in one pass."""
        images = stack_images(images)
        if self._side is not None:
            images = functional.interpolate(images, size=(self._side, self._side), mode="bicubic", antialias=True)
        with torch.inference_mode():
            return cast("list[float]", self._model((images - 0.5) / 0.25).flatten().tolist())


class PerImage:
    """A function of one (H, W, 3) uint8 image."""

    dtype: str | None = None

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def score(self, images: list[Image.Image] | Tensor) -> list[float]:
        """One image at a time."""
        if isinstance(images, Tensor):
            images = [Image.fromarray(value) for value in images.mul(255).byte().permute(0, 2, 3, 1).numpy()]
        return [float(np.asarray(self._function(np.array(image))).flat[0]) for image in images]


def brisque() -> Benchmarked:
    """BRISQUE's features (Mittal et al., 2012), by the package `brisque`.

    Its last step, the regression from 36 numbers, is left out: it fails with numpy from 2.4 on and its time is
    negligible.
    """
    from brisque import BRISQUE

    class Features(BRISQUE):  # type: ignore[misc]
        def calculate_image_quality_score(self, features: Any) -> float:
            return float(len(features))

    return PerImage(Features(url=False).score)


def niqe() -> Benchmarked:
    """NIQE (Mittal et al., 2013), scikit-video's; it takes the luminance.

    The package is older than numpy 1.24 and SciPy 1.3; what it needs and they have removed is restored here.
    """
    import scipy.misc

    for name, kind in (("float", float), ("int", int), ("bool", bool)):
        if name not in vars(np):
            setattr(np, name, kind)

    def halve(values: Any, scale: float, interp: str, mode: str) -> Any:  # noqa: ARG001
        height, width = values.shape
        image = Image.fromarray(values.astype(np.float32))
        return np.asarray(image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC))

    scipy.misc.imresize = halve
    from skvideo.measure import niqe as measure

    return PerImage(lambda array: measure(np.array(Image.fromarray(array).convert("L"))))


DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16", "float16", "auto")

MAKERS: dict[str, Callable[[], Benchmarked]] = {
    REFERENCE: OfficialRecipe,
    **{f"ours, official encoder, {dtype}": partial(ours_official, dtype) for dtype in DTYPES},
    **{f"ours, bundled, {dtype}": partial(ours_bundled, dtype) for dtype in DTYPES},
    "CLIP-IQA (torchmetrics)": ClipIqa,
    # HyperIQA (Su et al., CVPR 2020) and TOPIQ (Chen et al., TIP 2024) look through a ResNet-50, MANIQA (Yang et al.,
    # CVPRW 2022) at crops through a ViT-B/8.
    "ResNet-50, whole image (timm)": lambda: Backbone("resnet50", None),
    "ViT-B/8, one crop (timm)": lambda: Backbone("vit_base_patch8_224", 224),
    "tiny backbone": lambda: Backbone("test_vit", 160),
    "BRISQUE (brisque)": brisque,
    "NIQE (scikit-video)": niqe,
    "tiny recipe": lambda: OfficialRecipe(TINY),
    "tiny ours": lambda: ours_official("float32", shape=TINY),
    "tiny CLIP-IQA": lambda: ClipIqa(TINY),
}  # fmt: skip
"""Scorers by name; those that begin with "tiny" are for tests."""


def make(name: str) -> Benchmarked:
    """Build a scorer.

    Args:
        name: A key of `MAKERS`.

    Raises:
        ValueError: No such scorer.
        ImportError: A package that it needs is missing.
    """
    if name not in MAKERS:
        raise ValueError(f"there is no scorer {name!r}; there are {', '.join(MAKERS)}")
    return MAKERS[name]()
