"""RALI Draw Score: the score written on the image."""

from __future__ import annotations

from math import isnan
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ._convert import check_numbers, from_pil, join_images, split_images, to_pil
from ._inputs import images_input, model_input, scores_input
from ._scoring import block_without_images, judge_pixels, scalar, score_panel, score_what_can_be

POSITIONS = ["below", "above", "over the bottom", "over the top"]


class RaliDrawScore(io.ComfyNode):
    """Writes scores on images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_DrawScore",
            display_name="RALI Draw Score",
            category="RALI",
            description="Writes each image's score and band on it, with a bar in the band's colour.",
            search_aliases=["banner", "caption", "annotate", "overlay text", "write score on image"],
            is_input_list=True,
            inputs=[
                images_input(),
                io.Combo.Input(
                    "position",
                    options=POSITIONS,
                    default=POSITIONS[0],
                    tooltip="On a strip below or above the image, which makes it higher, or over its pixels.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Of the strip in pixels, 12 or more; 0: a fifteenth of the image's shorter side.",
                ),
                scores_input("One score in 0..1 per image; if not connected, the images are scored here."),
                io.String.Input(
                    "labels", optional=True, force_input=True, tooltip="One text per image, written after its score."
                ),
                model_input(),
            ],
            outputs=[io.Image.Output("images", is_output_list=True, tooltip="The images with their scores.")],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        position: list[str],
        height: list[int],
        scores: list[float] | None = None,
        labels: list[str] | None = None,
        model: list[Any] | None = None,
    ) -> io.NodeOutput:
        from ..rali_core.sheet import draw_banner

        single = split_images(images)
        if not single:
            return block_without_images(cls)
        texts = split_labels(labels, len(single))
        wired = check_numbers(scores, len(single), "scores")
        scored = judge_pixels(single, wired) if wired else score_what_can_be(single, scalar(model))
        drawn = []
        for image, value, band, text in zip(single, scored.values, scored.bands(), texts, strict=True):
            number = "no score" if isnan(value) else f"{value:.3f}"
            line = "   ".join(part for part in (number, band, text) if part)
            pixels = to_pil(image.nan_to_num().clamp(0.0, 1.0))
            size = max(scalar(height), 12) if scalar(height) else None
            drawn.append(from_pil(draw_banner(pixels, line, value, position=scalar(position), height=size)))
        return io.NodeOutput(join_images(drawn), ui=score_panel(scored, images=single))


def split_labels(labels: list[str] | None, count: int) -> list[str]:
    """One text per image; a single text of several lines is one per line."""
    if not labels:
        return [""] * count
    if len(labels) == 1 and count > 1:
        labels = labels[0].strip("\n").split("\n")
    texts = check_numbers(labels, count, "labels")
    assert texts is not None
    return [str(text) for text in texts]
