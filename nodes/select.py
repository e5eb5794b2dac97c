"""RALI Best of N and RALI Filter: some of the images, and what belongs to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..rali_core.combine import combine_scores
from ..rali_core.selection import at_least, rank
from ._convert import check_numbers, join_images, split_images
from ._followers import Followers, nothing
from ._inputs import (
    KEEPS_ITS_PANEL,
    coverage_input,
    follower_inputs,
    follower_outputs,
    images_input,
    model_input,
    scores_input,
    threshold_input,
)
from ._panel import Note
from ._scoring import block_without_images, first, indexes_text, judge_pixels, rank_with_content, score_images, show

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
                *follower_inputs(),
                scores_input("Scores from another node, one per image, higher is better; see scores_weight."),
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
            ],
            outputs=[
                io.Image.Output("best_images", is_output_list=True, tooltip="The chosen images."),
                io.Float.Output("scores", is_output_list=True, tooltip="The chosen images' scores."),
                io.String.Output("indexes", tooltip='Which ones they are, counted from 0: "5,2".'),
                *follower_outputs("chosen"),
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
        latents: list[Any] | None = None,
        masks: list[Tensor] | None = None,
        seeds: list[int] | None = None,
        scores: list[float] | None = None,
        scores_weight: list[float] | None = None,
    ) -> io.NodeOutput:
        single = split_images(images)
        if not single:
            return block_without_images(cls)
        followers = Followers.split(len(single), latents, masks, seeds)
        others = check_numbers(scores, len(single), "scores")
        weight = first(scores_weight, 1.0) if others else 0.0
        if others is None or weight < 1.0:
            scored = score_images(single, first(model), first(coverage))
        if others is not None:
            judged = judge_pixels(single, others)
            if weight < 1.0:
                values = combine_scores([scored.values, judged.values], weights=[1.0 - weight, weight]).tolist()
                scored = replace(scored, values=values)
            else:
                scored = judged
        values = scored.values
        ranking = rank_with_content(values, scored.blank())  # what has no score is never chosen
        if not ranking:
            raise ValueError(f"scores: none of the images has a score: there is no best one ({scored.remarks()})")
        chosen = (ranking[::-1] if first(order) == "worst first" else ranking)[: first(k)]
        chosen = sorted(chosen) if first(order) == "as they came" else chosen
        return io.NodeOutput(
            join_images([single[index] for index in chosen]),
            [values[index] for index in chosen],
            indexes_text(chosen),
            *followers.outputs(chosen),
            ui=show(scored, chosen=chosen, note=Note.of("kept", count=len(chosen), of=len(single)), images=single),
        )


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
                threshold_input("Images with at least this score pass. Changing this does not re-run scoring."),
                model_input(),
                *follower_inputs(),
                scores_input("Scores from another node, one per image; nothing is scored here then."),
                coverage_input(),
            ],
            outputs=[
                io.Image.Output("passed_images", is_output_list=True, tooltip="Images that reach the threshold."),
                io.Image.Output("rejected_images", is_output_list=True, tooltip="The others."),
                io.Int.Output("passed_count", tooltip="How many passed."),
                io.Boolean.Output("all_passed", tooltip="Whether all passed."),
                io.Float.Output("scores", is_output_list=True, tooltip="All the scores, in the order of the input."),
                io.Float.Output("passed_scores", is_output_list=True, tooltip="The scores of the images that passed."),
                io.String.Output("indexes", tooltip="Which images passed, counted from 0; empty for none."),
                *follower_outputs("passed"),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        threshold: list[float],
        coverage: list[str],
        model: list[Any] | None = None,
        latents: list[Any] | None = None,
        masks: list[Tensor] | None = None,
        seeds: list[int] | None = None,
        scores: list[float] | None = None,
    ) -> io.NodeOutput:
        single = split_images(images)
        if not single:
            return block_without_images(cls)
        followers = Followers.split(len(single), latents, masks, seeds)
        others = check_numbers(scores, len(single), "scores")
        scored = judge_pixels(single, others) if others else score_images(single, first(model), first(coverage))
        values, blank = scored.values, scored.blank()
        passed = at_least(values, first(threshold))
        # An image without content passes only where there is no other.
        if not all(blank[index] for index in rank(values)):
            passed = [index for index in passed if not blank[index]]
        rejected = [index for index in range(len(single)) if index not in set(passed)]
        return io.NodeOutput(
            join_images([single[index] for index in passed]) if passed else nothing(),
            join_images([single[index] for index in rejected]) if rejected else nothing(),
            len(passed),
            not rejected,
            values,
            [values[index] for index in passed] if passed else nothing(),
            indexes_text(passed),
            *followers.outputs(passed),
            ui=show(
                scored,
                threshold=first(threshold),
                passed=[index in set(passed) for index in range(len(single))],
                note=Note.of("passed", count=len(passed), of=len(single)),
                images=single,
            ),
        )
