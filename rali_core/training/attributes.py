"""Probes of image attributes: a logistic regression each, on embeddings of good images under known distortions.

The target of a probe is the distortion's level relative to the strongest one. Undistorted images, good labelled images
and all other distortions are its negatives, so that it detects its own kind of flaw and not low quality. Figures and
thresholds come from a cross-validation by source image. A probe that does not reach `MIN_AUC` there, on its own
distortions and on others of their kind that no probe is trained on, is left out.

Images are distorted in several shapes and sizes and then resized to the encoder's square, as any image is. Distorted as
squares of that size alone, with 30 images and no pairs, the probes found 40 % of the noise and no checkerboard in
30 images of which 20 were no squares, and both flaws of one image in 11 %; now 88, 75 and 73 %.

Embeddings are whitened first with their covariance within the kinds of distortion, as in linear discriminant analysis,
because most of their variance is content and overall quality. Without it, on a tuned encoder and 40 images, the mean
AUC was 0.80 instead of 0.97, and 3 attributes reached 0.9 instead of 16.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..attributes import Attribute, AttributeProbes, from_metadata, to_metadata
from ..model import RaliModel
from .attribute_distortions import distort_further
from .distortion_triplets import GOOD_SCORE, TripletRenderer
from .distortions import LEVELS
from .run import Run

logger = logging.getLogger("rali")

MIN_AUC = 0.9
FOLDS = 5
INVERSE_REGULARISATION = 0.01
"""C of the logistic regressions, on whitened embeddings."""
VISIBLE_LEVEL = 2
"""Figures are for distortions from this level on; level 1 is at the limit of visibility."""
FALSE_ALARMS, CONFUSED = 0.01, 0.05
"""At most this share of the held-out undistorted images, and of those with other distortions, reaches a threshold."""
MIN_THRESHOLD = 0.3
"""Between the severities of levels 1 and 2: what is hardly visible gets no word."""
SHAPES = ((1.0, 1.0), (1.5, 1.0), (0.9, 1.2), (2.0, 2.0))
"""Width and height at which images are distorted, in turn, as multiples of the encoder's size."""
GOOD_IMAGES = 1500
"""Good labelled images at most, drawn at random; the stage has their embeddings already."""


class Probed(NamedTuple):
    """The training data of an attribute.

    Attributes:
        word: The word for an image that has it.
        kinds: Distortions that it is trained on.
        unseen: Further distortions of its kind, which no probe is trained on: it must detect these as well.
        alike: Distortions that cause it as well, and so are not among its negatives.
    """

    word: str
    kinds: tuple[str, ...]
    unseen: tuple[str, ...]
    alike: tuple[str, ...] = ()


PROBED: dict[str, Probed] = {
    "blur": Probed(
        "blurred", ("blur", "motion_blur"), ("lens_blur", "low_resolution"), ("smear", "upscaler", "pixelate")
    ),
    "noise": Probed("noisy", ("noise", "poisson_noise"), ("chroma_noise", "impulse_noise", "speckle_noise")),
    "compression": Probed("blocky", ("jpeg", "webp"), ("jpeg2000",), ("pixelate",)),
    "upscaling": Probed("upscaled", ("pixelate", "upscaler"), ("low_resolution",), ("smear",)),
    "sharpening": Probed("oversharpened", ("oversharpen",), ("edge_filter", "ringing"), ("upscaler",)),
    "overexposure": Probed("overexposed", ("brighten", "gain_up"), ("exposure_up",)),
    "underexposure": Probed("underexposed", ("darken", "gain_down"), ("exposure_down",)),
    "low_contrast": Probed("low contrast", ("contrast_low",), ("haze",), ("brighten", "gain_down", "darken")),
    "high_contrast": Probed(
        "harsh contrast", ("contrast_high", "s_curve"), ("autocontrast",),
        ("banding", "darken", "gain_up", "oversharpen"),
    ),
    "desaturation": Probed(
        "pale colours", ("saturation_low", "hsv_low"), ("muted",), ("brighten", "gain_up", "contrast_low")
    ),
    "oversaturation": Probed(
        "oversaturated", ("saturation_high", "hsv_high"), ("vibrance",), ("contrast_high", "s_curve", "darken")
    ),
    "chromatic_aberration": Probed("colour fringes", ("colour_shift",), ("lateral_aberration",)),
    "posterisation": Probed("posterised", ("banding",), ("adaptive_palette", "dither"), ("contrast_high", "s_curve")),
    "checkerboard": Probed("checkerboard pattern", ("checkerboard",), ("checkerboard_of_three",)),
}  # fmt: skip
PAIRS: tuple[str, ...] = (
    "blur+jpeg", "blur+noise", "noise+jpeg", "motion_blur+noise", "darken+noise", "gain_down+poisson_noise",
    "upscaler+webp", "pixelate+jpeg", "saturation_high+jpeg", "oversharpen+jpeg", "blur+contrast_low",
    "brighten+saturation_low",
)  # fmt: skip
"""Two distortions in turn, which often come together and do not hide each other."""
KINDS: tuple[str, ...] = (*(kind for probed in PROBED.values() for kind in probed.kinds), "smear", "warp", *PAIRS)
"""What the probes are trained on. Smear and warp are negatives alone: probes of them failed on other means."""
UNSEEN: tuple[str, ...] = tuple(dict.fromkeys(kind for probed in PROBED.values() for kind in probed.unseen))


class DistortedImages(Sequence[NDArray[np.uint8]]):
    """Each image undistorted, then under each kind of distortion at one level; all levels are equally frequent.

    Args:
        read: Function from a number to that image, (S, S, 3) uint8; it is distorted in one of `SHAPES`.
        count: Number of images.
        kinds: Kinds of distortion.
    """

    def __init__(
        self, read: Callable[[int], NDArray[np.uint8]], count: int, kinds: Sequence[str] = KINDS + UNSEEN
    ) -> None:
        self.read, self.kinds = read, tuple(kinds)
        self.levels = np.array([
            [0, *((number + place) % LEVELS + 1 for place in range(len(kinds)))] for number in range(count)
        ])  # fmt: skip

    def __len__(self) -> int:
        return self.levels.size

    def __getitem__(self, index: Any) -> Any:
        number, place = divmod(index, self.levels.shape[1])
        image = Image.fromarray(self.read(number))
        if place:
            across, down = SHAPES[number % len(SHAPES)]
            shaped = image.resize((round(across * image.width), round(down * image.height)), Image.Resampling.BICUBIC)
            level = int(self.levels[number, place])
            shaped = distort_further(shaped, self.kinds[place - 1], level, seed=number)
            image = shaped.resize(image.size, Image.Resampling.BICUBIC)
        return np.asarray(image)


def fit_attributes(run: Run, model: RaliModel) -> tuple[AttributeProbes | None, dict[str, Any]]:
    """Fit probes for a model's encoder on the undistorted images of a training's triplets.

    Args:
        run: The training; `[fit] attribute_images` says how many images.
        model: Its encoder is used.

    Returns:
        The probes, None if there are too few images or none is good enough; and their figures, in JSON types.
    """
    count = min(run.config.fit.attribute_images, len(run.triplets))
    sources = [triplet.source for triplet in run.triplets[:count]]
    if len(set(sources)) < 2 * FOLDS:
        logger.info("attributes: left out, with %d images; at least %d are needed", len(set(sources)), 2 * FOLDS)
        return None, {}
    render = TripletRenderer(run.triplets, run.size)
    images = DistortedImages(lru_cache(maxsize=1)(lambda number: render(number)[0]), count)
    digest = repr((run.triplets_digest, count, KINDS, UNSEEN, SHAPES))
    embedded = run.embeddings(model, "attributes", images, digest)
    scored = [run.embed_training(model, data) for data in run.data if data.scores in ("absolute", "mapped")]
    good = np.concatenate([part[scores > GOOD_SCORE] for part, scores in scored])
    drawn = np.random.default_rng(run.config.seed).permutation(len(good))[:GOOD_IMAGES]
    return fit_probes(embedded, sources, images.levels, torch.from_numpy(good[drawn]))


def fit_probes(
    distorted: Tensor, sources: Sequence[str], levels: NDArray[np.int64], good: Tensor
) -> tuple[AttributeProbes | None, dict[str, Any]]:
    """Fit and measure a probe for each attribute.

    Args:
        distorted: (N * (1 + K), D) embeddings of `DistortedImages` of the K kinds in `KINDS` and `UNSEEN`.
        sources: N names: images of one name are held out together.
        levels: (N, 1 + K) levels, 0 for an undistorted image.
        good: (M, D) embeddings of further images without flaws.

    Returns:
        As `fit_attributes`.
    """
    from sklearn.model_selection import GroupKFold

    embeddings = torch.cat([distorted, good])
    kinds = np.array([*np.tile(["", *KINDS, *UNSEEN], len(sources)), *[""] * len(good)])
    level = np.concatenate([levels.ravel(), np.zeros(len(good), levels.dtype)])
    groups = [*np.repeat(np.array(sources), levels.shape[1]), *(f"good {number}" for number in range(len(good)))]
    trained = ~np.isin(kinds, UNSEEN)
    mean = embeddings[torch.from_numpy(trained)].double().mean(dim=0).numpy()
    values = embeddings.double().numpy() - mean
    folds = []
    for train, test in GroupKFold(FOLDS).split(values, groups=groups):
        train = train[trained[train]]
        folds.append((train, test, values @ _whitening(values[train], kinds[train])))
    whitening = _whitening(values[trained], kinds[trained])
    kept, weights, biases = [], [], []
    names = sorted({Path(source).name for source in sources})
    figures: dict[str, Any] = {"distorted": len(distorted), "good": len(good), "sources": names}
    figures |= {"auc": {}, "left_out": {}, "flagged": {}}
    for name, probed in PROBED.items():
        own = _any_of(kinds, probed.kinds)
        used = trained & (own | ~_any_of(kinds, probed.alike))
        severity = np.where(own, level / LEVELS, 0.0)
        held_out = np.zeros(len(values))
        for train, test, white in folds:
            rows = train[used[train]]
            held_out[test] = _fit(white[rows], severity[rows], level[rows]).predict_proba(white[test])[:, 1]
        negative = used & ~own
        aucs = [
            _auc(held_out[negative], held_out[_any_of(kinds, positive) & (level >= VISIBLE_LEVEL)])
            for positive in (probed.kinds, probed.unseen)
        ]
        logger.info("attributes: %s: AUC %.3f, other distortions of its kind %.3f", name, *aucs)
        if min(aucs) < MIN_AUC:
            figures["left_out"][name] = [round(auc, 4) for auc in aucs]
            continue
        figures["auc"][name] = [round(auc, 4) for auc in aucs]
        others = held_out[negative & (level > 0)]
        threshold = max(
            MIN_THRESHOLD, np.quantile(held_out[level == 0], 1 - FALSE_ALARMS), np.quantile(others, 1 - CONFUSED)
        )
        kept.append(Attribute(name, probed.word, round(min(float(threshold), 1.0), 4), round(min(aucs), 4)))
        figures["flagged"][name] = _flagged(held_out >= kept[-1].threshold, kinds, level)
        fitted = _fit(values[used] @ whitening, severity[used], level[used])
        weights.append(whitening @ fitted.coef_[0])
        biases.append(fitted.intercept_[0] - weights[-1] @ mean)
    if not kept:
        return None, figures
    probes = AttributeProbes(kept, embeddings.shape[1])
    state = {"weight": np.stack(weights), "bias": np.array(biases)}
    probes.load_state_dict({name: torch.from_numpy(value).float() for name, value in state.items()})
    return probes, figures


def _any_of(kinds: NDArray[np.str_], distortions: Sequence[str]) -> NDArray[np.bool_]:
    """Which kinds are one of these distortions, or a pair with one."""
    found = {kind for kind in np.unique(kinds) if set(kind.split("+")) & set(distortions)}
    return np.isin(kinds, list(found))


def _auc(negative: NDArray[np.float64], positive: NDArray[np.float64]) -> float:
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([0, 1], [len(negative), len(positive)])
    return float(roc_auc_score(labels, np.concatenate([negative, positive])))


def _flagged(reached: NDArray[np.bool_], kinds: NDArray[np.str_], level: NDArray[np.int64]) -> str:
    """The share of each distortion's images that get a word, most frequent first; under 1 % is left out."""
    rows = (level >= VISIBLE_LEVEL) | (level == 0)
    shares = [(float(reached[rows & (kinds == kind)].mean()), kind or "none") for kind in np.unique(kinds)]
    return ", ".join(f"{kind} {share:.2f}" for share, kind in sorted(shares, reverse=True) if share >= 0.01)


def _whitening(values: NDArray[np.float64], kinds: NDArray[np.str_]) -> NDArray[np.float64]:
    """(D, D) matrix; values times it have unit covariance within each kind, by the estimate of Ledoit and Wolf."""
    from sklearn.covariance import ledoit_wolf

    groups = [values[kinds == kind] for kind in np.unique(kinds)]
    variances, axes = np.linalg.eigh(ledoit_wolf(np.concatenate([each - each.mean(axis=0) for each in groups]))[0])
    whitening: NDArray[np.float64] = axes / np.sqrt(np.maximum(variances, 1e-12))
    return whitening


def _fit(values: NDArray[np.float64], severity: NDArray[np.float64], level: NDArray[np.int64]) -> Any:
    """A logistic regression on soft labels: a row of severity s counts as positive with weight s and as negative with
    weight 1 - s.

    The attribute's own rows, the undistorted images and all other distortions have the same weight in sum.
    """
    from sklearn.linear_model import LogisticRegression

    own, clean = severity > 0, level == 0
    weight = np.where(own, 1.0, np.where(clean, own.sum() / clean.sum(), own.sum() / max(1, (~own & ~clean).sum())))
    return LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000).fit(
        np.concatenate([values, values[own]]), np.repeat([0, 1], [len(values), own.sum()]),
        sample_weight=np.concatenate([weight * (1 - severity), severity[own]]),
    )  # fmt: skip


def save_probes(path: Path, probes: AttributeProbes | None, figures: dict[str, Any]) -> None:
    """Write a stage's probes and their figures; without probes the file holds none."""
    metadata = {"figures": json.dumps(figures)}
    if probes is not None:
        metadata["attributes"] = json.dumps(to_metadata(probes.attributes))
    save_file({} if probes is None else probes.state_dict(), path, metadata=metadata)


def load_probes(path: Path) -> tuple[AttributeProbes | None, dict[str, Any]]:
    """Read a file of `save_probes`."""
    with safe_open(path, framework="pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    probes = None
    if state:
        probes = AttributeProbes(from_metadata(json.loads(metadata["attributes"])), state["weight"].shape[1])
        probes.load_state_dict(state)
    return probes, json.loads(metadata["figures"])
