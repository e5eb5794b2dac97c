from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rali_core import onnx_export
from rali_core.calibration import Calibration
from rali_core.checkpoint import ModelInfo, load_model, save_model
from rali_core.cli import main
from rali_core.constants import CLIP_MEAN, CLIP_STD
from rali_core.content import have_content
from rali_core.encoder import EncoderConfig
from rali_core.model import RaliModel
from rali_core.preprocess import PreprocessConfig, preprocess, view_weights
from rali_core.scorer import RaliScorer
from rali_core.vision_transformer import DINOV2

onnx = pytest.importorskip("onnx", reason="pip install '.[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
pytest.importorskip("onnxscript", reason="pip install '.[export]'")

SIZES = ((1, 1), (7, 300), (9, 8), (42, 42), (60, 43), (43, 61), (1300, 40), (126, 84), (52, 53), (84, 168), (300, 500))
"""Height and width."""


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's architecture with two narrow blocks: a model file, and its export beside it."""
    vision = {"timm_model_name": "vit_small_patch14_dinov2", "timm_pool": "token", "timm_proj": "none"}
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setitem(DINOV2, vision["timm_model_name"], (96, 2, 3))
        torch.manual_seed(0)
        encoder = EncoderConfig(96, {**vision, "image_size": 42, "patch_pattern": "checkerboard"})
        model = RaliModel(encoder, PreprocessConfig(42, CLIP_MEAN, CLIP_STD), pca_dim=8, prototypes=12, coverage="full")
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.data.fill_(0.5)
        head = {"components": torch.linalg.qr(torch.randn(96, 8))[0].T, "prototypes": torch.randn(12, 8)}
        head |= {"scores": torch.linspace(0, 1, 12), "logit_scale": torch.tensor(8.0)}
        model.head.load_state_dict({**model.head.state_dict(), **head})
        calibration = Calibration.from_scores({"made up": (np.linspace(0.2, 0.8, 50), "made up")})
        save_model(folder / "small.safetensors", model.eval(), ModelInfo("small", "MIT", calibration=calibration))
        assert main(["export", str(folder / "small.safetensors"), "-o", str(folder / "small.onnx")]) == 0
    return folder / "small.onnx"


@pytest.fixture
def small_scorer(small: Path, monkeypatch: pytest.MonkeyPatch) -> RaliScorer:
    monkeypatch.setitem(DINOV2, "vit_small_patch14_dinov2", (96, 2, 3))
    return RaliScorer.from_pretrained(small.with_suffix(".safetensors"), device="cpu")


def test_a_graph_scores_images_of_any_size_and_batch_as_the_scorer_does(small: Path, small_scorer: RaliScorer) -> None:
    images = [noise(height, width, 3, seed=height) for height, width in SIZES]
    images += [np.full((50, 60, 3), value, dtype=np.uint8) for value in (0, 130)]
    expected = small_scorer.score(images)
    run = onnx_export.open_graph(small)
    found = np.concatenate([run(image[np.newaxis]) for image in images])
    np.testing.assert_allclose(found, expected.scores, atol=5e-5)
    assert np.ptp(found[:-2]) > 0.3, "or the comparison tells little"
    assert [score == np.float32(0.02) for score in found] == [reason is not None for reason in expected.reasons]

    batch = noise(4, 70, 50, 3)
    batch[2] = 255
    np.testing.assert_allclose(run(batch), small_scorer.score(batch).scores, atol=5e-5)


def test_a_file_says_what_it_is(small: Path) -> None:
    graph = onnx.load(small)
    onnx.checker.check_model(graph, full_check=True)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert (metadata["name"], metadata["precision"], metadata["coverage"]) == ("small", "float32", "full")
    assert json.loads(metadata["band_thresholds"]) == [0.2, 0.4, 0.6, 0.8]
    assert json.loads(metadata["populations"])[0]["name"] == "made up"
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 18)]
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == ["pixels", "score"]
    sides = graph.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in sides] == ["B", "H", "W", 3]
    code = str(Path(onnx_export.__file__).parent).encode()
    assert code not in small.read_bytes(), "torch's notes of where in its source a node comes from are left out"


def test_a_graph_whose_scores_are_off_is_not_written(
    small: Path, small_scorer: RaliScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_scorer.model.head.scores.data += 2e-4
    monkeypatch.setattr(onnx_export, "build_graph", lambda *_: onnx.load(small))
    with pytest.raises(
        ValueError, match=r"scores differ from the model's by up to 0\.0002, more .*; nothing was written"
    ):
        onnx_export.export_onnx(small_scorer.model, tmp_path / "m.onnx", info=small_scorer.info)
    assert list(tmp_path.iterdir()) == []


def test_a_domain_that_is_told_is_part_of_the_graph(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DINOV2, "vit_small_patch14_dinov2", (96, 2, 3))
    loaded = load_model(small.with_suffix(".safetensors"))
    loaded.model.domains = {"drawings": 6.0}
    telling = tmp_path / "telling.safetensors"
    save_model(telling, loaded.model, loaded.info)
    assert main(["export", str(telling), "--domain", "drawings", "-o", str(tmp_path / "told.onnx")]) == 0
    image = noise(50, 60, 3)
    told = RaliScorer.from_pretrained(telling, device="cpu", domain="drawings").score(image).scores
    assert onnx_export.open_graph(tmp_path / "told.onnx")(image[np.newaxis]) == pytest.approx(told, abs=5e-5)
    assert abs(float(told[0]) - float(onnx_export.open_graph(small)(image[np.newaxis])[0])) > 1e-3


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("coverage", ["center", "tiles", "adaptive", "full"])
def test_crops_are_those_of_the_models_preprocessing(eight_bit: bool, coverage: str) -> None:
    from rali_core.onnx_graph import make_preparation

    config = PreprocessConfig(42, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), eight_bit=eight_bit)
    graph = make_preparation(config, coverage)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in SIZES:
        pixels = noise(2, height, width, 3, seed=width)
        crops, shares, _ = session.run(None, {"pixels": pixels})
        expected = preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2), config, coverage=coverage).numpy()  # type: ignore[arg-type]
        assert crops.shape == expected.reshape(-1, 3, 42, 42).shape
        off = np.abs(crops - expected.reshape(crops.shape))
        if eight_bit:  # one level, or two after two passes, where a sum ends near one half
            assert off.max() < 2.01 / 255 / 0.2
            assert (off > 1e-4).mean() < 0.005
        else:
            assert off.max() < 1e-3
        weights = view_weights(height, width, config, coverage=coverage)  # type: ignore[arg-type]
        np.testing.assert_allclose(shares, weights, rtol=1e-6)


def test_images_without_content_are_the_same_as_everywhere() -> None:
    from rali_core.onnx_graph import make_preparation

    graph = make_preparation(PreprocessConfig(42, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)), "center")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    answers = []
    for height, width in ((8, 8), (8, 400), (40, 33), (200, 300), (700, 500), (7, 90)):
        y, x = np.mgrid[:height, :width] / max(height, width)
        ramp = (200 * x - 120 * y * y + 90 * x * y + 40)[..., np.newaxis] + np.zeros(3)
        images = [ramp, *(ramp + random.normal(0, sigma, ramp.shape) for sigma in (1, 2, 3, 4))]
        for count in (5, 40, 3000):  # pixels that stand out
            images.append(np.full(ramp.shape, 90.0))
            images[-1].reshape(-1, 3)[random.integers(0, height * width, count)] += 60
        images += [
            np.full(ramp.shape, 77.0),
            random.uniform(0, 255, ramp.shape),
            np.where(x > 0.5, 90.0, 96.0)[..., np.newaxis] + np.zeros(3),
        ]
        batch = np.clip(images, 0, 255).astype(np.uint8)
        expected = have_content(torch.from_numpy(batch).permute(0, 3, 1, 2))
        assert session.run(["found"], {"pixels": batch})[0].tolist() == expected, (height, width)
        answers += expected
    assert 15 < sum(answers) < len(answers) - 15


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_anything_is_done(
    name: str, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["export", str(tiny_file), "-o", str(tmp_path / "m.onnx")]) == 1
    assert capsys.readouterr().err == f'rali: rali export needs {name}: pip install "rali-score[export]"\n'
    assert list(tmp_path.glob("*.onnx")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "m.pt"}, "an ONNX file's name ends in .onnx, got m.pt"),
        ({"precision": "int8"}, "precision must be one of float32, float16, got 'int8'"),
        ({"coverage": "corners"}, "coverage must be one of center, tiles, adaptive, full, got 'corners'"),
    ],
)
def test_what_cannot_be_exported_is_said(
    arguments: dict[str, str], message: str, tiny_model: RaliModel, tiny_info: ModelInfo, tmp_path: Path
) -> None:
    values = {"path": "m.onnx", **arguments}
    with pytest.raises(ValueError, match=message):
        onnx_export.export_onnx(tiny_model, tmp_path / values.pop("path"), info=tiny_info, **values)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
