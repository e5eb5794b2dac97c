"""RALI Quality Map and RALI Contact Sheet: scores as images."""

from __future__ import annotations

from functools import partial
from math import isnan, nan
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from PIL import Image

    from ..rali_core.quality_map import QualityMap
    from ..rali_core.scorer import RaliScorer

MAP_MODES = ["tiles", "patch tokens", "full"]
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
                    tooltip=(
                        "tiles: squares of tile_size, each scored alone. patch tokens: one pass, finer. full: tiles "
                        "that are not resized, like the crops of coverage full."
                    ),
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
        single = split_images(images)
        if not single:
            return block_without_images(cls)
        handle, maps = ready_model(scalar(model)), _Maps()
        report = progress_reporter(PROGRESS_PER_IMAGE * len(single))

        def report_tiles(before: int, done: int, total: int | None) -> bool:
            return bool(report(PROGRESS_PER_IMAGE * before + PROGRESS_PER_IMAGE * done // (total or done), None))

        for number, image in enumerate(single):
            try:
                pixels = to_pixels(to_core(image)).cpu()
                chosen = scalar(mode), scalar(tile_size)
                drawn = _score_regions(handle.scorer, pixels, *chosen, partial(report_tiles, number))
            except ValueError as error:  # an error of one image does not affect the others' maps
                maps.add_failed(image, error)
            else:
                maps.add(pixels, drawn, scalar(stretch_colours), scalar(weak_limit), scalar(weak_mode))
            report(PROGRESS_PER_IMAGE * (number + 1), None)
        return maps.output()


def _score_regions(scorer: RaliScorer, pixels: Tensor, mode: str, tile: int, progress: Any) -> QualityMap:
    """The map of one image, in one of `MAP_MODES`."""
    from ..rali_core.quality_map import score_patches, score_tiles

    if mode == "patch tokens":
        return score_patches(scorer, pixels)
    drawn = score_tiles(scorer, pixels, tile=None if mode == "full" else tile, progress=progress)
    assert drawn is not None  # an interrupt is an exception
    return drawn


class _Maps:
    """The quality maps of several images, as the node's outputs."""

    def __init__(self) -> None:
        self.heats: list[Tensor] = []
        self.overlays: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.scores: list[float] = []
        self.lowest: list[float] = []
        self.reasons: list[str | None] = []
        self.lines: list[str] = []

    def add(self, pixels: Tensor, drawn: QualityMap, stretch: bool, limit: float, weak_mode: Any) -> None:
        """Add the map of an image with (3, H, W) pixels."""
        from ..rali_core.quality_map import colour_scores, weak_regions

        low, high = (float(value) for value in drawn.pixels.aminmax())
        colours = colour_scores(drawn.pixels, low, high) if stretch and high > low else colour_scores(drawn.pixels)
        self.heats.append(from_core(colours))
        self.overlays.append(from_core(torch.lerp(pixels, colours, OVERLAY_SHARE)))
        self.masks.append(weak_regions(drawn.pixels, limit, weak_mode).unsqueeze(0))
        self.scores += drawn.regions.flatten().tolist()
        self.lines.append(f"image {len(self.lowest)}: {drawn.reason or f'{low:.3f} to {high:.3f}'}")
        self.lines += [" ".join(f"{score:.3f}" for score in row) for row in drawn.regions.tolist()]
        self.lowest.append(low)
        self.reasons.append(drawn.reason)

    def add_failed(self, image: Tensor, error: ValueError) -> None:
        """Add an image (1, H, W, C) without a map: grey, and all of it masked, as no part is known to be good."""
        grey = torch.full((1, *image.shape[1:3], 3), 0.5)
        self.heats.append(grey)
        self.overlays.append(grey)
        self.masks.append(torch.ones(grey.shape[:3]))
        self.scores.append(nan)
        self.lines.append(f"image {len(self.lowest)}: no score: {error}")
        self.lowest.append(nan)
        self.reasons.append(str(error))

    def output(self) -> io.NodeOutput:
        """The node's outputs.

        Raises:
            ImageError: None of the images has a map.
        """
        known = [score for score in self.scores if not isnan(score)]
        if not known:
            raise ImageError(
                f"none of the images ({len(self.lowest)}, counted from 0) can be scored: {self.reasons[0]}"
            )
        note = Note.of("regions", low=min(known), high=max(known), count=len(known))
        return io.NodeOutput(
            join_images(self.heats),
            join_images(self.overlays),
            join_masks(self.masks),
            self.scores,
            "\n".join(self.lines),
            ui=score_panel(note=note, more=Scores(self.lowest, self.reasons).notes()),
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
        single = split_images(images)
        if not single:
            return block_without_images(cls)
        texts = split_labels(labels, len(single)) if labels else [f"image {index}" for index in range(len(single))]
        wired = check_numbers(scores, len(single), "scores")
        scored = judge_pixels(single, wired) if wired else score_images(single, scalar(model), scalar(coverage))
        sheet = _draw_sheet(single, scored, texts, scalar(ranked, True), columns=scalar(columns), cell=scalar(cell))
        return io.NodeOutput(from_pil(sheet), ui=score_panel(scored, images=single))


def _draw_sheet(images: list[Tensor], scored: Scores, texts: list[str], ranked: bool, **size: int) -> Image.Image:
    """The scored ones of the images on a sheet, with a text, the band and what is wrong for each.

    Raises:
        ValueError: None of them has a score.
    """
    from ..rali_core.sheet import draw_contact_sheet

    ranking = scored.ranking_of_scored() if ranked else sorted(scored.ranking_of_scored())
    if not ranking:
        raise ValueError(f"scores: there is no scored image to draw ({scored.remarks()})")
    bands = scored.bands()
    return draw_contact_sheet(
        [to_pil(images[index]) for index in ranking],
        [scored.values[index] for index in ranking],
        names=[texts[index] for index in ranking],
        bands=[bands[index] for index in ranking],
        notes=[", ".join(scored.words[index]) if scored.words else "" for index in ranking],
        ranked=ranked, **size,
    )  # fmt: skip
