"""Score IMAGEs: ComfyUI's memory, progress and interrupt around one call into the core; scores cached by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any
from uuid import uuid4

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..rali_core.calibration import Calibration
from ..rali_core.combine import Aggregation
from ..rali_core.content import NO_CONTENT, has_content, is_no_content
from ..rali_core.images import ImageError, to_pixels
from ..rali_core.scales import Scale
from ..rali_core.score_cache import content_keys
from ..rali_core.selection import rank
from ._convert import to_core
from ._models import ModelHandle, get_model, load_on_device
from ._panel import SHOWN, Note, current_prompt, note_to_json, save_thumbnails

AGGREGATIONS: list[Aggregation] = ["mean", "median", "minimum", "maximum"]
COVERAGES = ["model's own", "center", "tiles", "full"]
UNIT = Scale()
"""RALI's own."""


@dataclass(frozen=True)
class Scores:
    """Scores of N images in input order.

    Attributes:
        values: N scores; NaN for an image that cannot be scored.
        reasons: For each image None, `NO_CONTENT`, or why it has no score.
        calibration: The model's bands and percentiles, if it has them.
        scale: The scale of the numbers, if they come from another scorer.
        words: For each image what is wrong with it, most severe first; empty for a model that does not tell.
    """

    values: list[float]
    reasons: list[str | None]
    calibration: Calibration | None = None
    scale: Scale = UNIT
    words: tuple[tuple[str, ...], ...] = ()

    def blank(self) -> list[bool]:
        """Which of the images have no content."""
        return [reason == NO_CONTENT for reason in self.reasons]

    def ranking(self) -> list[int]:
        """0-based indexes, best first: images without content after all others, images without a score last."""
        return [*self.ranking_of_scored(), *(i for i, x in enumerate(self.values) if isnan(x))]

    def ranking_of_scored(self) -> list[int]:
        """As `ranking`, without the images that have no score."""
        return rank_with_content(self.scale.upwards(self.values), self.blank())

    def aggregate(self, how: Aggregation) -> float:
        """One number for all images; an image without a score counts as the worst one (0 for RALI)."""
        return self.scale.aggregate(self.values, how)

    def passing(self, threshold: float) -> list[int]:
        """Indexes of the images that reach a threshold; images without content only if there is no other."""
        blank = self.blank()
        only_blank = all(blank[index] for index, value in enumerate(self.values) if not isnan(value))
        return [
            index
            for index, value in enumerate(self.values)
            if self.scale.reaches(value, threshold) and (only_blank or not blank[index])
        ]

    def bands(self) -> list[str]:
        """N names of bands, `NO_CONTENT` for a blank image; empty texts without a score or a calibration."""
        return [
            reason
            if reason == NO_CONTENT
            else self.calibration.bands([value])[0]
            if self.calibration and not isnan(value)
            else ""
            for value, reason in zip(self.values, self.reasons, strict=True)
        ]

    def report(self) -> str:
        """One line per image, best first."""
        calibration, bands, lines = self.calibration or Calibration(), self.bands(), []
        for place, index in enumerate(self.ranking(), start=1):
            value, reason = self.values[index], self.reasons[index]
            if isnan(value):
                lines.append(f"image {index}: no score: {reason}" if reason else f"image {index}: no score")
                continue
            line = f"{place}. image {index}: {value:.4f} {bands[index]}".rstrip()
            words = ", ".join(self.words[index]) if self.words else ""
            compared = "" if reason == NO_CONTENT else calibration.describe(value)
            line += f": {words}" * bool(words)
            lines.append(f"{line}{';' if words else ','} {compared}" if compared else line)
        if calibration.populations:
            lines.append(f"Percentages: compared with {calibration.reference}")
        return "\n".join(lines)

    def notes(self) -> list[Note]:
        """Notes on images without content or score; empty if there are none."""
        blank = [index for index, at in enumerate(self.blank()) if at]
        bad = [index for index, value in enumerate(self.values) if isnan(value)]
        notes = [Note.of("no content", images=_join(blank))] if blank else []
        return [*notes, Note("no score", {"images": _join(bad)}, self.reasons[bad[0]])] if bad else notes

    def remarks(self) -> str:
        """`notes` as one line."""
        return "; ".join(str(note) for note in self.notes())

    def percentiles(self, values: Sequence[float] | None = None) -> dict[str, list[float | None]]:
        """Population name to percentages of its reference images that score lower; None without a score.

        Args:
            values: Scores; by default the images'.
        """
        calibration = self.calibration or Calibration()
        shares = {
            name: calibration.percentiles(self.values if values is None else values, name).tolist()
            for name in calibration.population_names
        }
        return {name: [_number(share, 1) for share in each] for name, each in shares.items()}


def rank_with_content(values: Sequence[float], blank: Sequence[bool]) -> list[int]:
    """Indexes from the best to the worst; images without content come after all others, NaN is left out."""
    return sorted(rank(values), key=lambda index: blank[index])


def judge_pixels(images: list[Tensor], values: list[float], scale: Scale = UNIT) -> Scores:
    """Scores from another scorer, corrected for images that are blank or unusable by their pixels.

    Other scorers do not check for content, and an image that holds NaN is never a good one.
    """
    reasons, kept = [], []
    for image, value in zip(images, values, strict=True):
        reason = None
        try:
            reason = None if has_content(to_pixels(to_core(image))) else NO_CONTENT
        except ImageError as error:
            if not torch.isfinite(image).all():  # another range is up to the other scorer
                reason, value = str(error), nan
        reasons.append(reason)
        kept.append(value)
    return Scores(kept, reasons, scale=scale)


def check_threshold(threshold: float) -> float:
    """Check a threshold for RALI's own scores.

    Raises:
        ValueError: It is a threshold for another scorer.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(
            f"threshold: RALI's scores lie between 0 and 1, got {threshold:g}; connect the scores of the scorer that "
            "it is meant for"
        )
    return threshold


def progress_reporter(total: int) -> Any:
    """A callback for the core: moves the node's progress bar, and raises if the user pressed interrupt."""
    import comfy.model_management as management
    from comfy.utils import ProgressBar

    bar = ProgressBar(total)

    def report(done: int, _total: int | None) -> bool:
        bar.update_absolute(done)
        management.throw_exception_if_processing_interrupted()
        return True

    return report


def chosen_coverage(widget: str) -> Any:
    """A coverage widget's value for the core: None for the model's own."""
    return None if widget == COVERAGES[0] else widget


def score_images(images: list[Tensor], model: ModelHandle | None = None, coverage: str = COVERAGES[0]) -> Scores:
    """Score single images (1, H, W, C) of any sizes. What was scored before an interrupt or an error stays cached.

    Returns:
        Scores; an image that cannot be scored has NaN and a reason.

    Raises:
        ImageError: None of the images can be scored; the message names the first.
        FileNotFoundError, CheckpointError: `model` is None and the bundled one cannot be used.
    """
    scores = score_what_can_be(images, model, coverage)
    if images and all(isnan(value) for value in scores.values):
        count = len(images)
        which = "image 0" if count == 1 else f"images 0 to {count - 1}"
        raise ImageError(f"{which} (of {count}, counted from 0) cannot be scored: {scores.reasons[0]}")
    return scores


def score_what_can_be(images: list[Tensor], model: ModelHandle | None = None, coverage: str = COVERAGES[0]) -> Scores:
    """As `score_images`, but without an error if none of the images can be scored."""
    handle = model or get_model()
    scorer, chosen = handle.scorer, chosen_coverage(coverage)
    pixels = [to_core(image) for image in images]
    digests, told = content_keys(pixels), scorer.model.probes is not None
    known = {key: scorer.find_cached(scorer.cache_keys(key, chosen, attributes=told)) for key in dict.fromkeys(digests)}
    results = {key: found for key, found in known.items() if found is not None}
    unknown: dict[bytes, Tensor] = {}
    for key, image in zip(digests, pixels, strict=True):
        if key not in results:
            unknown.setdefault(key, image)
    errors: dict[bytes, str | None] = {}
    if unknown:
        load_on_device(handle)  # only if there is something to compute: it may unload other models
        # On a CPU image by image, so that an interrupt waits for one only. What was scored before it is in the cache.
        report, made = progress_reporter(len(unknown)), list(unknown.items())
        size = 1 if scorer.device.type == "cpu" else len(made)
        for start in range(0, len(made), size):
            part = made[start : start + size]
            result = scorer.score(
                [image for _, image in part],
                coverage=chosen,
                on_error="record",
                progress=lambda done, total, before=start: report(before + done, total),
                attributes=told,
            )
            attributes = result.attributes or [None] * len(part)
            for (key, _), score, error, each in zip(
                part, result.scores.tolist(), result.errors, attributes, strict=True
            ):
                results[key], errors[key] = (score, each), error
    values = [results[key][0] for key in digests]
    reasons = [NO_CONTENT if is_no_content(results[key][0]) else errors.get(key) for key in digests]
    words = tuple(each.words if (each := results[key][1]) else () for key in digests) if told else ()
    return Scores(values, reasons, scorer.info.calibration, words=words)


def score_panel(
    scores: Scores | None = None,
    *,
    threshold: float | None = None,
    passed: list[bool] | None = None,
    chosen: list[int] | None = None,
    note: Note | str = "",
    more: Sequence[Note] = (),
    headline: float | None = None,
    images: list[Tensor] | None = None,
) -> dict[str, Any]:
    """A node's result for the page's extension, which draws it, and for the prompt API's history.

    Args:
        scores: N scores; None for a node that shows only its note.
        threshold: Colours pass and fail, and is marked on the bars.
        passed: N times whether an image passed; by default those that reach the threshold.
        chosen: 0-based indexes that are marked, and listed first.
        note: A line above the bars; images without content or score are added to it.
        more: Further ones.
        headline: One number for all images, shown large with its band and percentiles.
        images: N images (1, H, W, C), for thumbnails; no thumbnails if their number differs.
    """
    scores = scores or Scores([], [])
    values = scores.values
    shown = images if images and len(images) == len(values) else []
    if passed is None and threshold is not None:
        passed = [scores.scale.reaches(value, threshold) for value in values]
    ranking = scores.ranking()
    order = sorted(ranking, key=lambda index: index not in (chosen or []))
    notes = [each for each in (note, *more, *scores.notes()) if each]
    one = replace(scores, values=[nan if headline is None else headline], reasons=[None])
    return {
        "rali": [
            {
                "id": uuid4().hex,
                "prompt": current_prompt(),
                "scores": [_number(value, 6) for value in values],
                "bands": scores.bands(),
                "percentiles": scores.percentiles(),
                "reasons": scores.reasons,
                "words": scores.words,
                "range": [scores.scale.low, scores.scale.high],
                "lower_is_better": scores.scale.lower_is_better,
                "threshold": threshold,
                "passed": passed,
                "chosen": chosen,
                "order": order,
                "indexes": indexes_text(ranking),
                "headline": {
                    "score": _number(one.values[0], 6),
                    "band": one.bands()[0],
                    "percentiles": {name: shares[0] for name, shares in one.percentiles().items()},
                },
                "note": "; ".join(str(each) for each in notes),
                "notes": [note_to_json(each) for each in notes],
                "report": scores.report() if values else "",
                "thumbnails": save_thumbnails([shown[index] for index in order[:SHOWN] if shown]),
            }
        ]
    }


def block_without_images(cls: type[Any]) -> io.NodeOutput:
    """The output of a node that got an empty batch or list: connected nodes are blocked, all others run."""
    blocked = [ExecutionBlocker(None)] * len(cls.RETURN_TYPES)
    return io.NodeOutput(*blocked, ui=score_panel(note=Note.of("no images")))


def scalar(values: list[Any] | None, default: Any = None) -> Any:
    """A widget's value in a node that takes lists; `default` if nothing is wired."""
    return values[0] if values else default


def indexes_text(indexes: list[int]) -> str:
    """0-based indexes as other packs write them: "2,0,1"."""
    return ",".join(str(index) for index in indexes)


def _number(value: float, digits: int) -> float | None:
    """Rounded; None for NaN, which JSON does not have."""
    return None if isnan(value) else round(value, digits)


def _join(indexes: list[int]) -> str:
    """A few of the indexes: "0, 3, 5 and 4 more"."""
    shown = ", ".join(str(index) for index in indexes[:4])
    return shown if len(indexes) <= 4 else f"{shown} and {len(indexes) - 4} more"
