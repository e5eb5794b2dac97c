"""The data of a configured training: its data sets, their images as tokens, the models of its stages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Subset

from ..devices import training_device
from ..files import find_images, hash_file
from ..labels import LabelledImage, read_labels, scores_of, split_validation
from ..model import RaliModel
from .backbones import Backbone, load_backbone
from .compress import Embedded
from .config import DataConfig, ScoreRole, TrainConfig
from .distortion_triplets import BlankRenderer, DistortionTriplet, TripletRenderer, plan_triplets
from .optimise import freeze_blocks
from .token_cache import CopyReader, SquareReader, TokenCache, cache_tokens, embed_images, hash_weights

logger = logging.getLogger("rali")

StageName = Literal["describe", "align", "tune", "compress", "fit"]
STAGES: tuple[StageName, ...] = get_args(StageName)
Part = Literal["training", "validation"]
_Item = TypeVar("_Item")
TRIPLETS = "triplets"
"""Name of the distortion triplets among the described sets."""


@dataclass(frozen=True)
class DataSet:
    """One labelled set: images, human scores in [0, 1], split, and the role that its scores play.

    Attributes:
        name: Its name.
        training: Images that are trained on.
        validation: Images held out of the training part.
        test: Images for the final evaluation only.
        scores: `"absolute"`, `"mapped"`, `"correlation"` or `"none"`.
        root: Base of image names in description files.
        digest: SHA-256 over images, scores and split.
        files: SHA-256 over the image files of each part.
    """

    name: str
    training: list[LabelledImage]
    validation: list[LabelledImage]
    test: list[LabelledImage]
    scores: ScoreRole
    root: Path
    digest: str
    files: dict[Part, str]

    def rows(self, part: Part) -> list[LabelledImage]:
        """The images of a part."""
        return self.training if part == "training" else self.validation


def read_data_set(data: DataConfig, *, seed: int, limit: int | None = None) -> DataSet:
    """Read a configured table and split it.

    Args:
        data: Its configuration.
        seed: Seed of the validation split.
        limit: Keep at most so many images of each part, for a quick trial.

    Raises:
        FileNotFoundError, ValueError: See `read_labels` and `split_validation`.
    """
    rows = read_labels(
        data.labels, root=data.images_root, score_range=data.score_range,
        content_column=data.content_column, group_column=data.group_column,
    )  # fmt: skip
    unknown = set(data.exclude_groups) - {row.group for row in rows}
    if unknown:
        raise ValueError(f"exclude_groups of {data.name!r}: {data.labels.name} has no {', '.join(sorted(unknown))}")
    used = [row for row in rows if row.group not in data.exclude_groups or row.split != "train"]
    training, validation = split_validation(used, fraction=data.validation_fraction, seed=seed)
    test = [row for row in rows if row.split == "test" and not row.near_duplicate]
    if data.images:
        training = _sample(training, data.images, np.random.default_rng(seed))
    if limit is not None:
        random = np.random.default_rng(seed)
        training, validation, test = (_sample(part, limit, random) for part in (training, validation, test))
    digest, files = hashlib.sha256(), [hashlib.sha256(), hashlib.sha256(), hashlib.sha256()]
    for part, of_part in zip((training, validation, test), files, strict=True):
        for row in part:
            content = bytes.fromhex(hash_file(row.path))
            of_part.update(content)
            digest.update(content + f"{row.score:.6f} {row.content} {row.group}".encode())
        digest.update(b"part")
    root = data.images_root or data.labels.parent
    logger.info("%s: %d training, %d validation, %d test images", data.name, len(training), len(validation), len(test))
    parts: dict[Part, str] = {"training": files[0].hexdigest(), "validation": files[1].hexdigest()}
    return DataSet(data.name, training, validation, test, data.scores, root, digest.hexdigest(), parts)


def _sample(rows: list[_Item], limit: int, random: np.random.Generator) -> list[_Item]:
    return [rows[index] for index in sorted(random.permutation(len(rows))[:limit].tolist())]


def _shape(model: RaliModel) -> list[Any]:
    """What embeddings depend on beside the weights."""
    preprocess = model.preprocess_config
    return [model.encoder_config.to_dict(), preprocess.image_size, preprocess.mean, preprocess.std]


class Run:
    """A configured training: its data, read lazily, and the files of its stages.

    Args:
        config: From `read_config`.
        limit: Use at most so many images of each set and part, and so many triplets: a quick trial, with its own
            work_dir and output.
    """

    def __init__(self, config: TrainConfig, *, limit: int | None = None) -> None:
        if limit is not None:
            if limit < 3:
                raise ValueError(f"the limit must be at least 3 images, got {limit}")
            config = replace(
                config,
                work_dir=config.work_dir.with_name(f"{config.work_dir.name}-limit-{limit}"),
                output=config.output.with_name(f"{config.output.stem}-limit-{limit}.safetensors"),
                distortions=replace(config.distortions, triplets=min(limit, config.distortions.triplets)),
            )
        self.config, self.limit = config, limit

    def path(self, stage: StageName, name: str) -> Path:
        """A file of a stage."""
        return self.config.work_dir / stage / name

    @cached_property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return training_device(self.config.device)

    @cached_property
    def backbone(self) -> Backbone:
        """The pretrained encoder."""
        settings = self.config.backbone
        backbone = load_backbone(
            settings.file, image_size=settings.image_size, patch_subset=settings.patch_subset,
            intermediate_block=settings.intermediate_block,
        )  # fmt: skip
        between = backbone.encoder.vision_cfg.get("intermediate_block", 0)
        if 0 < between < settings.frozen_blocks:
            raise ValueError(f"intermediate_block {between} must not lie before frozen_blocks {settings.frozen_blocks}")
        return backbone

    @cached_property
    def data(self) -> list[DataSet]:
        """All data sets; the first one's scale is the model's."""
        return [read_data_set(data, seed=self.config.seed, limit=self.limit) for data in self.config.data]

    @property
    def domains(self) -> dict[str, DataSet]:
        """The sets of the kinds of images that the model can be told, by the name of their percentiles: one that is on
        its scale and one that is mapped, if a component of the head tells these apart (`set_scale`)."""
        pairs = zip(self.config.data, self.data, strict=True)
        named = [(config.percentiles, data) for config, data in pairs if config.percentiles is not None]
        found = {name: data for name, data in named if data.scores in ("absolute", "mapped")}
        both = len({data.scores for data in found.values()}) == 2
        return found if both and self.config.compress.set_scale else {}

    @cached_property
    def triplets(self) -> list[DistortionTriplet]:
        """Distortion triplets to be rendered."""
        good = [row for data in self.data if data.scores in ("absolute", "mapped") for row in data.training]
        return plan_triplets(self.pristine, good, count=self.config.distortions.triplets, seed=self.config.seed)

    @cached_property
    def pristine(self) -> list[Path]:
        """Files of undistorted images."""
        folders = self.config.distortions.pristine
        return [path for folder in folders for path in find_images([folder], recursive=True)]

    @cached_property
    def triplets_digest(self) -> str:
        """SHA-256 over the triplets and their images."""
        hashes: dict[str, str] = {}
        digest = hashlib.sha256()
        for triplet in self.triplets:
            if triplet.source not in hashes:
                rendered = triplet.source.startswith("graphic:")
                hashes[triplet.source] = triplet.source if rendered else hash_file(Path(triplet.source))
            what = (hashes[triplet.source], triplet.pristine, triplet.distortion, triplet.mild, triplet.severe)
            digest.update(repr((*what, triplet.seed)).encode())
        return digest.hexdigest()

    @property
    def size(self) -> int:
        """Side of the encoder's input in pixels."""
        return self.backbone.preprocess.image_size

    @cached_property
    def frozen(self) -> tuple[RaliModel, list[Any]]:
        """The backbone, rounded as in the model file, and what its tokens depend on."""
        model = self.model()
        model.encoder.half().float()
        freeze_blocks(model.encoder, self.config.backbone.frozen_blocks)
        state = {name: value for name, value in model.encoder.named_parameters() if not value.requires_grad}
        return model, [hash_weights(state), *_shape(model)]

    def _cache(
        self, name: str, render: Callable[[int], NDArray[np.uint8]], shape: tuple[int, ...], key: object
    ) -> TokenCache:
        model, made_by = self.frozen
        return cache_tokens(
            model, self.config.backbone.frozen_blocks, render, shape,
            self.config.work_dir / "tokens" / f"{name}.npy", key=[made_by, key], workers=self.config.workers,
        )  # fmt: skip

    def tokens(self, data: DataSet, part: Part) -> TokenCache:
        """The middle squares of a part of a set."""
        paths = [row.path for row in data.rows(part)]
        return self._cache(f"{data.name}-{part}", SquareReader(paths, self.size), (len(paths),), data.files[part])

    def triplet_tokens(self) -> TokenCache:
        """The distortion triplets, three images each."""
        render = TripletRenderer(self.triplets, self.size)
        return self._cache(TRIPLETS, render, (len(self.triplets), 3), self.triplets_digest)

    def blank_tokens(self) -> TokenCache:
        """The images without content."""
        count = self.config.distortions.blank
        return self._cache("blank", BlankRenderer(self.size), (count,), count)

    def copy_tokens(self) -> TokenCache:
        """Pairs of an image and its copy, see `CopyReader`; half of the images are labelled, half pristine."""
        on_scale = [data for data in self.data if data.scores in ("absolute", "mapped")]
        labelled = [row.path for data in on_scale for row in data.training]
        count, random = self.config.distortions.copies, np.random.default_rng(self.config.seed)
        pristine = _sample(self.pristine, count // 2, random)
        paths = _sample(labelled, count - len(pristine), random) + pristine
        return self._cache("copies", CopyReader(paths, self.size), (len(paths), 2), self.copies_key)

    @cached_property
    def copies_key(self) -> str:
        """SHA-256 over what the copies depend on; without copies that is no image."""
        count = self.config.distortions.copies
        digest = hashlib.sha256(repr((self.config.seed, count)).encode())
        if count:
            on_scale = [data.digest for data in self.data if data.scores in ("absolute", "mapped")]
            for part in [*on_scale, *map(hash_file, self.pristine)]:
                digest.update(part.encode())
        return digest.hexdigest()

    def model(self, encoder: Path | None = None) -> RaliModel:
        """The backbone, or the encoder of a stage, with an empty head."""
        source = self.backbone
        model = RaliModel(source.encoder, source.preprocess, pca_dim=1, prototypes=1, coverage=self.config.coverage)
        state = source.state if encoder is None else load_file(encoder)
        model.encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        return model.eval().to(self.device)

    def embeddings(self, model: RaliModel, name: str, images: Sequence[NDArray[Any]], digest: str) -> Tensor:
        """(N, D) embeddings of a set's tokens or images, kept in the work_dir."""
        path, frozen = self.config.work_dir / "embeddings" / f"{name}.npy", self.config.backbone.frozen_blocks
        key = [hash_weights(model.encoder.state_dict()), *_shape(model), frozen, digest]
        return embed_images(model, images, frozen, path, key=key)

    def embed_groups(self, model: RaliModel, name: str, tokens: NDArray[np.float16], digest: str) -> Tensor:
        """(G, K, D) embeddings of (G, K, T, W) tokens of groups of images, kept in the work_dir."""
        images: Any = tokens.reshape(-1, *tokens.shape[2:])
        return self.embeddings(model, name, images, digest).view(*tokens.shape[:2], -1)

    def embed_validation(self, model: RaliModel, data: DataSet) -> Tensor:
        """(N, D) embeddings of a set's validation images."""
        name = f"{data.name}-validation"
        return self.embeddings(model, name, self.tokens(data, "validation"), f"{data.digest}-validation")

    def embed_training(self, model: RaliModel, data: DataSet, count: int | None = None) -> Embedded:
        """(N, D) embeddings and (N,) scores of the training images of a set, or of at most `count` drawn at random."""
        tokens, scores, name = self.tokens(data, "training"), scores_of(data.training), f"{data.name}-training"
        if count is None or count >= len(scores):
            return self.embeddings(model, name, tokens, f"{data.digest}-training").numpy(), scores
        chosen = np.sort(np.random.default_rng(self.config.seed).permutation(len(scores))[:count])
        images: Any = Subset(tokens, chosen.tolist())  # type: ignore[arg-type]
        digest = f"{data.digest}-training-{count}-{self.config.seed}"
        return self.embeddings(model, f"{name}-{count}", images, digest).numpy(), scores[chosen]
