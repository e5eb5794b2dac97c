"""A training from its configuration to the model file: describe, align, tune, compress, fit, in this order.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369); what each stage does, and where it differs, is in `align.py`,
`tune.py`, `compress.py` and `fit.py`. Each stage here is a function that says what it reads and what it writes. The
path of a labels row: `labels.read_labels`, `token_cache` (read once), `align` and `tune` (batches), `embed_images`,
`compress`, `fit`, `publish.save`.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..describe.describers import describe_all, failures_path, make_describer
from ..describe.records import image_name, read_descriptions
from ..describe.request import Describer, DescriptionRequest
from ..files import atomic_write, hash_file
from ..labels import LabelledImage, scores_of
from ..model import RaliModel
from .align import DescribedImages, align_encoder
from .attributes import fit_attributes, save_probes
from .compress import compress_embeddings, domains_metadata, find_line, join_sets, map_scores
from .config import TrainConfig, to_json
from .distortion_triplets import DistortionTriplet, render_triplet
from .fit import TripletEmbeddings, fit_head
from .optimise import LOG_SETTINGS, draw_curves
from .publish import git_commit, load_head, save
from .run import STAGES, TRIPLETS, DataSet, Part, Run, StageName, read_data_set
from .text import TextEncoder, embed_texts, load_text_encoder
from .token_cache import TokenCache
from .tune import ScoredImages, TripletImages, tune_encoder

__all__ = [
    "STAGES",
    "Run",
    "align",
    "compress",
    "describe",
    "fit",
    "read_data_set",
    "run_stage",
    "save",
    "train",
    "tune",
]

logger = logging.getLogger("rali")

MAPPING_IMAGES = 1000
"""Images of each set that the line of a mapped set's scores is found with before the encoder is tuned."""


def describe(run: Run) -> None:
    """Stage 1. Reads the labelled images and renders the distortion triplets; writes `SET.jsonl` for each set."""
    settings = run.config.describe
    for data, config in zip(run.data, run.config.data, strict=True):
        told = config.scores in ("absolute", "mapped") if config.scores_in_text is None else config.scores_in_text
        requests = [
            DescriptionRequest(image_name(row.path, data.root), row.path, score=row.score if told else None)
            for row in (*data.training, *data.validation)
        ]
        describer = make_describer(
            settings.source, file=config.descriptions, root=data.root, model=settings.model, dtype=settings.dtype,
            max_new_tokens=settings.max_new_tokens, attempts=settings.attempts, prompt_file=settings.prompt_file,
        )  # fmt: skip
        _describe(run, requests, describer, data.name)
    if run.triplets:
        requests = [
            DescriptionRequest(
                _triplet_name(number, place),
                partial(_triplet_image, triplet, run.size, place),
                distortion=triplet.distortion if place else None,
                level=(0, triplet.mild, triplet.severe)[place],
            )
            for number, triplet in enumerate(run.triplets)
            for place in range(3)
        ]
        _describe(run, requests, make_describer("measured"), TRIPLETS)


def _triplet_name(number: int, place: int) -> str:
    return f"{number:06d}-{place}"


@lru_cache(maxsize=1)
def _rendered(triplet: DistortionTriplet, size: int) -> NDArray[np.uint8]:
    return render_triplet(triplet, size)


def _triplet_image(triplet: DistortionTriplet, size: int, place: int) -> Image.Image:
    return Image.fromarray(_rendered(triplet, size)[place])


def _describe(run: Run, requests: list[DescriptionRequest], describer: Describer, name: str) -> None:
    output = run.path("describe", f"{name}.jsonl")
    seeds = range(run.config.describe.seeds)
    summary = describe_all(requests, describer, output, seeds=seeds, workers=run.config.workers)
    if summary.failed:
        image, seed, reason = summary.failed[0]
        failed = f"{len(summary.failed)} of {len(requests) * len(seeds)} descriptions could not be made"
        if summary.written + summary.kept == 0:
            raise ValueError(f"{failed}; {image} (seed {seed}): {reason}")
        logger.warning("%s: %s, see %s", name, failed, failures_path(output))
    logger.info("%s: %d images described", name, len(requests))


def align(run: Run) -> None:
    """Stage 2. Reads the backbone and `describe/*.jsonl`; writes `encoder.safetensors`, the log and its curves."""
    folder, settings = run.path("align", ""), run.config.align
    model = run.model()
    if settings.steps:
        text_encoder = load_text_encoder(settings.text_model)
        sets = [_described(run, data, "training", text_encoder) for data in run.data]
        held_out = [
            _first(_described(run, data, "validation", text_encoder), settings.validation_images)
            for data in run.data
            if data.validation
        ]
        if run.triplets:
            names = [_triplet_name(number, place) for number in range(len(run.triplets)) for place in range(3)]
            images = _Flat(run.triplet_tokens(), 3)
            sets.append(_with_texts(run, TRIPLETS, names, images, text_encoder, folder / f"{TRIPLETS}.safetensors"))
        log = align_encoder(
            model, sets, held_out, config=settings, frozen_blocks=run.config.backbone.frozen_blocks, folder=folder,
            inputs=_inputs(run, "align"), seed=run.config.seed, workers=run.config.workers,
        )  # fmt: skip
        draw_curves(log, folder / "curves.png")
    _save_encoder(model, folder / "encoder.safetensors")


class _Flat(Sequence[NDArray[np.float16]]):
    """The tokens of G times K images as a sequence of G * K."""

    def __init__(self, images: TokenCache, each: int) -> None:
        self.images, self.each = images, each

    def __len__(self) -> int:
        return len(self.images) * self.each

    def __getitem__(self, index: Any) -> Any:
        return self.images[divmod(index, self.each)]


def _described(run: Run, data: DataSet, part: Part, text_encoder: TextEncoder) -> DescribedImages:
    names = [image_name(row.path, data.root) for row in data.rows(part)]
    path = run.path("align", f"{data.name}-{part}.safetensors")
    return _with_texts(run, data.name, names, run.tokens(data, part), text_encoder, path)


def _with_texts(
    run: Run,
    name: str,
    images: list[str],
    tokens: Sequence[NDArray[np.float16]],
    text_encoder: TextEncoder,
    path: Path,
) -> DescribedImages:
    numbers = {image: number for number, image in enumerate(images)}
    records = read_descriptions(run.path("describe", f"{name}.jsonl"))
    used = [record for record in records if record.image in numbers]
    texts = embed_texts(text_encoder, [record.description for record in used], path)
    return DescribedImages(tokens, texts, np.array([numbers[record.image] for record in used]))


def _first(described: DescribedImages, count: int) -> DescribedImages:
    kept = np.flatnonzero(described.text_images < count)
    return DescribedImages(
        [described.images[index] for index in range(min(count, len(described.images)))],
        described.texts[torch.from_numpy(kept)], described.text_images[kept],
    )  # fmt: skip


def tune(run: Run) -> None:
    """Stage 3. Reads `align/encoder.safetensors` and all scored sets; writes `encoder.safetensors`, log and curves."""
    folder, settings = run.path("tune", ""), run.config.tune
    model = run.model(run.path("align", "encoder.safetensors"))
    if settings.steps:
        scored = [data for data in run.data if data.scores != "none"]
        lines = _find_lines(run, model)
        sets = [
            ScoredImages(
                data.name, run.tokens(data, "training"), map_scores(scores_of(data.training), lines[data.name]),
                data.scores, _groups(data.training),
            )
            for data in scored
        ]  # fmt: skip
        if run.config.distortions.blank:
            blank = run.blank_tokens()
            sets.append(ScoredImages("blank", blank, np.zeros(len(blank)), "absolute"))
        held_out = []
        for data in scored:
            tokens, rows = run.tokens(data, "validation"), data.validation[: settings.validation_images]
            if len(rows) > 2:
                first = [tokens[index] for index in range(len(rows))]
                held_out.append(ScoredImages(data.name, first, scores_of(rows), data.scores))
        triplets = TripletImages(run.triplets, run.triplet_tokens()) if run.triplets else None
        consistent = settings.consistency_images and settings.consistency_weight and run.config.distortions.copies
        copies = run.copy_tokens() if consistent else []
        log = tune_encoder(
            model, sets, triplets, copies, held_out, config=settings, frozen_blocks=run.config.backbone.frozen_blocks,
            folder=folder, inputs=_inputs(run, "tune"), seed=run.config.seed, workers=run.config.workers,
        )  # fmt: skip
        draw_curves(log, folder / "curves.png")
    _save_encoder(model, folder / "encoder.safetensors")


def _find_lines(run: Run, model: RaliModel) -> dict[str, tuple[float, float]]:
    """The line of each set's scores; that of a mapped set by what the encoder says before it is tuned."""
    lines = {data.name: (1.0, 0.0) for data in run.data}
    mapped = [data for data in run.data if data.scores == "mapped"]
    if mapped:
        parts = [run.embed_training(model, data, MAPPING_IMAGES) for data in run.data if data.scores == "absolute"]
        embeddings, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        for data in mapped:
            others = run.embed_training(model, data, MAPPING_IMAGES)
            lines[data.name] = find_line(embeddings, scores, *others, name=data.name)
    return lines


def _groups(rows: Sequence[LabelledImage]) -> NDArray[np.str_] | None:
    groups = [row.group for row in rows]
    return np.array(groups, dtype=np.str_) if groups and None not in groups else None


def _save_encoder(model: RaliModel, path: Path) -> None:
    """In 16 bits, as in the model file: the head is fitted to exactly the encoder that ships."""
    save_file({name: tensor.half().cpu().contiguous() for name, tensor in model.encoder.state_dict().items()}, path)


def compress(run: Run) -> None:
    """Stage 4. Reads `tune/encoder.safetensors` and images of each set; writes `head.safetensors`, not fitted yet."""
    model = run.model(run.path("tune", "encoder.safetensors"))
    embeddings, scores, sets = _absolute(run, model)
    others = [run.embed_training(model, data)[0] for data in run.data if data.scores in ("correlation", "none")]
    head = compress_embeddings(
        embeddings, scores, config=run.config.compress, seed=run.config.seed, unscored=others, sets=sets
    )
    logger.info("compress: %d dimensions, %d prototypes", len(head.components), len(head.prototypes))
    save_file(head.state_dict(), run.path("compress", "head.safetensors"))


def _absolute(run: Run, model: RaliModel) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.intp]]:
    """Embeddings and scores of all images on the model's scale, and 0 for those on it, 1 for those mapped onto it."""
    absolute = [run.embed_training(model, data) for data in run.data if data.scores == "absolute"]
    if run.config.distortions.blank:
        blank = run.blank_tokens()
        embeddings = run.embeddings(model, "blank", blank, f"blank-{len(blank)}").numpy()
        absolute.append((embeddings, np.zeros(len(blank))))
    return join_sets(
        absolute, {data.name: run.embed_training(model, data) for data in run.data if data.scores == "mapped"}
    )


def fit(run: Run) -> None:
    """Stage 5. Reads `compress/head.safetensors` and all scored sets; writes the model's head, with the domains that it
    can be told, and its probes."""
    model = run.model(run.path("tune", "encoder.safetensors"))
    embeddings, scores, _ = _absolute(run, model)
    correlation = [run.embed_training(model, data) for data in run.data if data.scores == "correlation"]
    head = load_head(run.path("compress", "head.safetensors"))
    fit_head(
        head, (embeddings, scores), correlation, _triplets(run, model), _copies(run, model), config=run.config.fit,
        seed=run.config.seed,
    )  # fmt: skip
    save_probes(run.path("fit", "attributes.safetensors"), *fit_attributes(run, model))
    kinds = {name: run.embed_training(model, data)[0] for name, data in run.domains.items()}
    save_file(head.state_dict(), run.path("fit", "head.safetensors"), metadata=domains_metadata(head, kinds))


def _triplets(run: Run, model: RaliModel) -> TripletEmbeddings | None:
    settings = run.config.fit
    count = min(settings.triplets, len(run.triplets))
    if not count or not settings.ranking_weight:
        return None
    tokens = run.triplet_tokens().array[:count]
    embeddings = run.embed_groups(model, TRIPLETS, tokens, f"{run.triplets_digest}-{count}")
    return TripletEmbeddings(run.triplets[:count], embeddings)


def _copies(run: Run, model: RaliModel) -> Tensor | None:
    if not run.config.distortions.copies or not run.config.fit.consistency_weight:
        return None
    return run.embed_groups(model, "copies", run.copy_tokens().array, run.copies_key)


# --------------------------------------------------------------------------------------------------- running the stages

_WORK: dict[StageName, Callable[[Run], None]] = {
    "describe": describe, "align": align, "tune": tune, "compress": compress, "fit": fit,
}  # fmt: skip
_OUTPUTS: dict[StageName, tuple[str, ...]] = {
    "align": ("encoder.safetensors",), "tune": ("encoder.safetensors",), "compress": ("head.safetensors",),
    "fit": ("head.safetensors", "attributes.safetensors"),
}  # fmt: skip


def _inputs(run: Run, stage: StageName) -> dict[str, Any]:
    """Everything that a stage's outputs depend on, as plain JSON types; earlier stages are finished."""
    config = run.config
    inputs: dict[str, Any] = {"seed": config.seed, "data": {data.name: data.digest for data in run.data}}
    if stage != "describe":
        inputs["backbone"] = {**run.backbone.source, **to_json(replace(config.backbone, file=""))}
        inputs["roles"] = {data.name: data.scores for data in config.data}
    inputs["distortions"] = [run.triplets_digest]
    if stage not in ("describe", "align"):
        inputs["distortions"] += [config.distortions.blank, run.copies_key]
    settings = to_json(getattr(config, stage))
    for key in LOG_SETTINGS:
        settings.pop(key, None)
    inputs["settings"] = settings
    if stage == "fit" and run.domains:
        inputs["domains"] = list(run.domains)
    if stage == "describe":
        inputs["told"] = [data.scores_in_text for data in config.data]
        given = {data.name: hash_file(data.descriptions) for data in config.data if data.descriptions is not None}
        prompt = config.describe.prompt_file
        inputs |= {"descriptions": given, "prompt": hash_file(prompt) if prompt else None}
    before: dict[StageName, tuple[StageName, ...]] = {
        "describe": (), "align": ("describe",) if config.align.steps else (), "tune": ("align",), "compress": ("tune",),
        "fit": ("tune", "compress"),
    }  # fmt: skip
    inputs["made by"] = {name: read_record(run, name).get("outputs", {}) for name in before[stage]}
    return json.loads(json.dumps(inputs))  # type: ignore[no-any-return]


def read_record(run: Run, stage: StageName) -> dict[str, Any]:
    """The record `stage.json` of a stage: inputs, and once finished outputs, seconds and commit; empty without one."""
    path = run.path(stage, "stage.json")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record


def _hash_outputs(run: Run, stage: StageName) -> dict[str, str]:
    folder = run.path(stage, "")
    names = sorted(folder.glob("*.jsonl")) if stage == "describe" else [folder / name for name in _OUTPUTS[stage]]
    return {path.name: hash_file(path) for path in names if path.is_file() and "failures" not in path.name}


def is_finished(run: Run, stage: StageName) -> bool:
    """Whether a stage's outputs exist, unchanged, and were made from the current inputs."""
    record = read_record(run, stage)
    outputs = record.get("outputs")
    return bool(outputs) and record["inputs"] == _inputs(run, stage) and _hash_outputs(run, stage) == outputs


def run_stage(run: Run, stage: StageName) -> None:
    """Run a stage unless it is finished; a stopped one resumes, one whose inputs changed is re-run.

    Raises:
        FileExistsError: The stage's folder holds files that no stage made.
    """
    if is_finished(run, stage):
        logger.info("%s: already finished", stage)
        return
    folder, record, inputs = run.path(stage, ""), read_record(run, stage), _inputs(run, stage)
    if record and (record["inputs"] != inputs or "outputs" in record):
        changed = [name for name in inputs if record["inputs"].get(name) != inputs[name]]
        logger.info("%s: re-running: inputs changed (%s)", stage, ", ".join(changed) or "its own files")
        shutil.rmtree(folder)
    elif not record and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files that no stage made: use another work_dir")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "stage.json", {"inputs": inputs})
    start = time.monotonic()
    _WORK[stage](run)
    seconds = round(time.monotonic() - start, 1)
    made = {"inputs": inputs, "outputs": _hash_outputs(run, stage), "seconds": seconds, "git_commit": git_commit()}
    _write_json(folder / "stage.json", made)
    logger.info("%s: finished in %.0f s", stage, seconds)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def train(config: TrainConfig, *, stages: Sequence[str] | None = None, limit: int | None = None) -> Path | None:
    """Run all stages, or some, and write the model file when all are finished.

    Args:
        config: From `read_config`.
        stages: Names of the stages to run; those before them must be finished. By default all.
        limit: See `Run`.

    Returns:
        The model file; None while stages are missing.

    Raises:
        FileNotFoundError: Labels, images or backbone are missing.
        ValueError: They do not fit, a stage is unknown, or one before a wanted one is not finished.
    """
    unknown = [name for name in stages or () if name not in STAGES]
    if unknown:
        raise ValueError(f"there is no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    run = Run(config, limit=limit)
    logger.info("computing on %s", run.device)  # a missing device is found now
    run.frozen  # noqa: B018 - and so is a backbone that cannot be trained
    needed = [stage for stage in STAGES if stage != "describe" or config.align.steps]  # only this stage reads texts
    wanted = [stage for stage in needed if stages is None or stage in stages]
    for stage in needed:
        if stage in wanted:
            run_stage(run, stage)
        elif any(needed.index(later) > needed.index(stage) for later in wanted) and not is_finished(run, stage):
            raise ValueError(f"stage {wanted[-1]} needs stage {stage}, which is not finished: run that first")
    if not all(is_finished(run, stage) for stage in needed):
        return None
    save(run, {stage: read_record(run, stage) for stage in needed})
    return run.config.output
