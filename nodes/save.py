"""RALI Save Image: the score goes into the file's name, its metadata and a list beside it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..rali_core.files import append_json_line
from ..rali_core.selection import rank
from ._convert import check_numbers, split_images, to_pil
from ._files import FORMATS, encode, write_new
from ._inputs import images_input, model_input, scores_input
from ._scoring import first, score_images, show

SIDECAR = "rali_scores.jsonl"


def file_prefix(template: str, *, score: float, place: int, count: int, seed: int | None) -> str:
    """Fill in {score}, {rank} and {seed}.

    Raises:
        ValueError: {seed} is asked for and there is none.
    """
    if "{seed}" in template and seed is None:
        raise ValueError("filename_prefix asks for {seed}: wire seeds, or take {seed} out")
    width = len(str(count))
    return (
        template.replace("{score}", f"{score:.3f}").replace("{rank}", f"{place:0{width}}").replace("{seed}", str(seed))
    )


class RaliSaveImage(io.ComfyNode):
    """Saves images with their scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_SaveImage",
            display_name="RALI Save Image",
            category="RALI",
            description=(
                "Saves images into ComfyUI's output folder with the workflow and the score in the file (rali_score, "
                f"aesthetic_score), and adds a line per image to {SIDECAR} beside them."
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
                        "{score}, {rank} (1 is best) and {seed} are filled in; %date% and the like as in Save Image. "
                        "A slash makes a folder."
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
                scores_input("One score per image; where nothing is wired the images are scored here."),
                io.Int.Input("seeds", optional=True, force_input=True, tooltip="One seed per image, for {seed}."),
                model_input(),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The images, unchanged."),
                io.String.Output("files", is_output_list=True, tooltip="Full path of each file."),
            ],
        )

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
    ) -> io.NodeOutput:
        single = split_images(images)
        values = check_numbers(scores, len(single), "scores") or score_images(single, first(model)).values
        numbers = check_numbers(seeds, len(single), "seeds") or [None] * len(single)
        order = rank(values)
        if len(order) < len(values):
            raise ValueError("scores: an image without a score (NaN) cannot be saved with one")
        files, shown = [], []
        for index, image in enumerate(single):
            place = order.index(index) + 1
            prefix = file_prefix(
                first(filename_prefix), score=values[index], place=place, count=len(single), seed=numbers[index]
            )
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
                prefix, folder_paths.get_output_directory(), image.shape[2], image.shape[1]
            )
            picture = to_pil(image, alpha=first(format) != "jpeg")
            data = encode(
                picture,
                first(format),
                quality=first(quality),
                score=values[index],
                prompt=cls.hidden.prompt,
                extra=cls.hidden.extra_pnginfo,
            )
            path = write_new(Path(folder), name, counter, FORMATS[first(format)], data)
            files.append(str(path))
            shown.append({"filename": path.name, "subfolder": subfolder, "type": "output"})
            if first(sidecar):
                record = {
                    "file": path.name,
                    "rali_score": values[index],
                    "aesthetic_score": values[index],
                    "rank": place,
                    "of": len(single),
                    "seed": numbers[index],
                    "width": picture.width,
                    "height": picture.height,
                    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                }
                append_json_line(Path(folder) / SIDECAR, record)
        return io.NodeOutput(images, files, ui={"images": shown, **show(values)})
