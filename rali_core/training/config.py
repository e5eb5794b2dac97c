"""The configuration of a whole training: one TOML file, checked throughout before anything is begun."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..devices import AUTO
from ..preprocess import Coverage
from .align import AlignSettings
from .fit import Teacher
from .joint import JointSettings
from .tokens import ViewKind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
SET_ELSEWHERE = {"seed"}
"""Settings of the parts that one setting of the whole file decides."""


@dataclass(frozen=True)
class BackboneConfig:
    """`[backbone]`: the pretrained tower.

    Attributes:
        file: See `backbones.load_backbone`.
        image_size: Side of its input in pixels.
        frozen_blocks: Blocks that stay as they are.
    """

    file: Path
    image_size: int = 336
    frozen_blocks: int = 8


@dataclass(frozen=True)
class DataConfig:
    """`[data]`: the images with human scores that the head is made from.

    Attributes:
        labels: CSV with the columns `image`, `mos` and optionally `split` and `near_dup_in_train`.
        images_root: Folder of the images; by default that of the table.
        score_range: Worst and best score of the table's scale.
        validation_fraction: Share of the training rows that is held out: validated and calibrated on.
        limit: Use only the first so many training rows.
        descriptions: Description file of these images, for `source = "file"`.
    """

    labels: Path
    images_root: Path | None = None
    score_range: tuple[float, float] = (0.0, 1.0)
    validation_fraction: float = 0.1
    limit: int | None = None
    descriptions: Path | None = None


@dataclass(frozen=True)
class RactDataConfig(DataConfig):
    """`[[ract.data]]`: a further data set, on a scale of its own.

    Attributes:
        name: Short name for files and figures.
        tell_scores: Tell the describer the human scores, as it is told those of `[data]`. Then "good" has to mean the
            same on both scales; by default the describer has to judge by itself.
    """

    name: str = ""
    tell_scores: bool = False


@dataclass(frozen=True)
class DescribeConfig:
    """`[describe]`: who describes the images.

    Attributes:
        source: `"measured"`, `"qinsight"`, `"file"`, or `"score"`: the human score's quality word and nothing else.
        seeds: Descriptions of each image.
        groups: Pictures that are rendered undistorted and at two levels of a known distortion, and described by
            `"measured"` with type and level; 0 for none.
        pristine: Folders of undistorted pictures for these; good pictures of the data set and drawings are used too.
        model: Of `"qinsight"`: folder or hub name.
        device: Where that runs.
        dtype: Its arithmetic.
        max_new_tokens: Its longest answer.
        attempts: How often it is asked for a readable answer.
        prompt_file: The question, instead of the built-in one.
    """

    source: Literal["measured", "qinsight", "file", "score"] = "measured"
    seeds: int = 3
    groups: int = 0
    pristine: tuple[Path, ...] = ()
    model: str | None = None
    device: str | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_new_tokens: int = 1024
    attempts: int = 3
    prompt_file: Path | None = None


@dataclass(frozen=True)
class AlignConfig(AlignSettings):
    """`[align]`: `AlignSettings`, and what it works with.

    Attributes:
        enabled: False leaves the tower as it came.
        text_tower: `"sentence"` for all-MiniLM-L6-v2, `"clip"` for the text tower of a CLIP model.
        text_folder: Another sentence encoder, see `text.load_sentence_tower`.
        clip_model: open_clip's name of the CLIP model.
        clip_checkpoint: Its weights.
        views: How each training image is shown; each view of each image is kept on disk.
        probe_images: Training images that the head of each validation is made from.
        validation_images: Validation images that are looked at on the way.
    """

    enabled: bool = True
    text_tower: Literal["sentence", "clip"] = "sentence"
    text_folder: Path | None = None
    clip_model: str = "ViT-L-14-336-quickgelu"
    clip_checkpoint: Path | None = None
    views: tuple[ViewKind, ...] = ("whole", "mirrored")
    probe_images: int = 1000
    validation_images: int = 500


@dataclass(frozen=True)
class CompressConfig:
    """`[compress]`: see `compress.compress`.

    Attributes:
        pca_dim: P; the paper has 2/3 of the embedding. 0 leaves the PCA out.
        bins: Score bins; 1 is K-means without bins.
        prototypes: K.
        temperature: Initial softmax temperature. The paper's 0.07 overfits with small towers.
    """

    pca_dim: int = 256
    bins: int = 240
    prototypes: int = 250
    temperature: float = 0.15


@dataclass(frozen=True)
class FitConfig:
    """`[fit]`: see `fit.fit_head`.

    Attributes:
        epochs: Passes over the training views; 0 leaves the head as it was compressed.
        batch_size: Views per step.
        learning_rate: Peak learning rate.
        fit_projection: Tune the PCA too.
        plcc_weight: Weight of 1 - PLCC.
        rank_weight: Weight of the ranking term.
        teacher: `"svr"`: the prototypes learn what a support vector regression on the embeddings makes of the scores.
        teacher_penalty: Its C.
        teacher_epsilon: Errors up to this, in units of the scores, cost it nothing.
        teacher_gamma: Gamma of its Gaussian kernel, between unit vectors.
        order_weight: Weight of the order of known distortions, on the pictures of `describe.groups`.
        steady_weight: Weight of moves of these pictures' scores by mirroring and JPEG.
        held_out_weight: How much a validation image counts in the regression beside a training image; 0 leaves them
            out. For a last head, when nothing is left to be chosen by them.
    """

    epochs: int = 6
    batch_size: int = 256
    learning_rate: float = 3e-3
    fit_projection: bool = False
    plcc_weight: float = 0.0
    rank_weight: float = 0.0
    teacher: Teacher = "none"
    teacher_penalty: float = 0.3
    teacher_epsilon: float = 0.03
    teacher_gamma: float = 0.25
    order_weight: float = 0.0
    steady_weight: float = 0.0
    held_out_weight: float = 0.0

    @property
    def uses_groups(self) -> bool:
        """Whether pictures at known levels of a distortion take part."""
        return bool(self.order_weight or self.steady_weight)


TAUGHT = FitConfig(epochs=60, teacher="svr", order_weight=0.005, steady_weight=0.005)
"""Fitting to a support vector regression, as of the bundled model's head."""


@dataclass(frozen=True)
class RactConfig(AlignSettings):
    """`[ract]`: the alignment over all data sets.

    Attributes:
        data: The further data sets, `[[ract.data]]`.
        others_weight: Weight of 1 - PLCC within each of these sets while the head is fitted; 0 uses their text alone.
    """

    data: tuple[RactDataConfig, ...] = ()
    others_weight: float = 0.0


@dataclass(frozen=True)
class JointConfig(JointSettings):
    """`[joint]`: tuning tower and head together at the end, see `adapt.adapt`.

    Several sections, each `[[joint]]`, go on from one another, such as with larger pictures.

    Attributes:
        start_from: Number of the earlier section, counted from 1, whose model this one goes on from, or 0 for that of
            the stages before all of them; by default that of the section before. Trainings of several settings that
            start from one model can so be averaged: each mixes in, with `mix_with`, what the one before has made.
        limit: Use only the first so many training rows, whatever `data.limit` says of the stages before.
        validation_fraction: Share of the training rows that is held out, by default as much as in the section before,
            or `data.validation_fraction`; a smaller one holds out some of the same images.
        groups: Ordered groups, as in `[describe]`.
        pristine: Folders of undistorted pictures.
        positions_from: Pretrained tower whose position embeddings are taken, where `image_size` differs.
        runs: Trainings from the same start, whose weights are averaged.
        first_run: Number of the first of them, which is added to the seed for its random choices; by default they are
            counted through all sections.
        teachers: Model files, or tables of scores, whose mean is mixed into the human scores of the training images.
        teacher_share: Share of the teachers' scores, in [0, 1].
        teacher_images: Pattern of the file names of images that they are asked about, such as `"ss02*"`; without, all.
        unlabelled: Folders of pictures without human scores, which are learnt with scores that other models give them.
        unlabelled_teachers: Those models' files.
        unlabelled_weight: How much such a picture counts in the regression of `new_head` beside a labelled image.
        start_share: Share of the weights before this stage that is mixed in at the end, in [0, 1].
        mix_with: Model file of the same architecture that takes the place of the weights before this stage in that;
            that of another section is `model.safetensors` in the folder `joint` of `work_dir`, from the second on in
            `joint-2` and so on.
        new_head: Make the head anew from the tuned tower after that, with the settings of `[compress]` and `[fit]`.
        others_weight: That of `[ract]`, for this new head: then the training images of `[[ract.data]]` take part in it.
        held_out_weight: That of `[fit]`, for this new head alone. From then on the validation images tell nothing more.
        recalibrate: Fit slope and offset of the scores to the validation images at last.
    """

    start_from: int | None = None
    limit: int | None = None
    validation_fraction: float | None = None
    groups: int = 2600
    pristine: tuple[Path, ...] = ()
    positions_from: Path | None = None
    runs: int = 1
    first_run: int | None = None
    teachers: tuple[Path, ...] = ()
    teacher_share: float = 0.5
    teacher_images: str | None = None
    unlabelled: tuple[Path, ...] = ()
    unlabelled_teachers: tuple[Path, ...] = ()
    unlabelled_weight: float = 1.0
    start_share: float = 0.0
    mix_with: Path | None = None
    new_head: bool = False
    others_weight: float = 0.0
    held_out_weight: float = 0.0
    recalibrate: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """A whole training.

    Attributes:
        name: The model's name.
        output: Model file to write, `.safetensors`.
        work_dir: Folder for what the stages make.
        backbone: `[backbone]`.
        data: `[data]`.
        describe: `[describe]`.
        align: `[align]`.
        compress: `[compress]`.
        fit: `[fit]`.
        ract: `[ract]`; None without that section.
        joint: `[joint]`, or one or more of `[[joint]]`; empty without such a section.
        coverage: The model's own setting for pictures that are not square.
        workers: Processes that decode images; 0 decodes in this one.
        device: Where the tower computes, such as `"cpu"` or `"cuda:1"`; `"auto"` is a CUDA GPU where there is one.
        seed: Seed of every random choice.
        tokens_dir: Folder for the frozen blocks' output, which is large; by default one inside `work_dir`.
    """

    name: str
    output: Path
    work_dir: Path
    backbone: BackboneConfig
    data: DataConfig
    describe: DescribeConfig = field(default_factory=DescribeConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    ract: RactConfig | None = None
    joint: tuple[JointConfig, ...] = ()
    coverage: Coverage = "tiles"
    workers: int = 1
    device: str = AUTO
    seed: int = 0
    tokens_dir: Path | None = None


def read_config(path: str | Path) -> TrainConfig:
    """Read and check a configuration.

    Args:
        path: TOML file with the sections and keys of `TrainConfig`; paths in it are relative to its folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML; a key is unknown (the message lists those there are) or missing; a value is of
            another type; settings contradict each other.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration {path}; docs/training.md tells what one looks like")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{path} is not TOML: {error}") from None
    try:
        config = build(TrainConfig, table, "", path.absolute().parent)
        check(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def build(kind: type[T], table: dict[str, Any], section: str, folder: Path) -> T:
    """Make a dataclass from a table.

    Args:
        kind: The dataclass.
        table: Its values, as TOML gives them.
        section: Name of the table for messages, such as `align`; empty at the top.
        folder: What paths are relative to.

    Raises:
        ValueError: A key is unknown or missing, or a value is of another type.
    """
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if not section or f.name not in SET_ELSEWHERE}  # type: ignore[arg-type]
    where = f"in [{section}]" if section else "at the top"
    unknown = [key for key in table if key not in known]
    if unknown:
        raise ValueError(f"unknown key(s) {where}: {', '.join(unknown)}; there are {', '.join(known)}")
    missing = [
        name for name, f in known.items() if name not in table and f.default is f.default_factory is MISSING
    ]  # fmt: skip
    if missing:
        raise ValueError(f"missing key(s) {where}: {', '.join(missing)}")
    values = {key: _convert(value, hints[key], _join(section, key), folder) for key, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"[{section}]: {error}") from None


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _convert(value: Any, hint: Any, name: str, folder: Path) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # X | None; TOML knows no null
        return _convert(value, next(kind for kind in arguments if kind is not type(None)), name, folder)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        return _convert_list(value, arguments, name, folder)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be a section, got {value!r}")
        return build(hint, value, name, folder)  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str):
        return folder / Path(value).expanduser()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name} must be of type {'string' if hint is Path else hint.__name__}, got {value!r}")
    return value


def _convert_list(value: Any, kinds: tuple[Any, ...], name: str, folder: Path) -> tuple[Any, ...]:
    if isinstance(value, dict) and is_dataclass(kinds[0]):
        value = [value]  # one section where there may be several
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise ValueError(f"{name} must have {len(kinds)} values, got {len(value)}")
    return tuple(_convert(item, kind, name, folder) for item, kind in zip(value, kinds, strict=True))


def check(config: TrainConfig) -> None:
    """Find contradictions before anything is begun.

    Raises:
        ValueError: There is one.
    """
    describe = config.describe
    if config.output.suffix != ".safetensors":
        raise ValueError(f"a model file's name ends in .safetensors, got {config.output.name}")
    if describe.seeds < 1 or describe.groups < 0:
        raise ValueError(
            f"describe.seeds must be at least 1 and describe.groups 0, got {describe.seeds}, {describe.groups}"
        )
    fit = config.fit
    if fit.teacher_penalty <= 0 or fit.teacher_gamma <= 0 or fit.teacher_epsilon < 0:
        raise ValueError(
            "fit.teacher_penalty and fit.teacher_gamma must be positive, fit.teacher_epsilon at least 0, got "
            f"{fit.teacher_penalty}, {fit.teacher_gamma}, {fit.teacher_epsilon}"
        )
    if fit.held_out_weight:
        raise ValueError("fit.held_out_weight would leave nothing to choose by: set that of a [[joint]], with new_head")
    if fit.uses_groups and not (describe.groups and config.align.enabled):
        raise ValueError(
            "fit.order_weight and fit.steady_weight need distorted pictures: set describe.groups, and leave align "
            "enabled"
        )
    if describe.source == "qinsight" and describe.model is None:
        raise ValueError('describe.source = "qinsight" needs describe.model, a folder or a name on the hub')
    if describe.source == "file" and config.data.descriptions is None:
        raise ValueError('describe.source = "file" needs data.descriptions')
    if not config.align.views or config.align.views[0] != "whole":
        raise ValueError(f"align.views must begin with 'whole', got {list(config.align.views)}")
    seen, smallest = False, config.data.validation_fraction
    for number, joint in enumerate(config.joint, start=1):
        if joint.start_from is not None and not 0 <= joint.start_from < number:
            raise ValueError(
                f"joint.start_from of section {number} must be the number of an earlier section, or 0; got "
                f"{joint.start_from}"
            )
        if joint.held_out_weight < 0 or (joint.held_out_weight and not (joint.new_head and fit.teacher == "svr")):
            raise ValueError(
                "joint.held_out_weight must be at least 0, and needs new_head and fit.teacher = 'svr', got "
                f"{joint.held_out_weight}"
            )
        if joint.others_weight < 0 or (joint.others_weight and not (joint.new_head and config.ract)):
            raise ValueError(
                "joint.others_weight must be at least 0, and needs new_head and [[ract.data]], got "
                f"{joint.others_weight:g}"
            )
        held_out = smallest if joint.validation_fraction is None else joint.validation_fraction
        if not 0 < held_out <= smallest:
            raise ValueError(
                f"joint.validation_fraction must lie in (0, {smallest:g}], what was held out before; got {held_out:g}"
            )
        smallest = held_out
        seen = seen or joint.held_out_weight > 0
        if seen and joint.recalibrate:
            raise ValueError(
                "joint.recalibrate fits to the validation images, which with joint.held_out_weight the head has learnt"
            )
        if joint.runs < 1 or not 0 <= joint.start_share <= 1:
            raise ValueError(
                "joint.runs must be at least 1 and joint.start_share lie in [0, 1], got "
                f"{joint.runs}, {joint.start_share}"
            )
        if not 0 <= joint.teacher_share <= 1:
            raise ValueError(f"joint.teacher_share must lie in [0, 1], got {joint.teacher_share}")
        if bool(joint.unlabelled) != bool(joint.unlabelled_teachers):
            raise ValueError(
                "joint.unlabelled, folders of pictures, and joint.unlabelled_teachers, the models that score them, "
                "need one another"
            )
        weighted = joint.unlabelled_weight != 1
        if joint.unlabelled_weight <= 0 or (
            weighted and not (joint.unlabelled and joint.new_head and fit.teacher == "svr")
        ):
            raise ValueError(
                "joint.unlabelled_weight must be positive, and any but 1 needs unlabelled, new_head and fit.teacher = "
                f"'svr'; got {joint.unlabelled_weight:g}"
            )
        if joint.mix_with is not None and not joint.start_share:
            raise ValueError("joint.mix_with names weights to mix in, but joint.start_share, their share, is 0")
    if config.ract is None:
        return
    if not config.align.enabled:
        raise ValueError("[ract] goes on from the aligned tower, but align.enabled is false")
    names = [data.name for data in config.ract.data]
    if not names or len(set(names)) < len(names) or any(not name.isidentifier() for name in names):
        raise ValueError(f"[[ract.data]] must be there, each with another name of letters and digits; got {names}")
    if set(names) & {"reference", "groups"}:
        raise ValueError("[[ract.data]] cannot be named 'reference' or 'groups'")
    for data in config.ract.data:
        if describe.source == "file" and data.descriptions is None:
            raise ValueError(f'describe.source = "file" needs descriptions of the data set {data.name!r} too')
        if describe.source == "score" and data.descriptions is None and not data.tell_scores:
            raise ValueError(f'describe.source = "score" has nothing to tell of {data.name!r} without tell_scores')


def narrow(config: object, kind: type[T], **changes: Any) -> T:
    """The part of a configuration that belongs to one of its base classes, with changes."""
    values = {f.name: getattr(config, f.name) for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{**values, **changes})


def to_json(config: object, *, without: Iterable[str] = ()) -> Any:
    """A configuration as plain JSON types; of paths only the names, for whose machine it was does not matter.

    Args:
        config: A dataclass, or None.
        without: Top keys to leave out.
    """
    if config is None:
        return None
    values = asdict(config)  # type: ignore[call-overload]
    return {key: _plain(value) for key, value in values.items() if key not in set(without)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
