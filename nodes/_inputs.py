"""Inputs that several nodes share, each with its one tooltip."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ._models import RaliModelType
from ._scoring import COVERAGES

# Where the host knows it: what a node that is no output has shown is kept and sent again, as an output node's is.
KEEPS_ITS_PANEL: dict[str, Any] = {
    field.name: True for field in fields(io.Schema) if field.name == "has_intermediate_output"
}


def images_input(tooltip: str = "A batch or a list of images, also of different sizes.", **options: Any) -> Any:
    """The images."""
    return io.Image.Input("images", tooltip=tooltip, **options)


def model_input(name: str = "model") -> Any:
    """The optional model."""
    return RaliModelType.Input(
        name, optional=True, tooltip="From RALI Load Model. If not connected, the bundled model is used."
    )


def threshold_input(tooltip: str, default: float = 0.5) -> Any:
    """A score."""
    return io.Float.Input("threshold", default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def coverage_input() -> Any:
    """What happens to pictures that are not square."""
    return io.Combo.Input(
        "coverage",
        options=COVERAGES,
        default=COVERAGES[0],
        advanced=True,
        tooltip=(
            "For images that are not square: center looks at the central square, tiles at squares along the whole "
            "longer side and takes their mean. auto: as the model was made."
        ),
    )


def scores_input(tooltip: str) -> Any:
    """Scores from elsewhere."""
    return io.Float.Input("scores", optional=True, force_input=True, tooltip=tooltip)


def follower_inputs() -> list[Any]:
    """What belongs to the images and is selected with them."""
    return [
        io.Latent.Input("latents", optional=True, tooltip="One latent per image, in the same order; follows them."),
        io.Mask.Input("masks", optional=True, tooltip="One mask per image, in the same order; follows them."),
        io.Int.Input(
            "seeds",
            optional=True,
            force_input=True,
            tooltip="A list with one seed (or any whole number) per image, in the same order; follows them.",
        ),
    ]


def follower_outputs(which: str) -> list[Any]:
    """The outputs of `follower_inputs`."""
    return [
        io.Latent.Output("latents", is_output_list=True, tooltip=f"The latents of the {which} images, if connected."),
        io.Mask.Output("masks", is_output_list=True, tooltip=f"The masks of the {which} images, if connected."),
        io.Int.Output("seeds", is_output_list=True, tooltip=f"The seeds of the {which} images, if connected."),
    ]
