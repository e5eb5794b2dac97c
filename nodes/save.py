"""RALI Save Image: the score in the file's name, its metadata and a list beside it."""

from __future__ import annotations

import logging
import re
import time
from math import isnan
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..rali_core.files import append_json_line
from ._convert import check_numbers, split_images, to_pil
from ._files import FORMATS, both_scales, encode, write_new
from ._inputs import images_input, model_input, scale_inputs, scale_of, scores_input
from ._names import NameFields, check_template, make_prefix
from ._scoring import Scores, block_without_images, scalar, score_panel, score_what_can_be

log = logging.getLogger("rali")

SIDECAR = "rali_scores.jsonl"
OTHER_KEY = "score"
"""Key of connected scores that cannot be RALI's and have no name."""
TAKEN_KEYS = {"prompt", "workflow", "rali_score"}


def check_name(name: str) -> str:
    """Check the key for another scorer's scores.

    Raises:
        ValueError: It cannot be one.
    """
    if name and (name in TAKEN_KEYS or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name)):
        raise ValueError(
            f"scores_name: expected letters, digits, _, . or - such as pickscore, and none of "
            f"{', '.join(sorted(TAKEN_KEYS))}, got {name!r}"
        )
    return name


def score_keys(score: float | None, name: str) -> dict[str, float | None]:
    """The scores to write for an image: RALI's under its keys, another scorer's under its name."""
    return {name: score} if name else both_scales(score)


class RaliSaveImage(io.ComfyNode):
    """Saves images with their scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_SaveImage",
            display_name="RALI Save Image",
            category="RALI",
            description=(
                "Saves images into ComfyUI's output folder with the workflow and the score in the file (rali_score, 0 "
                f"to 1; aesthetic_score, 0 to 10), and adds a line per image to {SIDECAR} beside them."
            ),
            search_aliases=["save image with score", "save webp", "save jpeg", "export", "metadata"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                images_input(),
                io.String.Input(
                    "filename_prefix",
                    default="RALI/{score}_{rank}",
                    tooltip=(
                        "{score}, {rank} (1 is best) and {seed} are filled in, also as {score:.2f}; %date:yyyy-MM-dd% "
                        "and %Load Image.image% as in Save Image. A slash makes a folder."
                    ),
                ),
                io.Combo.Input(
                    "format", options=list(FORMATS), default="png", tooltip="png and webp keep transparency."
                ),
                io.Int.Input(
                    "quality", default=92, min=1, max=100, tooltip="For webp and jpeg; webp at 100 is lossless."
                ),
                io.Boolean.Input(
                    "sidecar", default=True, advanced=True, tooltip=f"Add a line per image to {SIDECAR} beside it."
                ),
                scores_input("One score per image; if not connected, the images are scored here."),
                io.Int.Input("seeds", optional=True, force_input=True, tooltip="One seed per image, for {seed}."),
                model_input(),
                io.String.Input(
                    "scores_name",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "For connected scores of another scorer: the key that they are saved under, such as pickscore, "
                        "instead of rali_score and aesthetic_score."
                    ),
                ),
                *scale_inputs(),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The images, unchanged."),
                io.String.Output("files", is_output_list=True, tooltip="Full path of each file."),
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: Any = None) -> bool | str:
        for template in filename_prefix or []:
            try:
                if template is not None:  # valid if something is wired to it
                    check_template(template, seeds=True)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        filename_prefix: list[str],
        format: list[str],
        quality: list[int],
        sidecar: list[bool],
        scores: list[float] | None = None,
        seeds: list[int] | None = None,
        model: list[Any] | None = None,
        scores_name: list[str] | None = None,
        scores_direction: list[str] | None = None,
        scores_low: list[float] | None = None,
        scores_high: list[float] | None = None,
    ) -> io.NodeOutput:
        single = split_images(images)
        if not single:
            return block_without_images(cls)
        template, count = scalar(filename_prefix), len(single)
        check_template(template, seeds=bool(seeds))  # before the work
        wired = check_numbers(scores, count, "scores")
        key = _own_name(scalar(scores_name, ""), wired)
        numbers = check_numbers(seeds, count, "seeds") or [None] * count
        scale = scale_of(scores_direction, scores_low, scores_high)
        scored = Scores(wired, [None] * count, scale=scale) if wired else score_what_can_be(single, scalar(model))
        order, files, shown = scored.ranking(), [], []
        for index, (image, value) in enumerate(zip(single, scored.values, strict=True)):
            fields = NameFields(value, order.index(index) + 1, count, numbers[index])
            keys = score_keys(None if isnan(value) else value, key)
            path, subfolder = _save(image, index, fields, keys, cls.hidden, template, scalar(format), scalar(quality))
            files.append(str(path))
            shown.append({"filename": path.name, "subfolder": subfolder, "type": "output"})
            if scalar(sidecar):
                append_json_line(path.parent / SIDECAR, _sidecar_record(path, image, fields, keys))
        return io.NodeOutput(images, files, ui={"images": shown, **score_panel(scored)})


def _own_name(name: str, wired: list[float] | None) -> str:
    """The key of connected scores; empty for RALI's own. Scores outside 0..1 cannot be RALI's."""
    key = check_name(name) if wired else ""
    if wired and not key and not all(isnan(value) or 0.0 <= value <= 1.0 for value in wired):
        log.warning("RALI Save Image: these scores are not RALI's: saved as %r, see scores_name", OTHER_KEY)
        return OTHER_KEY
    return key


def _save(
    image: Tensor, index: int, fields: NameFields, keys: dict[str, float | None], hidden: Any, template: str,
    file_format: str, quality: int,
) -> tuple[Path, str]:  # fmt: skip
    """Write one image; its path, and the folder of it below the output folder.

    Like the host's own node, an image that cannot be scored is saved all the same, without a score: it may be the only
    result of a long run.
    """
    prefix = make_prefix(template, fields, hidden.prompt, hidden.extra_pnginfo)
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), image.shape[2], image.shape[1]
    )
    image_file = to_pil(torch.nan_to_num(image).clamp(0.0, 1.0), alpha=file_format != "jpeg")
    data, ending = encode(
        image_file, file_format, quality=quality, scores=keys, prompt=hidden.prompt, extra=hidden.extra_pnginfo
    )
    return write_new(Path(folder), name.replace("%batch_num%", str(index)), counter, ending, data), subfolder


def _sidecar_record(path: Path, image: Tensor, fields: NameFields, keys: dict[str, float | None]) -> dict[str, Any]:
    return {
        "file": path.name,
        **keys,
        "rank": fields.place,
        "of": fields.count,
        "seed": fields.seed,
        "width": image.shape[2],
        "height": image.shape[1],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
