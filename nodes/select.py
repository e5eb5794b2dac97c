"""RALI Best of N and RALI Filter: some of the images, with their attachments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..rali_core.combine import combine_scores
from ..rali_core.scales import Scale
from ._attachments import Attachments, block_output
from ._convert import check_numbers, join_images, split_images
from ._inputs import (
    KEEPS_ITS_PANEL,
    attachment_inputs,
    attachment_outputs,
    coverage_input,
    images_input,
    latent_mask_seed_inputs,
    latent_mask_seed_outputs,
    model_input,
    scale_inputs,
    scale_of,
    scores_input,
    threshold_input,
)
from ._panel import Note
from ._scoring import (
    Scores,
    block_without_images,
    check_threshold,
    indexes_text,
    judge_pixels,
    scalar,
    score_images,
    score_panel,
)

ORDERS = ["best first", "as they came", "worst first"]


class RaliBestOfN(io.ComfyNode):
    """Keeps the best k images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_BestOfN",
            display_name="RALI Best of N",
            category="RALI",
            description=(
                "Keeps the best k of a batch or list of images, with their latents, masks and seeds. "
                "Images of one size come out as one batch, of different sizes as a list."
            ),
            search_aliases=["best of n", "top k", "pick best", "auto select", "rank images", "择优", "选优", "ベスト"],
            is_input_list=True,
            **KEEPS_ITS_PANEL,
            inputs=[
                images_input(),
                io.Int.Input(
                    "k",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="How many of the best images to output; all of them if there are fewer.",
                ),
                io.Combo.Input(
                    "order",
                    options=ORDERS,
                    default=ORDERS[0],
                    tooltip="Order of the output: best first, input order, or worst first (keeps the k worst).",
                ),
                model_input(),
                *latent_mask_seed_inputs(),
                scores_input("Another scorer's scores, one per image; see scores_weight and scores_direction."),
                io.Float.Input(
                    "scores_weight",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip=(
                        "Share of the connected scores in the ranking: 1 ranks by them alone, 0 by RALI alone, "
                        "between them by the weighted mean."
                    ),
                ),
                coverage_input(),
                *scale_inputs(),
                *attachment_inputs(),
            ],
            outputs=[
                io.Image.Output("best_images", is_output_list=True, tooltip="The chosen images."),
                io.Float.Output("scores", is_output_list=True, tooltip="The chosen images' scores."),
                io.String.Output("indexes", tooltip='Which ones they are, counted from 0: "5,2".'),
                *latent_mask_seed_outputs("chosen"),
                *attachment_outputs("chosen"),
                io.Int.Output("index_list", is_output_list=True, tooltip="The same as indexes, as a list of numbers."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        k: list[int],
        order: list[str],
        coverage: list[str],
        model: list[Any] | None = None,
        scores: list[Any] | None = None,
        scores_weight: list[float] | None = None,
        scores_direction: list[str] | None = None,
        scores_low: list[float] | None = None,
        scores_high: list[float] | None = None,
        **attached: Any,
    ) -> io.NodeOutput:
        single = split_images(images)
        if not single:
            return block_without_images(cls)
        attachments = Attachments.split(len(single), **attached)
        scale = scale_of(scores_direction, scores_low, scores_high)
        wired = check_numbers(scores, len(single), "scores")
        scored = _mix(single, wired, scalar(scores_weight, 1.0), scale, scalar(model), scalar(coverage))
        chosen = _choose(scored, scalar(k), scalar(order))
        return io.NodeOutput(
            join_images([single[index] for index in chosen]),
            [scored.values[index] for index in chosen],
            indexes_text(chosen),
            *attachments.outputs(chosen),
            chosen,
            ui=score_panel(
                scored, chosen=chosen, note=Note.of("kept", count=len(chosen), of=len(single)), images=single
            ),
        )


def _mix(
    images: list[Tensor], wired: list[float] | None, weight: float, scale: Scale, model: Any, coverage: str
) -> Scores:
    """RALI's scores, the wired ones, or their weighted mean, for which the wired ones are scaled to 0..1."""
    if wired and weight >= 1.0:
        return judge_pixels(images, wired, scale)
    scored = score_images(images, model, coverage)
    if not wired or weight <= 0.0:
        return scored
    unit = judge_pixels(images, scale.to_unit(wired)).values
    return replace(scored, values=combine_scores([scored.values, unit], weights=[1.0 - weight, weight]).tolist())


def _choose(scored: Scores, k: int, order: str) -> list[int]:
    ranking = scored.ranking_of_scored()
    if not ranking:
        raise ValueError(f"scores: none of the images has a score: there is no best one ({scored.remarks()})")
    chosen = (ranking[::-1] if order == "worst first" else ranking)[:k]
    return sorted(chosen) if order == "as they came" else chosen


class RaliFilter(io.ComfyNode):
    """Splits images by their scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_Filter",
            display_name="RALI Filter",
            category="RALI",
            description=(
                "Splits images into those that reach the threshold and those that do not. Nodes connected to an empty "
                "side are skipped; there is never a black image instead."
            ),
            search_aliases=[
                "filter images",
                "quality filter",
                "reject bad images",
                "remove blurry",
                "cull",
                "过滤图像",
                "画像フィルター",
            ],
            is_input_list=True,
            **KEEPS_ITS_PANEL,
            inputs=[
                images_input(),
                threshold_input(
                    "Images with at least this score pass; of connected scores in their own scale. Changing this does "
                    "not re-run scoring.",
                    any_scale=True,
                ),
                model_input(),
                *latent_mask_seed_inputs(),
                scores_input("Another scorer's scores, one per image; then nothing is scored here."),
                coverage_input(),
                *scale_inputs(),
                *attachment_inputs(),
            ],
            outputs=[
                io.Image.Output("passed_images", is_output_list=True, tooltip="Images that reach the threshold."),
                io.Image.Output("rejected_images", is_output_list=True, tooltip="The others."),
                io.Int.Output("passed_count", tooltip="How many passed."),
                io.Boolean.Output("all_passed", tooltip="Whether all passed."),
                io.Float.Output("scores", is_output_list=True, tooltip="All the scores, in the order of the input."),
                io.Float.Output("passed_scores", is_output_list=True, tooltip="The scores of the images that passed."),
                io.String.Output("indexes", tooltip="Which images passed, counted from 0; empty for none."),
                *latent_mask_seed_outputs("passed"),
                *attachment_outputs("passed"),
                io.Int.Output("index_list", is_output_list=True, tooltip="The same as indexes, as a list of numbers."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        threshold: list[float],
        coverage: list[str],
        model: list[Any] | None = None,
        scores: list[Any] | None = None,
        scores_direction: list[str] | None = None,
        scores_low: list[float] | None = None,
        scores_high: list[float] | None = None,
        **attached: Any,
    ) -> io.NodeOutput:
        single, limit = split_images(images), scalar(threshold)
        if not single:
            return block_without_images(cls)
        attachments = Attachments.split(len(single), **attached)
        if wired := check_numbers(scores, len(single), "scores"):
            scored = judge_pixels(single, wired, scale_of(scores_direction, scores_low, scores_high))
        else:
            check_threshold(limit)
            scored = score_images(single, scalar(model), scalar(coverage))
        passed = scored.passing(limit)
        inside = [index in set(passed) for index in range(len(single))]
        rejected = [index for index, is_inside in enumerate(inside) if not is_inside]
        values = [scored.values[index] for index in passed] or block_output()
        note = Note.of("passed", count=len(passed), of=len(single))
        return io.NodeOutput(
            _batch_of(single, passed), _batch_of(single, rejected), len(passed), not rejected, scored.values, values,
            indexes_text(passed), *attachments.outputs(passed), passed or block_output(),
            ui=score_panel(scored, threshold=limit, passed=inside, note=note, images=single),
        )  # fmt: skip


def _batch_of(images: list[Tensor], indexes: list[int]) -> Any:
    """The images with these 0-based indexes; without any, a blocked output."""
    return join_images([images[index] for index in indexes]) if indexes else block_output()
