"""RALI Score."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ._convert import split_images
from ._inputs import coverage_input, images_input, model_input, threshold_input
from ._panel import Note
from ._scoring import AGGREGATIONS, block_without_images, indexes_text, scalar, score_images, score_panel


class RaliScore(io.ComfyNode):
    """Scores images and passes them on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_Score",
            display_name="RALI Score",
            category="RALI",
            description=(
                "Scores how good images look, from 0 (bad) to 1 (excellent): sharpness, noise, compression, exposure, "
                "colour. The score is absolute, the same alone or in a batch. It knows nothing about the prompt, "
                "anatomy or taste. The scores appear on the node."
            ),
            search_aliases=[
                *["image quality", "quality", "score", "rate", "rate image", "grade", "sharpness", "aesthetic", "IQA"],
                *[
                    "quality score",
                    "aesthetic score",
                    "MOS",
                    "scorer",
                    "画质",
                    "质量",
                    "评分",
                    "画質",
                    "品質",
                    "スコア",
                ],
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                images_input(),
                model_input(),
                io.Combo.Input(
                    "aggregation",
                    options=list(AGGREGATIONS),
                    default="mean",
                    tooltip=(
                        "How the images' scores are combined into the output score. An image that cannot be scored "
                        "counts as 0."
                    ),
                ),
                threshold_input(
                    "passed is true where the aggregated score is at least this. Changing this does not re-run scoring."
                ),
                coverage_input(),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The images, unchanged."),
                io.Float.Output("score", tooltip="One number for all the images, see aggregation."),
                io.Float.Output(
                    "scores",
                    is_output_list=True,
                    tooltip="One score per image; NaN for one that cannot be scored.",
                ),
                io.Boolean.Output("passed", tooltip="Whether score is at least threshold."),
                io.String.Output("indexes", tooltip='The images from best to worst, counted from 0: "2,0,1".'),
                io.String.Output("report", tooltip="A line per image, best first."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        aggregation: list[Any],
        threshold: list[float],
        coverage: list[str],
        model: list[Any] | None = None,
    ) -> io.NodeOutput:
        single = split_images(images)
        if not single:
            return block_without_images(cls)
        scores = score_images(single, scalar(model), scalar(coverage))
        how, limit = scalar(aggregation), float(scalar(threshold))
        score = scores.aggregate(how)
        note = Note.of("aggregate", how=how, score=score) if len(single) > 1 else ""
        panel = score_panel(scores, threshold=limit, note=note, headline=score, images=single)
        indexes = indexes_text(scores.ranking())
        return io.NodeOutput(images, score, scores.values, score >= limit, indexes, scores.report(), ui=panel)
