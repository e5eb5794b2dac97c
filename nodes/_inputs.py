"""Inputs that several nodes share, each with its one tooltip."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..rali_core.scales import Scale
from ._followers import ATTACHMENTS
from ._models import RaliModelType
from ._scoring import COVERAGES

# Where the host knows it: what a node that is no output has shown is kept and sent again, as an output node's is.
KEEPS_ITS_PANEL: dict[str, Any] = {
    field.name: True for field in fields(io.Schema) if field.name == "has_intermediate_output"
}
DIRECTIONS = ["higher is better", "lower is better"]
ANY_SCALE = 1e6
"""Widgets for other scorers' numbers go from minus to plus this."""


def images_input(tooltip: str = "A batch or a list of images, also of different sizes.", **options: Any) -> Any:
    """The images."""
    return io.Image.Input("images", tooltip=tooltip, **options)


def model_input(name: str = "model") -> Any:
    """The optional model."""
    return RaliModelType.Input(
        name, optional=True, tooltip="From RALI Load Model. If not connected, the bundled model is used."
    )


def threshold_input(tooltip: str, default: float = 0.5, *, any_scale: bool = False) -> Any:
    """A score; RALI's, or with `any_scale` that of another scorer too."""
    low, high = (-ANY_SCALE, ANY_SCALE) if any_scale else (0.0, 1.0)
    return io.Float.Input("threshold", default=default, min=low, max=high, step=0.01, tooltip=tooltip)


def scale_inputs() -> list[Any]:
    """What connected scores mean; they come last, because saved workflows hold the widgets' values in order."""
    return [
        direction_input(),
        io.Float.Input(
            "scores_low",
            default=0.0,
            min=-ANY_SCALE,
            max=ANY_SCALE,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Lowest score that the other scorer gives: for the bars, and for averaging with RALI's.",
        ),
        io.Float.Input(
            "scores_high",
            default=1.0,
            min=-ANY_SCALE,
            max=ANY_SCALE,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Highest score that the other scorer gives, such as 10.",
        ),
    ]


def direction_input() -> Any:
    """Which of the connected scores are the better ones."""
    return io.Combo.Input(
        "scores_direction",
        options=DIRECTIONS,
        default=DIRECTIONS[0],
        optional=True,
        advanced=True,
        tooltip="For connected scores: lower is better for scorers such as NIQE, BRISQUE or LPIPS.",
    )


def scale_of(direction: list[str] | None, low: list[float] | None = None, high: list[float] | None = None) -> Scale:
    """The scale that the widgets of `scale_inputs` say, as they come where a node takes lists."""
    ends = (low[0] if low else 0.0, high[0] if high else 1.0)
    return Scale(*ends, lower_is_better=bool(direction) and direction[0] == DIRECTIONS[1])


def coverage_input() -> Any:
    """What happens to pictures that are not square."""
    return io.Combo.Input(
        "coverage",
        options=COVERAGES,
        default=COVERAGES[0],
        advanced=True,
        tooltip=(
            "What the model looks at: center takes the central square, tiles squares along the whole longer side, "
            "full also crops at the image's own size, which see what you see at 100 % and take more time. "
            "auto: as the model was made."
        ),
    )


def scores_input(tooltip: str) -> Any:
    """Scores from elsewhere."""
    return io.Float.Input("scores", optional=True, force_input=True, tooltip=tooltip)


def follower_inputs() -> list[Any]:
    """What belongs to the images and is selected with them."""
    return [
        io.Latent.Input("latents", optional=True, tooltip="A latent per image, or one for all; follows the images."),
        io.Mask.Input("masks", optional=True, tooltip="A mask per image, or one for all; follows the images."),
        io.Int.Input(
            "seeds",
            optional=True,
            force_input=True,
            tooltip="A seed (or any whole number) per image, in the same order; follows the images.",
        ),
    ]


def follower_outputs(which: str) -> list[Any]:
    """The outputs of `follower_inputs`."""
    return [
        io.Latent.Output("latents", is_output_list=True, tooltip=f"The latents of the {which} images, if connected."),
        io.Mask.Output("masks", is_output_list=True, tooltip=f"The masks of the {which} images, if connected."),
        io.Int.Output("seeds", is_output_list=True, tooltip=f"The seeds of the {which} images, if connected."),
    ]


def attachment_inputs() -> list[Any]:
    """Anything else that belongs to the images; they come last, as they were added later."""
    return [
        io.AnyType.Input(
            name,
            optional=True,
            tooltip=(
                "Anything that belongs to the images (prompts, file names, conditioning, SEGS, images): a list or "
                "batch with one per image, or one for all; follows the images."
            ),
        )
        for name in ATTACHMENTS
    ]


def attachment_outputs(which: str) -> list[Any]:
    """The outputs of `attachment_inputs`."""
    return [
        io.AnyType.Output(name, is_output_list=True, tooltip=f"What {name} has for the {which} images, if connected.")
        for name in ATTACHMENTS
    ]
