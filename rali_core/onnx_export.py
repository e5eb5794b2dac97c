"""A model as one ONNX file: an image's pixels in, its score out, preprocessing and all.

The encoder and the head come from torch's own exporter, what surrounds them from `onnx_graph`. The file needs neither
torch nor this package to run, and before it is written its scores are compared with the model's.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import __version__
from .calibration import Calibration
from .checkpoint import ModelInfo
from .constants import BAND_NAMES, Coverage
from .content import NO_CONTENT_SCORE
from .files import atomic_write
from .head import score_embeddings
from .model import RaliModel
from .preprocess import check_coverage
from .scorer import RaliScorer

if TYPE_CHECKING:
    import onnx

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

ExportPrecision = Literal["float32", "float16"]
INPUT, OUTPUT = "pixels", "score"
TOLERANCE: dict[str, float] = {"float32": 1e-4, "float16": 5e-3}
"""Largest difference from the model's scores with which a file is written."""

LARGEST_FILE = 2**31 - 2**20
"""Protocol Buffers, ONNX's format, take no more bytes."""

TRIED_SIZES = ((64, 96), (800, 700), (211, 517))
"""Height and width of the images with which a file is tried before it is written."""

DESCRIPTION = (
    "RALI image quality score. Input `pixels`: (B, H, W, 3) uint8, sRGB, channels last, any size; the caller decodes, "
    "turns upright (EXIF) and composites transparency on white. Output `score`: (B,) float32, higher is better. "
    "Inside: images longer than 32:1 are cut to that, the shorter side is resized (antialiased bicubic), crops are "
    "taken as the metadata's `coverage` says, normalised, encoded and scored; `score` is their (weighted) mean. Images "
    "without content score 0.02."
)


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: The file.
        opset: Version of ONNX's operators.
        precision: Arithmetic of the encoder.
        coverage: Which crops it takes.
        largest_difference: From the model's scores, over `images`.
        images: How many images it was tried with.
    """

    path: Path
    opset: int
    precision: ExportPrecision
    coverage: Coverage
    largest_difference: float
    images: int


def export_onnx(
    model: RaliModel,
    path: str | os.PathLike[str],
    *,
    info: ModelInfo,
    coverage: Coverage | None = None,
    precision: ExportPrecision = "float32",
) -> OnnxExport:
    """Write a model as an ONNX file, after its scores were compared with the model's.

    Args:
        model: A model in float32; it stays as it is.
        path: Where to write; must end in `.onnx`.
        info: What the model file says about itself; goes into the file's metadata.
        coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"`; by default the model's own setting.
        precision: Weights and arithmetic of the encoder; all else is in float32.

    Raises:
        ModuleNotFoundError: A package of the extra `export` is missing.
        ValueError: Another ending; an unknown coverage or precision; an encoder that cannot be exported; a graph of
            more than 2 GB; scores that differ from the model's by more than `TOLERANCE`.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"an ONNX file's name ends in .onnx, got {path.name}")
    if precision not in get_args(ExportPrecision):
        raise ValueError(f"precision must be one of {', '.join(get_args(ExportPrecision))}, got {precision!r}")
    coverage = coverage or model.coverage
    check_coverage(coverage)
    check_packages()
    elements = sum(parameter.numel() for parameter in model.encoder.parameters())
    if elements * (4 if precision == "float32" else 2) > LARGEST_FILE:
        raise ValueError(
            f"{elements / 1e6:.0f} million weights in {precision} are more than the 2 GB of an ONNX file"
            + ("; --precision float16 halves them" if precision == "float32" else "")
        )
    graph = build_graph(model, coverage, precision)
    for key, value in describe_export(model, info, coverage, precision).items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    opset = graph.opset_import[0].version
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
        del graph
        images = [_pattern(*size) for size in TRIED_SIZES]
        difference = compare(model, info, temporary, images, coverage)
        if not difference <= TOLERANCE[precision]:
            raise ValueError(
                f"the graph's scores differ from the model's by up to {difference:.2g}, more than the "
                f"{TOLERANCE[precision]:.0e} that {precision} may; nothing was written"
            )
    return OnnxExport(path, opset, precision, coverage, difference, len(images))


def check_packages() -> None:
    """Whether all that exporting needs is installed.

    Raises:
        ModuleNotFoundError: A package is missing; the message says how to get it.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f'rali export needs {name}: pip install "rali-score[export]"') from error


def describe_export(model: RaliModel, info: ModelInfo, coverage: str, precision: str) -> dict[str, Any]:
    """What the file's metadata say: what its score means, how it was made. Plain JSON types."""
    calibration = info.calibration or Calibration()
    return {
        "name": info.name,
        "licence": info.licence,
        "rali_version": __version__,
        "coverage": coverage,
        "precision": precision,
        "image_size": model.preprocess_config.image_size,
        "score_range": list(info.score_range),
        "bands": list(BAND_NAMES),
        "band_thresholds": list(calibration.band_thresholds),
        "populations": calibration.to_dict()["populations"],
        "no_content_score": NO_CONTENT_SCORE,
    }


def compare(
    model: RaliModel,
    info: ModelInfo,
    path: str | os.PathLike[str],
    images: Sequence[NDArray[np.uint8]],
    coverage: Coverage,
) -> float:
    """Largest absolute difference between a graph's scores, by ONNX Runtime on the CPU, and those of `RaliScorer`.

    Args:
        model: What was exported.
        info: What its file says about itself.
        path: The ONNX file.
        images: (H, W, 3) uint8 each, of any sizes.
        coverage: That the graph has.
    """
    run = open_graph(path)
    scorer = RaliScorer(model, info, device="cpu", coverage=coverage)
    expected = scorer.score(images).scores
    found = np.concatenate([run(image[np.newaxis]) for image in images])
    return float(np.abs(found - expected).max())


def open_graph(path: str | os.PathLike[str]) -> Any:
    """A function from (B, H, W, 3) uint8 pixels to (B,) float32 scores, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return cast(NDArray[np.float32], session.run([OUTPUT], {INPUT: pixels})[0])

    return run


def build_graph(model: RaliModel, coverage: Coverage, precision: ExportPrecision) -> onnx.ModelProto:
    """The whole graph: what surrounds the core is put before and behind its nodes."""
    from onnx.compose import add_prefix

    from . import onnx_graph

    before = add_prefix(
        onnx_graph.make_preparation(model.preprocess_config, coverage), "prepare/",
        rename_inputs=False, rename_outputs=False,
    )  # fmt: skip
    after = add_prefix(onnx_graph.make_combination(), "combine/", rename_inputs=False, rename_outputs=False)
    core = _export_core(model, precision)
    _check_joints(before, core, after)
    graph = core.graph
    nodes = [*before.graph.node, *graph.node, *after.graph.node]
    inputs, outputs = list(before.graph.input), list(after.graph.output)
    for values in (graph.node, graph.input, graph.output, graph.value_info):
        del values[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    graph.initializer.extend([*before.graph.initializer, *after.graph.initializer])
    for node in graph.node:
        del node.metadata_props[:]  # torch notes there which lines of code a node comes from, with their paths
        node.doc_string = ""
    del core.metadata_props[:]
    core.producer_name, core.producer_version = "rali", __version__
    core.doc_string = DESCRIPTION
    return core


def _check_joints(before: onnx.ModelProto, core: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Names by which the parts are connected; onnxscript and torch may choose others than they are asked for."""
    made = {value.name for value in (*before.graph.output, *core.graph.output)}
    taken = {value.name for value in (*core.graph.input, *after.graph.input)}
    opsets = {(part.ir_version, part.opset_import[0].version, len(part.opset_import)) for part in (before, core, after)}
    if made != taken or len(opsets) != 1 or core.functions:
        raise RuntimeError(f"the parts of the graph do not fit: {made} and {taken}, {opsets}")


class _Core(nn.Module):
    """(N, 3, S, S) crops to (N,) scores: encoder and head without what `RaliModel` does for a CPU's memory."""

    def __init__(self, encoder: nn.Module, head: dict[str, Tensor], domain_coordinate: float | None) -> None:
        super().__init__()
        self.encoder = encoder
        for name, tensor in head.items():
            self.register_buffer(name, tensor.detach().float())
        self.names, self.domain_coordinate = tuple(head), domain_coordinate

    def forward(self, crops: Tensor) -> Tensor:
        embedding = self.encoder(crops.to(next(self.encoder.parameters()).dtype))
        pooled = embedding[0] if isinstance(embedding, tuple) else embedding
        tensors = {name: getattr(self, name) for name in self.names}
        return score_embeddings(pooled.float(), **tensors, domain_coordinate=self.domain_coordinate)


def _export_core(model: RaliModel, precision: ExportPrecision) -> onnx.ModelProto:
    from .onnx_graph import OPSET

    encoder = copy.deepcopy(model.encoder).cpu().to(getattr(torch, precision)).eval()
    head = {name: tensor.cpu() for name, tensor in model.head.state_dict().items()}
    core = _Core(encoder, head, model.head.domain_coordinate).eval()
    size = model.preprocess_config.image_size
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                core, (torch.rand(2, 3, size, size),), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["crops"], output_names=["crop_scores"], dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )  # fmt: skip
    except RuntimeError as error:
        raise ValueError(f"torch cannot export this encoder ({type(model.encoder).__name__}): {error}") from error
    assert program is not None
    return program.model_proto


def _pattern(height: int, width: int) -> NDArray[np.uint8]:
    """An image with fine and coarse structure: (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + 5 * c) + y / 11) + np.sin(y / (4 + c) - x / 29) for c in range(3)]
    return (np.stack(waves, axis=-1) * 63.0 + 127.0).astype(np.uint8)
