"""The model file: one `.safetensors` with encoder, head and everything that is needed to use and judge it.

Tensors: `encoder.*` in open_clip's visual naming, `head.{mean,scale,components,prototypes,scores,logit_scale}` and, if
the model has attributes, `probes.{weight,bias}`.
Metadata: JSON texts under the keys of `ModelInfo`, besides `format` and `format_version`. No pickle is ever opened,
and a file is either used as it is or refused with a list of everything that is wrong with it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .attributes import Attribute, from_metadata, to_metadata
from .calibration import Calibration
from .constants import COVERAGES, Coverage
from .encoder import EncoderConfig
from .files import atomic_write
from .model import RaliModel
from .preprocess import PreprocessConfig

FORMAT = "rali"
FORMAT_VERSION = 1
SHOWN_PROBLEMS = 20
MAPPED_VALUES = 2**25
"""64 MB in 16 bits."""


class CheckpointError(ValueError):
    """A model file cannot be used; the message lists every problem that was found."""


@dataclass(frozen=True)
class ModelInfo:
    """A model file's metadata, besides its architecture.

    Attributes:
        name: Short name, such as `"rali-small"`.
        licence: SPDX identifier of the weights' licence.
        score_range: Worst and best score the model can give.
        calibration: Percentiles and bands; None without reference images.
        training: How and on what it was trained, with its measured figures; free-form JSON.
        source: Where the weights came from, with hashes; free-form JSON.
    """

    name: str
    licence: str
    score_range: tuple[float, float] = (0.0, 1.0)
    calibration: Calibration | None = None
    training: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what its file says about it."""

    model: RaliModel
    info: ModelInfo


def save_model(path: str | os.PathLike[str], model: RaliModel, info: ModelInfo) -> None:
    """Write a model file, under a temporary name first, so `path` never holds a partial file.

    Args:
        path: Where to write; must end in `.safetensors`.
        model: The model; tensors are stored in the dtype they have.
        info: Its metadata.

    Raises:
        ValueError: Another ending, or a tensor is not finite.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a model file's name ends in .safetensors, got {path.name}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"these tensors hold NaN or infinite values: {', '.join(broken)}")
    metadata = encode_metadata(
        info, model.encoder_config, model.preprocess_config, model.coverage,
        attributes=model.attributes, domains=model.domains,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def encode_metadata(
    info: ModelInfo,
    encoder: EncoderConfig,
    preprocess: PreprocessConfig,
    coverage: Coverage,
    *,
    attributes: Sequence[Attribute] = (),
    domains: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """The metadata of a model file as texts, the only type that safetensors stores besides tensors."""
    metadata = {
        "format": FORMAT,
        "format_version": json.dumps(FORMAT_VERSION),
        "name": json.dumps(info.name),
        "licence": json.dumps(info.licence),
        "score_range": json.dumps(list(info.score_range)),
        "calibration": json.dumps(info.calibration.to_dict() if info.calibration else None),
        "training": json.dumps(info.training, sort_keys=True),
        "source": json.dumps(info.source, sort_keys=True),
        "encoder": json.dumps(encoder.to_dict(), sort_keys=True),
        "preprocess": json.dumps(preprocess.to_dict(), sort_keys=True),
        "coverage": json.dumps(coverage),
    }
    optional = {"attributes": to_metadata(attributes) if attributes else None, "domains": domains}
    return metadata | {key: json.dumps(value) for key, value in optional.items() if value}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a model file's metadata, without its tensors.

    Returns:
        The decoded metadata: `format_version`, the fields of `ModelInfo`, `encoder`, `preprocess`, `coverage` and, of a
        model with them, `attributes` and `domains`.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: Not a RALI model file, or one of a later format.
    """
    with _open(path) as file:
        return _decode_metadata(Path(path), file.metadata() or {})


def load_model(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load a model file on the CPU, checked throughout.

    Args:
        path: A RALI `.safetensors` file.
        dtype: Dtype of the encoder; head and probes are always float32.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, of another kind or version, or its tensors do not fit its
            configuration, are not floating point or not finite; every problem is listed.
    """
    path = Path(path)
    with _open(path) as file:
        metadata = _decode_metadata(path, file.metadata() or {})
        info, settings = _parse_metadata(path, metadata)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        model = _build(path, settings, shapes)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        problems = _compare_shapes(wanted, shapes)
        if problems:
            raise CheckpointError(_describe(path, problems))
    tensors = {}
    for names in _split(wanted):
        with _open(path) as file:
            for name in names:
                tensor = file.get_tensor(name)
                problem = _check_tensor(name, tensor, info)
                if problem:
                    problems.append(problem)
                else:
                    # A copy even if the dtype stays: the mapped file may change or be deleted while the model is in
                    # use.
                    tensors[name] = tensor.to(dtype if name.startswith("encoder.") else torch.float32, copy=True)
                del tensor
    if problems:
        raise CheckpointError(_describe(path, problems))
    model.load_state_dict(tensors, assign=True)
    stranded = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if stranded:  # an encoder with buffers that are computed when it is built, and not stored
        model = _construct(settings, shapes)
        model.encoder.to(dtype)
        model.load_state_dict(tensors)
    return LoadedModel(model.eval(), info)


def _split(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Split the names into parts of some `MAPPED_VALUES` values: what was read stays in memory until it closes."""
    part: list[str] = []
    for name in sorted(shapes):
        part.append(name)
        if sum(math.prod(shapes[one]) for one in part) >= MAPPED_VALUES:
            yield part
            part = []
    if part:
        yield part


def _open(path: str | os.PathLike[str]) -> Any:
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"expected a model file, got a folder: {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable .safetensors file ({error}); it may be damaged or incompletely downloaded"
        ) from error


def _decode_metadata(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a .safetensors file, but not a RALI model file: its metadata has no format = {FORMAT!r}; "
            "`rali info` shows what such a file holds, and docs/model-file.md how one is made"
        )
    decoded: dict[str, Any] = {}
    problems = []
    for key, text in metadata.items():
        if key == "format":
            continue
        try:
            decoded[key] = json.loads(text)
        except json.JSONDecodeError as error:
            problems.append(f"metadata {key}: not JSON ({error})")
    if problems:
        raise CheckpointError(_describe(path, problems))
    version = decoded.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has model file format {version!r}; this version reads format {FORMAT_VERSION}: "
            "update the package (pip install -U), or get a file of that format"
        )
    return decoded


@dataclass(frozen=True)
class _Settings:
    encoder: EncoderConfig
    preprocess: PreprocessConfig
    coverage: Coverage
    attributes: tuple[Attribute, ...]
    domains: dict[str, float]


def _parse_metadata(path: Path, metadata: dict[str, Any]) -> tuple[ModelInfo, _Settings]:
    problems: list[str] = []

    def parse(key: str, convert: Any) -> Any:
        if key not in metadata:
            problems.append(f"metadata {key}: missing")
            return None
        try:
            return convert(metadata[key])
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            problems.append(f"metadata {key}: {error}")
            return None

    name, licence = parse("name", _text), parse("licence", _text)
    score_range = parse("score_range", _score_range)
    calibration = parse("calibration", lambda value: None if value is None else Calibration.from_dict(value))
    training, source = parse("training", _record), parse("source", _record)
    encoder, preprocess = parse("encoder", EncoderConfig.from_dict), parse("preprocess", PreprocessConfig.from_dict)
    coverage = parse("coverage", _coverage)
    attributes = parse("attributes", from_metadata) if "attributes" in metadata else ()
    domains = parse("domains", _domains) if "domains" in metadata else {}
    if problems:
        raise CheckpointError(_describe(path, problems))
    info = ModelInfo(name, licence, score_range, calibration, training, source)
    return info, _Settings(encoder, preprocess, coverage, attributes, domains)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r}")
    return value


def _record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {value!r}")
    return value


def _score_range(value: Any) -> tuple[float, float]:
    low, high = (float(v) for v in value)
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"expected [worst, best] with worst < best, got {value!r}")
    return low, high


def _domains(value: Any) -> dict[str, float]:
    domains = {_text(name): float(coordinate) for name, coordinate in _record(value).items()}
    if not domains or not all(name and math.isfinite(coordinate) for name, coordinate in domains.items()):
        raise ValueError(f"expected finite numbers by the names of domains, got {value!r}")
    return domains


def _coverage(value: Any) -> Coverage:
    if value not in COVERAGES:
        raise ValueError(f"expected one of {', '.join(COVERAGES)}, got {value!r}")
    return cast(Coverage, value)


def _build(path: Path, settings: _Settings, shapes: dict[str, tuple[int, ...]]) -> RaliModel:
    prototypes, components = shapes.get("head.prototypes", ()), shapes.get("head.components", ())
    if len(prototypes) != 2 or len(components) != 2 or 0 in prototypes or 0 in components:
        raise CheckpointError(
            _describe(
                path,
                [
                    f"{name}: expected {expected}, got {shapes.get(name, 'nothing')}"
                    for name, expected in (("head.prototypes", "(K, P)"), ("head.components", "(P, D)"))
                ],
            )
        )
    try:
        with torch.device("meta"):  # avoids drawing random weights that are overwritten
            return _construct(settings, shapes)
    except ValueError:
        pass  # older versions of timm compute numbers while they build, which is impossible on "meta"
    try:
        with torch.random.fork_rng(devices=[]):
            return _construct(settings, shapes)
    except ValueError as error:
        raise CheckpointError(_describe(path, [f"metadata encoder: {error}"])) from error


def _construct(settings: _Settings, shapes: dict[str, tuple[int, ...]]) -> RaliModel:
    return RaliModel(
        settings.encoder,
        settings.preprocess,
        pca_dim=shapes["head.components"][0],
        prototypes=shapes["head.prototypes"][0],
        coverage=settings.coverage,
        attributes=settings.attributes,
        domains=settings.domains,
    )


def _compare_shapes(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    problems = [f"{name}: missing, expected shape {wanted[name]}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name}: unexpected, of shape {found[name]}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name}: expected shape {wanted[name]}, got {found[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    return problems


def _check_tensor(name: str, tensor: Tensor, info: ModelInfo) -> str | None:
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{name}: expected float16, bfloat16 or float32, got {tensor.dtype}"
    if not torch.isfinite(tensor).all():
        return f"{name}: holds NaN or infinite values"
    if name == "head.scale" and (tensor == 0).any():
        return f"{name}: holds zeros, by which the embedding would be divided"
    if name == "head.prototypes" and (tensor.float().norm(dim=-1) == 0).any():
        return f"{name}: holds a prototype of length zero"
    low, high = info.score_range
    if name == "head.scores" and (tensor.min() < low - 1e-3 or tensor.max() > high + 1e-3):
        return f"{name}: expected scores in [{low:g}, {high:g}], got {tensor.min():.4g} to {tensor.max():.4g}"
    return None


def _describe(path: Path, problems: list[str]) -> str:
    rest = len(problems) - SHOWN_PROBLEMS
    lines = [*problems[:SHOWN_PROBLEMS], *([f"and {rest} more"] if rest > 0 else [])]
    return f"{path} cannot be used, {len(problems)} problem(s):\n  " + "\n  ".join(lines)


def parameter_count(model: nn.Module) -> int:
    """Number of weights, buffers not counted."""
    return sum(parameter.numel() for parameter in model.parameters())
