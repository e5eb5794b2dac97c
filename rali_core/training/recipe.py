"""The whole recipe as stages: describe, align, compress, fit, and where configured ract and joint.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369); what each stage does, and where it differs, stands in `align.py`,
`compress.py`, `fit.py`, `ract.py` and `joint.py`. This file gives them their data and keeps what they make.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import __version__
from ..checkpoint import read_metadata
from ..devices import training_autocast, training_device
from ..encoder import build_encoder
from ..files import hash_file
from ..preprocess import preprocess
from ..scorer import RaliScorer
from .adapt import adapt, find_pictures
from .align import AlignSettings, DescribedViews, align, make_projection
from .backbones import Backbone, load_backbone
from .compress import CompressedHead
from .config import DataConfig, RactDataConfig, TrainConfig, narrow, to_json
from .data import LabelledImage, scores_of
from .describe.describer import Describer
from .describe.from_file import FileDescriber
from .describe.measured import MeasuredDescriber
from .describe.records import image_name, read_descriptions
from .describe.run import Task, describe_all, failures_path
from .describe.score_only import ScoreDescriber
from .evaluate import Report
from .fit import OrderedEmbeddings
from .joint import JointSettings, steady_copy
from .ordered import OrderedGroup, plan_groups
from .pipeline import Splits, assemble, measure_and_save, measure_on_test, read_configured
from .provenance import git_commit, hash_files
from .ract import Domain, compress_domains, embed_views, fit_domains, make_validation, measure_domains
from .rendered import describe_groups, list_pictures, render_groups
from .stages import Stage, run_stages
from .text import MINILM_PACKAGE, TextTower, embed_texts, load_clip_text_tower, load_sentence_tower
from .tokens import LowerBlocks, UpperBlocks, View, ViewKind, cache_tokens, plan_views, timm_trunk, token_key

FIT_VIEWS: tuple[ViewKind, ...] = ("whole", "mirrored")
"""Views that the head is fitted on, of those that are there: crops would cost half as much again."""
CURVES = ("log.jsonl", "curves.png")
"""What an alignment and the joint tuning leave for people to look at."""
LOOKS = ("checkpoint_every", "validate_every", "validation_images", "probe_images")
"""Settings that change what is seen of an alignment, not what comes out of it."""
PROGRESS = 500
"""Descriptions between two lines of progress."""


@dataclass(frozen=True)
class DataSet:
    """The images of one set with what the configuration says of it."""

    name: str
    config: DataConfig
    rows: Splits
    digest: str
    """SHA-256 over the images."""

    @property
    def root(self) -> Path:
        """What image names are relative to in description files."""
        return self.config.images_root or self.config.labels.parent

    @property
    def tells_scores(self) -> bool:
        """Whether the describer is told the human scores."""
        return not isinstance(self.config, RactDataConfig) or self.config.tell_scores

    def inputs(self) -> dict[str, Any]:
        """What a stage that uses images, scores and their split depends on."""
        settings = to_json(self.config, without=("name", "descriptions"))
        return {"images": self.digest, "labels": hash_file(self.config.labels), "data": settings}

    def story(self) -> dict[str, Any]:
        """What the model file says about it."""
        parts = zip(("training", "validation", "test"), self.rows, strict=True)
        return {
            "labels": self.config.labels.name,
            "labels_sha256": hash_file(self.config.labels),
            "images_sha256": self.digest,
            "images": {part: len(rows) for part, rows in parts},
            "score_range": list(self.config.score_range),
        }


class Recipe:
    """A configured training.

    Args:
        config: From `config.read_config`.
        report: Called with lines of text.

    Raises:
        FileNotFoundError: Labels, images or backbone are missing; found out when they are needed.
        ValueError: They do not fit.
    """

    def __init__(self, config: TrainConfig, *, report: Report = print) -> None:
        self.config, self.report = config, report

    def run(self, wanted: list[str] | None = None) -> dict[str, Any] | None:
        """Run all stages, or some, and write the model file when all are finished.

        Args:
            wanted: Names of stages; `"describe"` means all of that kind.

        Returns:
            What the model file's `training` metadata holds; None while stages are missing.
        """
        if wanted is not None:
            kinds = [stage.name for stage in self.stages]
            wanted = [name for kind in wanted for name in ([n for n in kinds if n.split("-")[0] == kind] or [kind])]
        self.report(f"computing on {self.device}")  # a device that is not there is found out now
        backbone = self.backbone  # and so is a backbone that cannot be used, not after days of describing
        timm_trunk(build_encoder(backbone.encoder))
        if not run_stages(self.stages, wanted, report=self.report):
            return None
        return self.publish()

    # ------------------------------------------------------------------------------------------ inputs

    @cached_property
    def device(self) -> torch.device:
        """Where the tower computes."""
        return training_device(self.config.device)

    @cached_property
    def backbone(self) -> Backbone:
        """The pretrained tower."""
        return load_backbone(self.config.backbone.file, image_size=self.config.backbone.image_size)

    @cached_property
    def reference(self) -> DataSet:
        """The set that the head is made from."""
        return self._read("reference", self.config.data)

    @cached_property
    def others(self) -> tuple[DataSet, ...]:
        """The further sets of RACT."""
        return tuple(self._read(data.name, data) for data in (self.config.ract.data if self.config.ract else ()))

    def _read(self, name: str, data: DataConfig) -> DataSet:
        rows = read_configured(name, data, seed=self.config.seed, report=self.report)
        return DataSet(name, data, rows, hash_files(row.path for part in rows for row in part))

    @cached_property
    def groups(self) -> list[OrderedGroup]:
        """Pictures to be rendered at known levels of distortion."""
        settings = self.config.describe
        pristine = find_pictures(list(settings.pristine))
        return plan_groups(pristine, self.reference.rows[0], count=settings.groups, seed=self.config.seed)

    @cached_property
    def text_tower(self) -> TextTower:
        """The frozen text tower."""
        config = self.config.align
        if config.text_tower == "clip":
            return load_clip_text_tower(config.clip_model, config.clip_checkpoint)
        return load_sentence_tower(config.text_folder)

    def _text_tower_story(self) -> dict[str, str]:
        config = self.config.align
        if config.text_tower == "clip":
            weights = config.clip_checkpoint
            return {"name": config.clip_model, "sha256": hash_file(weights) if weights else "random"}
        if config.text_folder is not None:
            return {"name": config.text_folder.name, "sha256": hash_file(config.text_folder / "model.safetensors")}
        return {"name": MINILM_PACKAGE, "version": importlib.metadata.version(MINILM_PACKAGE)}

    # ------------------------------------------------------------------------------------------ stages

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages that the configuration asks for, in order."""
        config = self.config
        stages = []
        if config.align.enabled:  # without, no one would read the descriptions
            stages.append(self._describe_stage(self.reference))
            stages += [self._groups_stage()] if config.describe.groups else []
            stages += [self._describe_stage(data) for data in self.others]
        aligned = ("tower.safetensors", *(CURVES if config.align.enabled else ()))
        stages += [
            self._stage("align", aligned, self._align_inputs, self._align),
            self._stage("compress", ("head.safetensors",), self._compress_inputs, self._compress),
            self._stage("fit", ("model.safetensors",), self._fit_inputs, self._fit),
        ]
        if config.ract is not None:
            outputs = ("model.safetensors", "tower.safetensors", *CURVES)
            stages.append(self._stage("ract", outputs, self._ract_inputs, self._ract))
        models = [stages[-1]]
        for index, section in enumerate(config.joint):
            models.append(self._joint_stage(index, models[-1 if section.start_from is None else section.start_from]))
        return [*stages, *models[1:]]

    def _stage(self, name: str, outputs: tuple[str, ...], inputs: Any, work: Any) -> Stage:
        return Stage(name, self.config.work_dir / name, outputs, inputs, work)

    def _finished(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def _made_by(self, *names: str) -> dict[str, Any]:
        """Inputs of a stage that are other stages' outputs; plots do not count."""
        return {
            f"{name}/{file}": digest
            for name in names
            for file, digest in self._finished(name).hashes.items()
            if file not in CURVES
        }

    # ---------------------------------------------------------------------------------------- describe

    def _describe_stage(self, data: DataSet) -> Stage:
        config = self.config.describe
        name = "describe" if data is self.reference else f"describe-{data.name}"
        from_file = data.config.descriptions if config.source == "file" or data is not self.reference else None

        def inputs() -> dict[str, Any]:
            own = to_json(config, without=("groups", "pristine", "device"))
            return {
                **data.inputs(),
                "settings": {**own, "source": "file"} if from_file else own,
                "prompt": hash_file(config.prompt_file) if config.prompt_file else None,
                "descriptions": hash_file(from_file) if from_file else None,
                "seed": self.config.seed,
            }

        def work(folder: Path) -> None:
            tasks = [
                Task(image_name(row.path, data.root), row.path, row.score if data.tells_scores else None)
                for row in (*data.rows[0], *data.rows[1])
            ]
            if from_file is not None:
                describer = FileDescriber(from_file, root=data.root)
                seeds = min(config.seeds, max(describer.count(task.path) for task in tasks))
                self._describe(tasks, describer, folder, max(1, seeds))
            else:
                self._describe(tasks, self._make_describer(), folder, config.seeds)

        return self._stage(name, ("descriptions.jsonl",), inputs, work)

    def _describe(self, tasks: list[Task], describer: Describer, folder: Path, seeds: int) -> None:
        output, done, total = folder / "descriptions.jsonl", 0, len(tasks) * seeds

        def count() -> None:
            nonlocal done
            done += 1
            if done % PROGRESS == 0 or done == total:
                self.report(f"{folder.name}: {done} of {total} descriptions")

        summary = describe_all(tasks, describer, output, seeds=range(seeds), on_done=count)
        if summary.failed:
            image, seed, reason = summary.failed[0]
            failed = f"{len(summary.failed)} of {total} descriptions could not be made"
            if summary.written + summary.kept == 0:
                raise ValueError(f"{failed}; {image} (seed {seed}): {reason}")
            self.report(f"{folder.name}: {failed}, see {failures_path(output)}")

    def _make_describer(self) -> Describer:
        config = self.config.describe
        if config.source == "qinsight":
            from .describe.qinsight import QInsightDescriber

            assert config.model is not None
            prompt = config.prompt_file.read_text(encoding="utf-8") if config.prompt_file else None
            return QInsightDescriber(
                config.model, device=config.device, dtype=config.dtype, max_new_tokens=config.max_new_tokens,
                attempts=config.attempts, prompt=prompt,
            )  # fmt: skip
        return ScoreDescriber() if config.source == "score" else MeasuredDescriber()

    def _groups_stage(self) -> Stage:
        def inputs() -> dict[str, Any]:
            sources = sorted({group.source for group in self.groups if not group.source.startswith("drawing:")})
            return {
                "pictures": hash_files(map(Path, sources)),
                "groups": [[g.distortion, g.weak, g.strong, g.seed, g.pristine] for g in self.groups],
                "seeds": self.config.describe.seeds,
            }

        def work(folder: Path) -> None:
            render_groups(self.groups, folder / "pictures", report=self.report)
            describe_groups(self.groups, folder, seeds=self.config.describe.seeds, report=self.report)

        return self._stage("describe-groups", ("descriptions.jsonl",), inputs, work)

    # ------------------------------------------------------------------------------------------- align

    def _align_inputs(self) -> dict[str, Any]:
        described = ["describe", *(["describe-groups"] if self.config.describe.groups else [])]
        if not self.config.align.enabled:
            return {"backbone": self.backbone.source, "settings": to_json(self.config.backbone), "enabled": False}
        return {
            **self._made_by(*described),
            **self.reference.inputs(),
            "backbone": self.backbone.source,
            "tower": to_json(self.config.backbone),
            "text tower": self._text_tower_story(),
            "settings": to_json(self.config.align, without=LOOKS),
            "seed": self.config.seed,
        }

    def _align(self, folder: Path) -> None:
        tower = self._build_tower(self.backbone.state)
        if self.config.align.enabled:
            settings = narrow(self.config.align, AlignSettings, seed=self.config.seed)
            self._align_tower(tower, [self.domain(self.reference)], settings, folder)
        save_tensors(tower, folder / "tower.safetensors")

    def _align_tower(self, tower: nn.Module, domains: Sequence[Domain], settings: AlignSettings, folder: Path) -> None:
        upper = UpperBlocks(tower, self.config.backbone.frozen_blocks)
        sets = [domain.training for domain in domains]
        if self.config.describe.groups:
            sets.append(self._described_groups())
        projection = make_projection(self.backbone.encoder.embed_dim, self.text_tower.embed_dim, seed=self.config.seed)
        validate = make_validation(
            domains, config=self.config.compress, probe_images=self.config.align.probe_images,
            images=self.config.align.validation_images, seed=self.config.seed,
        )  # fmt: skip
        projection = projection.to(self.device)
        align(upper, projection, sets, settings=settings, folder=folder, validate=validate, report=self.report)
        save_tensors(projection, folder / "projection.safetensors")

    def _build_tower(self, state: dict[str, Tensor]) -> nn.Module:
        tower = build_encoder(self.backbone.encoder)
        tower.load_state_dict(state)
        return tower.to(self.device)

    def aligned_tower(self) -> nn.Module:
        """The tower that the stage `align` made."""
        return self._build_tower(load_file(self._finished("align").folder / "tower.safetensors"))

    # ------------------------------------------------------------------------------- views of data sets

    @cached_property
    def _lower(self) -> LowerBlocks:
        tower = self._build_tower(self.backbone.state)
        return LowerBlocks(tower, self.config.backbone.frozen_blocks).requires_grad_(False).eval()

    @property
    def tokens_folder(self) -> Path:
        """For the frozen blocks' output and what is made from it; made if need be."""
        folder = self.config.tokens_dir or self.config.work_dir / "tokens"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def domain(self, data: DataSet) -> Domain:
        """A described set with its cached views, which are made where they are not there yet."""
        training, validation, _ = data.rows
        kinds = self.config.align.views
        fitted = [position for position, kind in enumerate(kinds) if kind in FIT_VIEWS]
        positions = [np.arange(len(training)) + len(training) * position for position in fitted]
        folder = self.config.work_dir / ("describe" if data is self.reference else f"describe-{data.name}")
        return Domain(
            name=data.name,
            training=self._described(training, kinds, data, folder, "training"),
            scores=scores_of(training),
            validation=self._described(validation, ("whole",), data, folder, "validation"),
            validation_scores=scores_of(validation),
            fit_views=np.concatenate(positions),
            key=f"{data.digest} {kinds} {token_key(self.backbone, self.config.backbone.frozen_blocks)}",
        )

    def _described(
        self, rows: list[LabelledImage], kinds: Sequence[ViewKind], data: DataSet, folder: Path, part: str
    ) -> DescribedViews:
        names = [image_name(row.path, data.root) for row in rows]
        return self._describe_views(
            rows, names, kinds, folder / "descriptions.jsonl", f"{data.name}-{part}", data.digest
        )

    def _described_groups(self) -> DescribedViews:
        folder = self._finished("describe-groups").folder
        files = list_pictures(self.groups, folder / "pictures")
        rows = [LabelledImage(file, math.nan, "train", False) for file in files]
        digest = self._finished("describe-groups").hashes["descriptions.jsonl"]
        names = [image_name(file, folder) for file in files]
        views = [kind for kind in self.config.align.views if kind in FIT_VIEWS]
        return self._describe_views(rows, names, views, folder / "descriptions.jsonl", "groups", digest)

    def ordered(self, upper: UpperBlocks) -> OrderedEmbeddings | None:
        """Embeddings of the pictures at known levels of distortion; None where the fitting does not use them."""
        settings = self.config.fit
        if not settings.uses_groups:
            return None
        count = 3 * len(self.groups)  # the undistorted pictures' other views come after them
        embeddings = embed_views(upper, self._described_groups().tokens, count).unflatten(0, (-1, 3))
        return OrderedEmbeddings(self.groups, embeddings, self._embed_copies(upper) if settings.steady_weight else None)

    def _embed_copies(self, upper: UpperBlocks) -> Tensor:
        """(G, D) embeddings of the undistorted pictures' mirror images saved as JPEG."""
        files = list_pictures(self.groups, self._finished("describe-groups").folder / "pictures")[::3]
        self.report(f"{len(files)} undistorted pictures, mirrored and saved as JPEG")
        embeddings = []
        for file in files:
            with Image.open(file) as picture:
                copy = steady_copy(np.array(picture.convert("RGB")))
            pixels = torch.from_numpy(copy).permute(2, 0, 1).float().div(255).unsqueeze(0)
            crops = preprocess(pixels.to(self.device), self.backbone.preprocess)[0]
            with torch.no_grad(), training_autocast(self.device):
                embeddings.append(upper(self._lower(crops)).float().cpu())
        return torch.cat(embeddings)

    def _describe_views(
        self,
        rows: list[LabelledImage],
        names: list[str],
        kinds: Sequence[ViewKind],
        descriptions: Path,
        name: str,
        digest: str,
    ) -> DescribedViews:
        views: list[View] = plan_views(len(rows), kinds=kinds, seed=self.config.seed)
        tokens = cache_tokens(
            self._lower, rows, views, self.backbone.preprocess, self.tokens_folder / f"{name}.npy",
            key=f"{token_key(self.backbone, self.config.backbone.frozen_blocks)}-{digest}",
            workers=self.config.workers, report=self.report,
        )  # fmt: skip
        view_images = np.array([view.image for view in views])
        if not self.config.align.enabled:
            return DescribedViews(tokens, view_images, torch.zeros(0, 1), np.zeros(0, dtype=np.int64))
        texts: dict[str, list[str]] = defaultdict(list)
        for record in read_descriptions(descriptions):
            texts[record.image].append(record.description)
        text_images = np.array([index for index, image in enumerate(names) for _ in texts[image]], dtype=np.int64)
        embedded = embed_texts(
            self.text_tower, [text for image in names for text in texts[image]],
            self.tokens_folder / f"{name}-texts.safetensors", report=self.report,
        )  # fmt: skip
        return DescribedViews(tokens, view_images, embedded, text_images)

    # ------------------------------------------------------------------------------- compress, fit, ract

    def _compress_inputs(self) -> dict[str, Any]:
        settings = {"settings": to_json(self.config.compress), "views": list(self.config.align.views)}
        return {**self._made_by("align"), **self.reference.inputs(), "seed": self.config.seed, **settings}

    def _compress(self, folder: Path) -> None:
        upper = UpperBlocks(self.aligned_tower(), self.config.backbone.frozen_blocks).eval()
        compressed = compress_domains(
            upper, [self.domain(self.reference)], config=self.config.compress, folder=self.tokens_folder,
            seed=self.config.seed, report=self.report,
        )  # fmt: skip
        save_compressed(compressed, folder / "head.safetensors")

    def _fit_inputs(self) -> dict[str, Any]:
        config = self.config
        settings = {"settings": to_json(config.fit), "seed": config.seed, "model": [config.name, config.coverage]}
        made = self._made_by("align", "compress", *(["describe-groups"] if config.fit.uses_groups else []))
        return {**made, **self.reference.inputs(), **settings}

    def _fit(self, folder: Path) -> None:
        tower = self.aligned_tower()
        upper = UpperBlocks(tower, self.config.backbone.frozen_blocks).eval()
        head = fit_domains(
            upper, load_compressed(self._finished("compress").folder / "head.safetensors"),
            [self.domain(self.reference)], config=self.config.fit, ordered=self.ordered(upper),
            folder=self.tokens_folder, seed=self.config.seed, report=self.report,
        )  # fmt: skip
        self._save(assemble(self.backbone, tower, head, coverage=self.config.coverage), folder, {"stage": "fit"})

    def _ract_inputs(self) -> dict[str, Any]:
        config = self.config.ract
        described = [stage.name for stage in self.stages if stage.name.startswith("describe")]
        return {
            **self._made_by(*described, "align"),
            "sets": {data.name: data.inputs() for data in (self.reference, *self.others)},
            "settings": to_json(config, without=("data", *LOOKS)),
            "compress": to_json(self.config.compress),
            "fit": to_json(self.config.fit),
            "views": list(self.config.align.views),
            "seed": self.config.seed,
            "model": [self.config.name, self.config.coverage],
        }

    def _ract(self, folder: Path) -> None:
        config, seed = self.config.ract, self.config.seed
        assert config is not None
        domains = [self.domain(data) for data in (self.reference, *self.others)]
        tower = self.aligned_tower()
        upper = UpperBlocks(tower, self.config.backbone.frozen_blocks).eval()
        self._align_tower(tower, domains, narrow(config, AlignSettings, seed=seed), folder)
        save_tensors(tower, folder / "tower.safetensors")
        compressed = compress_domains(
            upper, domains, config=self.config.compress, folder=self.tokens_folder, seed=seed, report=self.report
        )
        head = fit_domains(
            upper, compressed, domains, config=self.config.fit, others_weight=config.others_weight,
            folder=self.tokens_folder, seed=seed, report=self.report,
        )  # fmt: skip
        figures = measure_domains(upper, head, domains)
        for name, values in figures.items():
            self.report(f"ract: {name} validation SRCC {values['srcc']:.4f} PLCC {values['plcc']:.4f}")
        story = {"stage": "ract", "domains": figures}
        self._save(assemble(self.backbone, tower, head, coverage=self.config.coverage), folder, story)

    def _save(self, model: Any, folder: Path, story: dict[str, Any]) -> None:
        measure_and_save(
            model.to(self.device), folder / "model.safetensors",
            name=self.config.name, licence=self.backbone.source["licence"], source={"backbone": self.backbone.source},
            labels=self.config.data.labels, rows=self.reference.rows, story=story,
            measure_test=self._is_last(folder), report=self.report,
        )  # fmt: skip

    def _is_last(self, folder: Path) -> bool:
        """Whether a stage's model becomes the output; only that one is measured on the test images."""
        return folder == self.stages[-1].folder

    # ------------------------------------------------------------------------------------------- joint

    def _joint_stage(self, index: int, before: Stage) -> Stage:
        config, data = self.config.joint[index], self.config.data
        first_run = config.first_run
        if first_run is None:
            first_run = sum(earlier.runs for earlier in self.config.joint[:index])

        def inputs() -> dict[str, Any]:
            return {
                **self._made_by(before.name),
                **self.reference.inputs(),
                "settings": to_json(config),
                "pristine": hash_files(find_pictures(list(config.pristine))),
                "positions": hash_file(config.positions_from) if config.positions_from else None,
                "teachers": [hash_file(path) for path in config.teachers],
                "unlabelled": hash_files(find_pictures(list(config.unlabelled))),
                "unlabelled_teachers": [hash_file(path) for path in config.unlabelled_teachers],
                "mix_with": hash_file(config.mix_with) if config.mix_with else None,
                "seed": self.config.seed,
                "model": self.config.name,
                **({"sets": {data.name: data.inputs() for data in self.others}} if config.others_weight else {}),
                **({"first_run": first_run} if first_run else {}),
            }

        limit = data.limit if config.limit is None else config.limit
        held_out = data.validation_fraction
        for section in self.config.joint[: index + 1]:
            held_out = held_out if section.validation_fraction is None else section.validation_fraction

        def work(folder: Path) -> None:
            start = before.folder / "model.safetensors"
            adapt(
                start, data.labels, folder / "model.safetensors",
                work_dir=folder, pictures_dir=self.config.work_dir / "joint",
                pristine=list(config.pristine), groups=config.groups,
                positions_from=config.positions_from, root=data.images_root, score_range=data.score_range,
                name=self.config.name, limit=limit, validation_fraction=held_out,
                settings=narrow(config, JointSettings, seed=self.config.seed), runs=config.runs, first_run=first_run,
                mix_with=(config.mix_with or start) if config.start_share else None, mix_share=config.start_share,
                teachers=config.teachers, teacher_share=config.teacher_share, teacher_images=config.teacher_images,
                unlabelled=config.unlabelled, unlabelled_teachers=config.unlabelled_teachers,
                unlabelled_weight=config.unlabelled_weight,
                refit=(
                    (self.config.compress, replace(self.config.fit, held_out_weight=config.held_out_weight))
                    if config.new_head else None
                ),
                domains=self.config.ract.data if config.others_weight and self.config.ract else (),
                domains_weight=config.others_weight,
                recalibrate=config.recalibrate, measure_test=self._is_last(folder), workers=self.config.workers,
                device=self.config.device, report=self.report,
            )  # fmt: skip

        name = f"joint-{index + 1}" if index else "joint"
        outputs = ("model.safetensors", *(CURVES if config.steps else ()))
        return self._stage(name, outputs, inputs, work)

    # ----------------------------------------------------------------------------------------- publish

    def publish(self) -> dict[str, Any]:
        """Write the last stage's model with the whole story of its making to the configured file."""
        last = self.stages[-1].folder / "model.safetensors"
        with safe_open(last, framework="pt") as file:
            metadata: dict[str, str] = file.metadata()
        training: dict[str, Any] = {**json.loads(metadata["training"]), "recipe": self.story()}
        test = self.reference.rows[2]
        if "test" not in training["figures"] and len(test) >= 3:  # made when there was a stage after it
            training["figures"]["test"] = measure_on_test(
                RaliScorer.from_pretrained(last, device=self.device), test, report=self.report
            )
        start = training["recipe"]["start"]
        if start is not None:
            metadata["source"] = json.dumps({**json.loads(metadata["source"]), **start["source"]}, sort_keys=True)
        output = self.config.output
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_suffix(".partial")
        save_file(load_file(last), temporary, metadata={**metadata, "training": json.dumps(training, sort_keys=True)})
        temporary.chmod(0o644)
        temporary.replace(output)
        self.report(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
        return training

    def _start(self) -> dict[str, Any] | None:
        """Where the tower is that of a RALI model file: that model's own story and source."""
        file = self.config.backbone.file
        if file.suffix != ".safetensors":
            return None
        told = read_metadata(file)
        story = {name: told[name] for name in ("name", "training", "source")}
        return {**story, "sha256": self.backbone.source["sha256"]}

    def story(self) -> dict[str, Any]:
        """The recipe for the model file: configuration, code, data, and what each stage made."""
        stages = {}
        for stage in self.stages:
            record = stage.record
            stages[stage.name] = {name: record[name] for name in ("outputs", "seconds", "git_commit")}
            log = stage.folder / "log.jsonl"
            if log.is_file():
                entries = [json.loads(line) for line in log.read_text().splitlines()]
                stages[stage.name]["log"] = [entries[0], entries[-1]]
            if stage.name.startswith("describe"):
                records = read_descriptions(stage.folder / "descriptions.jsonl")
                stages[stage.name]["descriptions"] = {"count": len(records), "source": records[0].source}
        return {
            "config": to_json(self.config),
            "seed": self.config.seed,
            "git_commit": git_commit(),
            "start": self._start(),
            "data": {data.name: data.story() for data in (self.reference, *self.others)},
            "text_tower": self._text_tower_story() if self.config.align.enabled else None,
            "stages": stages,
            "versions": {"rali": __version__, "python": platform.python_version(), "torch": torch.__version__},
        }


def save_tensors(module: nn.Module, path: Path) -> None:
    """Keep a module's state in a `.safetensors` file."""
    save_file({name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}, path)


def save_compressed(head: CompressedHead, path: Path) -> None:
    """Keep the result of stage 2 in a `.safetensors` file."""
    tensors = {name: torch.as_tensor(getattr(head, name)).contiguous() for name in CompressedHead.__annotations__}
    save_file(tensors, path)


def load_compressed(path: Path) -> CompressedHead:
    """Read what `save_compressed` wrote."""
    values: dict[str, Any] = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    return CompressedHead(**{**values, "logit_scale": float(values["logit_scale"])})
