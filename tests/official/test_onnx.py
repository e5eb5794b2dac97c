from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rali_core import RaliScorer
from rali_core.cli import main
from rali_core.official.convert import convert

onnx = pytest.importorskip("onnx", reason="pip install '.[export]'")
for name in ("onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason="pip install '.[export]'")


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 5e-3)])
def test_a_converted_release_is_exported(
    precision: str, tolerance: float, tiny_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rali_core.onnx_export import open_graph

    model, path = tmp_path / "converted.safetensors", tmp_path / "converted.onnx"
    convert(tiny_release, model, dtype="float32")
    assert main(["export", str(model), "-o", str(path), "--precision", precision, "--coverage", "tiles"]) == 0
    printed = capsys.readouterr()
    assert f"opset 18, {precision}, coverage tiles)" in printed.out
    assert "its scores of 3 images differ from the model's by at most" in printed.err
    halves = {value.name for value in onnx.load(path).graph.initializer if value.data_type == onnx.TensorProto.FLOAT16}
    named = {"encoder.conv1.weight", "encoder.transformer.resblocks.0.mlp.c_fc.bias"}
    assert named & halves == (named if precision == "float16" else set())

    scorer, run = RaliScorer.from_pretrained(model, device="cpu", coverage="tiles"), open_graph(path)
    assert scorer.model.preprocess_config.eight_bit
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, size, dtype=np.uint8) for size in ((90, 60, 3), (14, 14, 3), (31, 200, 3))]
    found = [run(image[np.newaxis])[0] for image in images]
    np.testing.assert_allclose(found, scorer.score(images).scores, atol=tolerance)
