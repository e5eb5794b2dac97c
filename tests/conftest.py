"""Fixtures: tiny real models with seeded random weights, and photographs that scikit-image carries."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes, or another that they start, share the processors
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from rali_core.attributes import Attribute, AttributeProbes
from rali_core.calibration import Calibration
from rali_core.checkpoint import ModelInfo, save_model
from rali_core.constants import CLIP_MEAN, CLIP_STD
from rali_core.encoder import EncoderConfig
from rali_core.model import RaliModel
from rali_core.preprocess import PreprocessConfig
from rali_core.scorer import RaliScorer
from rali_core.training.distortions import LEVELS, distort
from rali_core.vision_transformer import DINOV2

torch.set_warn_always(True)  # what torch warns of once a process would hang on the order of the tests

TINY_VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
DINO_WIDTH = 96
TINY_TIMM = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none", "image_size": 64}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `-n 2 --dist loadgroup`: a file stays in one process, and so does everything that meets a ComfyUI."""
    for item in items:
        comfy = item.path.is_relative_to(Path(__file__).parent / "comfy")
        item.add_marker(pytest.mark.xdist_group("comfy" if comfy else item.path.name))


@pytest.fixture(scope="session")
def imported_files() -> Callable[[Path, Iterable[ast.AST]], set[Path]]:
    """`imported_files(path, nodes)`: which files the relative imports among a file's syntax nodes lead to."""

    def find(path: Path, nodes: Iterable[ast.AST]) -> set[Path]:
        found = []
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                found += [base, *(base / alias.name for alias in node.names)]
                found += [folder for folder in base.parents if folder.is_relative_to(path.parents[node.level - 1])]
        files = {file for name in found for file in (name.with_suffix(".py"), name / "__init__.py") if file.is_file()}
        return files - {path}

    return find


def make_model(encoder: EncoderConfig, *, seed: int = 0, prototypes: int = 12, pca_dim: int = 8) -> RaliModel:
    """A model with seeded random weights whose scores differ between images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        preprocess = PreprocessConfig(image_size=encoder.image_size, mean=CLIP_MEAN, std=CLIP_STD)
        model = RaliModel(encoder, preprocess, pca_dim=pca_dim, prototypes=prototypes)
        head = model.head
        head.load_state_dict(
            {
                "mean": torch.randn(encoder.embed_dim) * 0.1,
                "scale": torch.rand(encoder.embed_dim) + 0.5,
                "components": torch.linalg.qr(torch.randn(encoder.embed_dim, pca_dim))[0].T,
                "prototypes": torch.randn(prototypes, pca_dim),
                "scores": torch.linspace(0.0, 1.0, prototypes),
                "logit_scale": torch.tensor(1 / 0.07),
            }
        )
    return model.eval()


@pytest.fixture
def tiny_model() -> RaliModel:
    return make_model(EncoderConfig(embed_dim=16, vision_cfg=dict(TINY_VIT)))


@pytest.fixture
def tiny_info() -> ModelInfo:
    return ModelInfo(
        "tiny", "Apache-2.0", calibration=Calibration.from_scores({"made up": (np.linspace(0.2, 0.8, 50), "made up")})
    )


@pytest.fixture
def tiny_scorer(tiny_model: RaliModel, tiny_info: ModelInfo) -> RaliScorer:
    return RaliScorer(tiny_model, tiny_info, device="cpu")


@pytest.fixture
def tiny_file(tiny_model: RaliModel, tiny_info: ModelInfo, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_model(path, tiny_model, tiny_info)
    return path


@pytest.fixture
def probing_model(tiny_model: RaliModel) -> RaliModel:
    """The tiny model with two probes that differ between images."""
    attributes = [Attribute("blur", "blurred", 0.5, 0.97), Attribute("noise", "noisy", 0.25, 0.91)]
    tiny_model.probes = AttributeProbes(attributes, 16)
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    tiny_model.probes.load_state_dict({"weight": weight, "bias": torch.tensor([0.1, -0.2])})
    return tiny_model


@pytest.fixture
def telling_model(tiny_model: RaliModel) -> RaliModel:
    """The tiny model, which can be told two domains."""
    tiny_model.domains = {"photographs": -3.0, "generated images": 4.0}
    return tiny_model


@pytest.fixture
def telling_file(telling_model: RaliModel, tiny_info: ModelInfo, tmp_path: Path) -> Path:
    path = tmp_path / "telling.safetensors"
    save_model(path, telling_model, tiny_info)
    return path


@pytest.fixture
def probing_file(probing_model: RaliModel, tiny_info: ModelInfo, tmp_path: Path) -> Path:
    path = tmp_path / "probing.safetensors"
    save_model(path, probing_model, tiny_info)
    return path


@pytest.fixture
def tiny_timm_file(tiny_info: ModelInfo, tmp_path: Path) -> Path:
    path = tmp_path / "tiny-timm.safetensors"
    info = replace(tiny_info, source={"backbone": {"name": "a backbone"}}, training={"images": 3})
    save_model(path, make_model(EncoderConfig(embed_dim=64, vision_cfg=dict(TINY_TIMM))), info)
    return path


@pytest.fixture
def dino_file(tiny_info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DINOv2's encoder, twelve narrow blocks for images of 42 pixels, with random weights whose blocks do something.

    The real small one has 22 million weights: each test would write hundreds of megabytes of files and checkpoints.
    """
    monkeypatch.setitem(DINOV2, "vit_tiny_patch14_dinov2", (DINO_WIDTH, 12, 3))
    vision = {"timm_model_name": "vit_tiny_patch14_dinov2", "timm_pool": "token", "timm_proj": "none"}
    model = make_model(EncoderConfig(DINO_WIDTH, {**vision, "image_size": 42}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    path = tmp_path / "dino.safetensors"
    save_model(path, model, replace(tiny_info, source={"made": "by hand"}))
    return path


@pytest.fixture(scope="session")
def bundled_scorer() -> RaliScorer:
    return RaliScorer.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def photographs() -> dict[str, Image.Image]:
    """Five colour photographs of 300 to 750 pixels."""
    left, _, _ = data.stereo_motorcycle()
    arrays = {
        "astronaut": data.astronaut(),
        "coffee": data.coffee(),
        "cat": data.chelsea(),
        "rocket": data.rocket(),
        "motorcycle": left,
    }
    return {name: Image.fromarray(array) for name, array in arrays.items()}


@pytest.fixture
def labels(photographs: dict[str, Image.Image], tmp_path: Path) -> Path:
    """96 cut-outs of photographs, blurred by a known amount; the sharper, the better they are scored."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["image,mos,split,near_dup_in_train"]
    for index in range(96):
        photograph = list(photographs.values())[index % 5]
        left, top = random.integers(0, photograph.width - 96), random.integers(0, photograph.height - 96)
        level = int(random.integers(0, LEVELS + 1))
        image = photograph.crop((left, top, left + 96, top + 96))
        if level:
            image = distort(image, "blur", level)
        image.save(folder / f"{index}.png")
        split = "test" if index >= 84 else "train"
        lines.append(f"{index}.png,{1 - level / LEVELS * 0.9:.3f},{split},{int(index == 95)}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder / "labels.csv"


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """Writes a video: a path, its frames as (H, W, 3) uint8 arrays, and when each of them begins in milliseconds."""

    def write(
        path: Path,
        frames: Iterable[Any],
        *,
        fps: int = 10,
        times: Sequence[int] | None = None,
        codec: str = "libx264",
        pixel_format: str = "yuv420p",
        settings: dict[str, Any] | None = None,
        **options: str,
    ) -> Path:
        from fractions import Fraction

        import av

        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=fps, options={"crf": "12", **options})
            stream.pix_fmt = pixel_format
            for name, value in (settings or {}).items():
                setattr(stream.codec_context, name, value)
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number, array in enumerate(frames):
                if number == 0:
                    stream.height, stream.width = array.shape[:2]
                frame = av.VideoFrame.from_ndarray(array, format="rgb24" if array.dtype == np.uint8 else "rgb48le")
                if array.dtype == np.uint16:
                    frame = frame.reformat(format=pixel_format, dst_colorspace=9)
                if times is not None:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write
