"""RALI Quality Map and RALI Contact Sheet: scores as images."""

from __future__ import annotations

from functools import partial
from math import isnan, nan
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..rali_core.images import ImageError, to_pixels
from ._convert import check_numbers, from_core, from_pil, join_images, join_masks, split_images, to_core, to_pil
from ._inputs import KEEPS_ITS_PANEL, coverage_input, images_input, model_input, scores_input
from ._models import ready_model
from ._panel import Note
from ._scoring import Scores, block_without_images, judge_pixels, progress_reporter, scalar, score_images, score_panel
from .draw import split_labels

MAP_MODES = ["tiles", "patch tokens"]
WEAK_MODES = ["weakest share", "below score"]
OVERLAY_SHARE = 0.45
PROGRESS_PER_IMAGE = 1000


class RaliQualityMap(io.ComfyNode):
    """Shows where an image is weak."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_QualityMap",
            display_name="RALI Quality Map",
            category="RALI",
            description=(
                "Shows where an image is good (green) and where it is weak (red), and makes a mask of the weak "
                "regions, for inpainting. Tiles are scored like images of their own; patch tokens are finer and "
                "quicker, but not calibrated."
            ),
            search_aliases=["heat map", "quality heatmap", "find weak regions", "blur map", "inpaint mask", "saliency"],
            is_input_list=True,
            **KEEPS_ITS_PANEL,
            inputs=[
                images_input(),
                io.Combo.Input(
                    "mode",
                    options=MAP_MODES,
                    default=MAP_MODES[0],
                    tooltip="tiles: squares of tile_size, each scored alone. patch tokens: one pass, finer.",
                ),
                io.Int.Input(
                    "tile_size", default=256, min=32, max=4096, step=8, tooltip="Side of a tile in pixels, for tiles."
                ),
                io.Combo.Input(
                    "weak_mode",
                    options=WEAK_MODES,
                    default="below score",
                    tooltip="below score: masks what scores less than the limit. lowest fraction: that fraction of it.",
                ),
                io.Float.Input(
                    "weak_limit",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "A score (0.4: what is poor or bad), or a fraction of the image (0.25: its weakest quarter), "
                        "see mask_by."
                    ),
                ),
                io.Boolean.Input(
                    "stretch_colours",
                    default=False,
                    advanced=True,
                    tooltip=(
                        "Colours from this image's worst to its best region. Off: fixed 0 to 1 scale, comparable "
                        "between images."
                    ),
                ),
                model_input(),
            ],
            outputs=[
                io.Image.Output("heat_map", is_output_list=True, tooltip="The scores in colour."),
                io.Image.Output("overlay", is_output_list=True, tooltip="The same over the image."),
                io.Mask.Output("weak_regions", is_output_list=True, tooltip="White where the image is weak."),
                io.Float.Output(
                    "region_scores", is_output_list=True, tooltip="All regions' scores, row by row, image by image."
                ),
                io.String.Output("report", tooltip="The regions' scores as a table."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        mode: list[str],
        tile_size: list[int],
        weak_mode: list[Any],
        weak_limit: list[float],
        stretch_colours: list[bool],
        model: list[Any] | None = None,
    ) -> io.NodeOutput:
        from ..rali_core.quality_map import colour_scores, score_patches, score_tiles, weak_regions

        single = split_images(images)
        if not single:
            return block_without_images(cls)
        handle = ready_model(scalar(model))
        heats, overlays, masks, scores, lines = [], [], [], [], []
        lowest: list[float] = []
        reasons: list[str | None] = []
        report = progress_reporter(PROGRESS_PER_IMAGE * len(single))

        def report_tiles(before: int, done: int, total: int | None) -> bool:
            return bool(report(PROGRESS_PER_IMAGE * before + PROGRESS_PER_IMAGE * done // (total or done), None))

        for number, image in enumerate(single):
            try:
                pixels = to_pixels(to_core(image)).cpu()
                if scalar(mode) == MAP_MODES[0]:
                    drawn = score_tiles(
                        handle.scorer, pixels, tile=scalar(tile_size), progress=partial(report_tiles, number)
                    )
                    assert drawn is not None  # an interrupt is an exception
                else:
                    drawn = score_patches(handle.scorer, pixels)
            except ValueError as error:  # an error of one image does not affect the others' maps
                grey = torch.full((1, *image.shape[1:3], 3), 0.5)
                heats.append(grey)
                overlays.append(grey)
                masks.append(torch.ones(grey.shape[:3]))  # no part of it is known to be good
                scores.append(nan)
                lowest.append(nan)
                reasons.append(str(error))
                lines.append(f"image {number}: no score: {error}")
                report(PROGRESS_PER_IMAGE * (number + 1), None)
                continue
            low, high = (float(value) for value in drawn.pixels.aminmax())
            stretched = scalar(stretch_colours) and high > low
            colours = colour_scores(drawn.pixels, low, high) if stretched else colour_scores(drawn.pixels)
            heats.append(from_core(colours))
            overlays.append(from_core(torch.lerp(pixels, colours, OVERLAY_SHARE)))
            masks.append(weak_regions(drawn.pixels, scalar(weak_limit), scalar(weak_mode)).unsqueeze(0))
            scores += drawn.regions.flatten().tolist()
            lowest.append(low)
            reasons.append(drawn.reason)
            lines.append(f"image {number}: {drawn.reason or f'{low:.3f} to {high:.3f}'}")
            lines += [" ".join(f"{score:.3f}" for score in row) for row in drawn.regions.tolist()]
            report(PROGRESS_PER_IMAGE * (number + 1), None)
        known = [score for score in scores if not isnan(score)]
        if not known:
            raise ImageError(f"none of the images ({len(single)}, counted from 0) can be scored: {reasons[0]}")
        note = Note.of("regions", low=min(known), high=max(known), count=len(known))
        return io.NodeOutput(
            join_images(heats),
            join_images(overlays),
            join_masks(masks),
            scores,
            "\n".join(lines),
            ui=score_panel(note=note, more=Scores(lowest, reasons).notes()),
        )


class RaliContactSheet(io.ComfyNode):
    """Ranks images on one sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_ContactSheet",
            display_name="RALI Contact Sheet",
            category="RALI",
            description="One image of all the images, best first, each with its score: to compare at a glance.",
            search_aliases=["grid", "image grid", "ranked grid", "overview", "compare images"],
            is_input_list=True,
            **KEEPS_ITS_PANEL,
            inputs=[
                images_input(),
                scores_input("One score in 0..1 per image; if not connected, the images are scored here."),
                io.Int.Input("columns", default=4, min=1, max=32, tooltip="Images in a row."),
                io.Int.Input("cell", default=256, min=80, max=1024, step=8, tooltip="Side of an image in pixels."),
                model_input(),
                coverage_input(),
                io.Boolean.Input(
                    "ranked",
                    optional=True,  # prompts from before this widget run unchanged
                    default=True,
                    advanced=True,
                    tooltip="Best first and numbered; off: in the order of the input, as an XY plot needs it.",
                ),
                io.String.Input(
                    "labels",
                    optional=True,
                    force_input=True,
                    tooltip="One text per image (a list, or lines of one text) in place of its number, for XY plots.",
                ),
            ],
            outputs=[io.Image.Output("sheet", tooltip="The ranked grid.")],
        )

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        columns: list[int],
        cell: list[int],
        coverage: list[str],
        scores: list[float] | None = None,
        model: list[Any] | None = None,
        ranked: list[bool] | None = None,
        labels: list[str] | None = None,
    ) -> io.NodeOutput:
        from ..rali_core.sheet import draw_contact_sheet

        single = split_images(images)
        if not single:
            return block_without_images(cls)
        texts = split_labels(labels, len(single)) if labels else [f"image {index}" for index in range(len(single))]
        wired = check_numbers(scores, len(single), "scores")
        scored = judge_pixels(single, wired) if wired else score_images(single, scalar(model), scalar(coverage))
        ranking = [index for index in scored.ranking() if not isnan(scored.values[index])]
        by_score = scalar(ranked, True)
        ranking = ranking if by_score else sorted(ranking)
        if not ranking:
            raise ValueError(f"scores: there is no scored image to draw ({scored.remarks()})")
        bands = scored.bands()
        sheet = draw_contact_sheet(
            [to_pil(single[index]) for index in ranking],
            [scored.values[index] for index in ranking],
            names=[texts[index] for index in ranking],
            bands=[bands[index] for index in ranking],
            columns=scalar(columns),
            cell=scalar(cell),
            ranked=by_score,
        )
        return io.NodeOutput(from_pil(sheet), ui=score_panel(scored, images=single))
