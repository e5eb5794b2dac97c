"""Going on from a model file: end-to-end tuning on labelled images and on ordered distortions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import load_model
from ..devices import AUTO, training_device
from ..files import hash_file
from ..model import RaliModel
from .backbones import load_backbone
from .config import CompressConfig, FitConfig, RactDataConfig
from .curves import draw_curves
from .data import scores_of
from .evaluate import Report
from .joint import JointSettings, OrderedPictures, UnlabelledPictures, fit_line, tune_jointly, with_image_size
from .ordered import PICTURE_SIZE, cache_groups, cache_pictures, cache_weak, plan_groups
from .pipeline import measure_and_save, read_configured, read_splits
from .refit import DomainPictures, refit_head
from .teachers import Teachers

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}


def adapt(
    model_file: str | Path,
    labels: str | Path,
    output: str | Path,
    *,
    work_dir: str | Path,
    pictures_dir: str | Path | None = None,
    pristine: list[str | Path] | None = None,
    groups: int = 2600,
    positions_from: str | Path | None = None,
    root: str | Path | None = None,
    score_range: tuple[float, float] = (0.0, 1.0),
    name: str | None = None,
    limit: int | None = None,
    validation_fraction: float = 0.1,
    settings: JointSettings | None = None,
    mix_with: str | Path | None = None,
    mix_share: float = 0.5,
    teachers: Sequence[str | Path] = (),
    teacher_share: float = 0.5,
    teacher_images: str | None = None,
    unlabelled: Sequence[str | Path] = (),
    unlabelled_teachers: Sequence[str | Path] = (),
    unlabelled_weight: float = 1.0,
    runs: int = 1,
    first_run: int = 0,
    refit: tuple[CompressConfig, FitConfig] | None = None,
    domains: Sequence[RactDataConfig] = (),
    domains_weight: float = 0.0,
    recalibrate: bool = False,
    measure_test: bool = True,
    workers: int = 1,
    device: str = AUTO,
    report: Report = print,
) -> dict[str, Any]:
    """Tune a model file end to end; goes on where an interrupted run in the same `work_dir` stopped.

    Args:
        model_file: RALI model file to start from.
        labels: CSV with the columns `image`, `mos` and optionally `split` and `near_dup_in_train`.
        output: Model file to write, `.safetensors`.
        work_dir: Folder for checkpoints, `log.jsonl` and the plots `curves.png`.
        pictures_dir: Folder for decoded pictures (0.6 MB each), by default `work_dir`; trainings with the same labels,
            split and groups can share one.
        pristine: Folders of undistorted pictures, searched with their subfolders, for ordered groups.
        groups: Number of ordered groups; 0 for none.
        positions_from: Pretrained tower (`backbones.load_backbone`) whose position embeddings are taken for another
            image size than the model's; without, the model's own are resampled.
        root: Folder of the images; by default that of `labels`.
        score_range: Worst and best score of the table's scale.
        name: The new model's name; by default the output file's.
        limit: Use only the first so many training rows.
        validation_fraction: Share of the training rows that is held out for validation and calibration; a smaller one
            holds out some of the same images.
        settings: How to tune. No steps leave the tower as it is, for what comes after them: mixing and a new head.
        mix_with: Model file of the same architecture, such as the one that was started from, whose weights are mixed
            into the tuned ones. What is between two models of one training often does better than either, most of all
            on other pictures than those of the training (WiSE-FT, Wortsman et al., CVPR 2022). May be changed when a
            finished run is repeated.
        mix_share: Share of that model's weights, in [0, 1].
        teachers: Model files, with timm vision transformers for towers as the model itself, or tables of scores, whose
            mean is mixed into the human scores of the training images, see `teachers.Teachers`. The models' scores are
            kept in `work_dir/teachers/`.
        teacher_share: Share of the teachers' scores, in [0, 1].
        teacher_images: Pattern of file names with `*` and `?`, in small or capital letters, such as `"ss02*"`: the
            teachers are asked about these images only, and all others keep their human scores. None means all.
        unlabelled: Folders of pictures without human scores, searched with their subfolders. They, and as many
            distorted pictures that are made of them (the weaker ones of ordered groups), are learnt as labelled images
            are, with the mean of the scores of `unlabelled_teachers` for human ones: so one model learns what several
            know (Hinton et al., arXiv 1503.02531), of pictures that the labelled set has not.
        unlabelled_teachers: Model files as `teachers`, no tables; needed with `unlabelled`.
        unlabelled_weight: How much each of these pictures counts in a new head's regression (`refit`) beside a labelled
            image; another weight than 1 needs one.
        runs: Trainings from the same start, each with the next seed, whose weights are averaged before that ("model
            soup", Wortsman et al., ICML 2022). All but the first leave their files in `work_dir/run-N/`. May be raised
            when a finished training is repeated: only the new runs are trained.
        first_run: The first run's number, which is added to the settings' seed for its random choices (the split and
            the groups stay): for a training that goes on from another on the same pictures.
        refit: Settings of stages 2 and 3, for a head that is made anew from the tuned tower; None keeps the tuned head.
            It learns what the tower learnt: with teachers, the scores with theirs mixed in. With `held_out_weight` it
            learns the validation images too, and the figures of these are marked as seen, here and in what goes on
            from that model.
        domains: Further data sets on scales of their own, as `[[ract.data]]`, for the new head: its PCA is made of
            the embeddings of their training images too. Their validation images are only reported on.
        domains_weight: Weight of 1 - PLCC within each of these sets while the new head is fitted; their scores enter
            in no other way, so their scales are never mixed.
        recalibrate: Fit slope and offset of the prototypes' scores to the validation images at the end. A model that
            saw fewer patches in training than it looks at scores all pictures a little too high or too low.
        measure_test: False leaves out the test images, for a model that another training goes on from.
        workers: Processes that decode and render; 0 does it in this one.
        device: Where the model is tuned, such as `"cpu"` or `"cuda:1"`; `"auto"` is a CUDA GPU where there is one.
        report: Called with lines of text.

    Returns:
        What the model file's `training` metadata holds.

    Raises:
        FileNotFoundError: A file or folder is missing.
        ValueError: The files do not fit, no image's name is like `teacher_images`, there are fewer than 20 training
            images, one of `unlabelled` and `unlabelled_teachers` lacks the other, there are `domains` or a weight of
            them but no `refit`, or there is no such device.
    """
    settings = settings or JointSettings()
    output, work_dir = Path(output), Path(work_dir)
    if output.suffix != ".safetensors":
        raise ValueError(f"a model file's name ends in .safetensors, got {output.name}")
    if not 0 <= mix_share <= 1:
        raise ValueError(f"mix_share must lie in [0, 1], got {mix_share}")
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    if bool(unlabelled) != bool(unlabelled_teachers):
        raise ValueError(
            "unlabelled pictures need unlabelled_teachers, the models that score them, and these need them"
        )
    if unlabelled_weight <= 0 or (unlabelled_weight != 1 and not (unlabelled and refit is not None)):
        raise ValueError(
            "unlabelled_weight must be positive, and any but 1 needs unlabelled pictures and a new head; got "
            f"{unlabelled_weight:g}"
        )
    if domains_weight < 0 or (refit is None and domains) or (domains_weight and not domains):
        raise ValueError(
            "domains, further data sets, are for a new head (refit), and domains_weight, at least 0, needs them; got "
            f"{len(domains)} sets and {domains_weight:g}"
        )
    computes_on = training_device(device)
    loaded = load_model(model_file)
    before = loaded.info.training
    seen = bool(before.get("figures", {}).get("validation", {}).get("seen"))  # what it goes on from has learnt them
    if refit is not None and refit[1].held_out_weight:
        seen = True
    if seen and recalibrate:
        raise ValueError("recalibrate fits to the validation images, which with held_out_weight the head has learnt")
    judges = Teachers(teachers, share=teacher_share, images=teacher_images)
    strangers = find_pictures(list(unlabelled))
    their_judges = Teachers(unlabelled_teachers)
    if their_judges.tables:
        raise ValueError("unlabelled_teachers must be model files: a table has no scores of distorted pictures")
    images_root = Path(root) if root is not None else Path(labels).parent
    positions = None
    if positions_from is not None:
        backbone = load_backbone(positions_from, image_size=settings.image_size)
        positions = backbone.state["trunk.pos_embed"]
    model = with_image_size(loaded.model, settings.image_size, positions, pattern=settings.patch_pattern)
    model = model.to(computes_on)
    other = None
    if mix_with is not None:  # one that cannot be mixed is found out now, not after the training
        other = load_model(mix_with).model
        resized = other.preprocess_config.image_size != settings.image_size
        other = with_image_size(
            other, settings.image_size, positions if resized else None, pattern=settings.patch_pattern
        )
        _check_alike(model, other)
    rows = read_splits(
        labels, root=root, score_range=score_range, limit=limit,
        validation_fraction=validation_fraction, seed=settings.seed,
    )  # fmt: skip
    training, validation, test = rows
    judges.check(training, root=images_root)
    pictures = find_pictures(pristine or [])
    work_dir.mkdir(parents=True, exist_ok=True)
    kept = Path(pictures_dir) if pictures_dir is not None else work_dir
    kept.mkdir(parents=True, exist_ok=True)
    planned = plan_groups(pictures, training, count=groups, seed=settings.seed)
    report(f"{len(training)} training, {len(validation)} validation, {len(test)} test images, {groups} ordered groups")
    size = max(PICTURE_SIZE, settings.image_size)
    suffix = ".npy" if size == PICTURE_SIZE else f"-{size}.npy"
    cache = partial(cache_pictures, size=size, workers=workers, report=report)
    rendered = cache_groups(planned, kept / f"groups{suffix}", size=size, workers=workers, report=report)
    ordered = OrderedPictures(planned, rendered)
    labelled, held_out = (
        cache([row.path for row in part], kept / f"{what}{suffix}")
        for what, part in (("training", training), ("validation", validation))
    )
    human = scores_of(validation)
    targets = judges.mix(training, labelled, root=images_root, folder=work_dir / "teachers", device=computes_on,
                         report=report)  # fmt: skip
    others: UnlabelledPictures | None = None
    if strangers:
        more = plan_groups(strangers, [], count=len(strangers), seed=settings.seed + 1)
        both = [
            (cache(strangers, kept / f"unlabelled{suffix}"), [str(path) for path in strangers]),
            (
                cache_weak(more, kept / f"unlabelled-distorted{suffix}", size=size, workers=workers, report=report),
                [f"{group.source} {group.distortion} {group.weak} {group.seed}" for group in more],
            ),
        ]
        judged = [
            their_judges.judge(pixels, names, folder=work_dir / "teachers" / what, device=computes_on, report=report)
            for what, (pixels, names) in zip(("unlabelled", "unlabelled-distorted"), both, strict=True)
        ]
        others = UnlabelledPictures([pixels for pixels, _ in both], np.concatenate(judged))
    further = [_load_domain(data, kept, suffix, cache, seed=settings.seed, report=report) for data in domains]
    start, logs = model, []
    for index in range(runs):
        folder = work_dir / f"run-{index}" if index else work_dir
        folder.mkdir(exist_ok=True)
        tuned = copy.deepcopy(start)
        log = tune_jointly(
            tuned,
            labelled,
            targets,
            ordered,
            unlabelled=others,
            validation=(held_out, human),
            settings=replace(settings, seed=settings.seed + first_run + index),
            checkpoint=folder / "joint.pt",
            report=report,
        )
        write_log(log, folder)
        logs.append(log)
        if index:
            mix(model, tuned, 1 / (index + 1))  # now the mean of all so far
        else:
            model = tuned
    if other is not None:
        mix(model, other, mix_share)
    if refit is not None:
        refit_head(
            model, labelled, targets, validation=(held_out, human), compressing=refit[0], fitting=refit[1],
            ordered=ordered, unlabelled=others, unlabelled_weight=unlabelled_weight,
            domains=further, domains_weight=domains_weight, seed=settings.seed, report=report,
        )  # fmt: skip
    line = fit_line(model, held_out, human) if recalibrate else None
    if line is not None:
        report(f"recalibrated: {line['slope']:.3f} x score {line['offset']:+.3f}")
    elif recalibrate:
        report("not recalibrated: the scores do not rise with the human ones of the validation images")
    learnt_too = {
        "pictures": 2 * len(strangers),
        "teachers": [*their_judges.models],
        **({"weight": unlabelled_weight} if refit is not None else {}),
    }
    learnt_domains = {
        "weight": domains_weight,
        "sets": {
            data.name: {"labels_sha256": hash_file(data.labels), "images": len(domain.scores)}
            for data, domain in zip(domains, further, strict=True)
        },
    }
    story = {
        "joint": {
            "settings": asdict(settings),
            "ordered_groups": groups,
            "pristine_pictures": len(pictures),
            "runs": runs,
            "log": [log[-1] for log in logs if log],
        },
        **({"mixed": {"sha256": hash_file(mix_with), "share": mix_share}} if mix_with is not None else {}),
        **({"teachers": judges.story()} if judges else {}),
        **({"unlabelled": learnt_too} if strangers else {}),
        **({"new head": {"compress": asdict(refit[0]), "fit": asdict(refit[1])}} if refit is not None else {}),
        **({"domains": learnt_domains} if domains else {}),
        **({"recalibrated": line} if line is not None else {}),
        "before": {"model": loaded.info.name, "sha256": hash_file(model_file), "training": before},
    }
    return measure_and_save(
        model, output,
        name=name or output.stem, licence=loaded.info.licence, source=loaded.info.source,
        labels=labels, rows=rows, story=story, measure_test=measure_test,
        validation_seen=seen, report=report,
    )  # fmt: skip


def _load_domain(
    data: RactDataConfig,
    folder: Path,
    suffix: str,
    cache: Callable[[list[Path], Path], NDArray[np.uint8]],
    *,
    seed: int,
    report: Report,
) -> DomainPictures:
    training, validation, _ = read_configured(data.name, data, seed=seed, report=report)
    pixels, held_out = (
        cache([row.path for row in part], folder / f"domain-{data.name}-{what}{suffix}")
        for what, part in (("training", training), ("validation", validation))
    )
    return DomainPictures(data.name, pixels, scores_of(training), held_out, scores_of(validation))


def _check_alike(model: RaliModel, other: RaliModel) -> None:
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (model, other)]
    if shapes[0] != shapes[1]:
        raise ValueError("only models of one architecture, with equally many prototypes, can be mixed")


def mix(model: RaliModel, other: RaliModel, share: float) -> None:
    """Move a model's weights towards another's, in place; 1 makes them the other's.

    Raises:
        ValueError: Their weights have other names or shapes.
    """
    _check_alike(model, other)
    mine, theirs = model.state_dict(), other.state_dict()
    model.load_state_dict(
        {name: tensor.float().lerp(theirs[name].to(tensor.device).float(), share) for name, tensor in mine.items()}
    )


def write_log(log: list[dict[str, float]], folder: Path) -> None:
    """Write what `tune_jointly` logged as `log.jsonl` and `curves.png`; nothing for a tuning of no steps."""
    if not log:
        return
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    terms = [name for name in log[-1] if name != "step"]
    draw_curves(log, folder / "curves.png", [("training loss", terms[:1]), ("on human scores", terms[1:3]),
                                            ("on ordered distortions", terms[3:])])  # fmt: skip


def find_pictures(folders: list[str | Path]) -> list[Path]:
    """All picture files in the folders and their subfolders, sorted.

    Raises:
        FileNotFoundError: A folder is missing or holds no picture.
    """
    found: list[Path] = []
    for folder in folders:
        inside = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        if not inside:
            raise FileNotFoundError(f"no pictures in {folder}")
        found += inside
    return found
