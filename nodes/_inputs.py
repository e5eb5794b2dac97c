"""Inputs that several nodes share, with their tooltips."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..rali_core.scales import Scale
from ._attachments import ATTACHMENTS
from ._models import RaliModelType
from ._scoring import COVERAGES

# If the host supports it: the UI of a node that is not an output node is cached and sent again, like an output node's.
KEEPS_ITS_PANEL: dict[str, Any] = {
    field.name: True for field in fields(io.Schema) if field.name == "has_intermediate_output"
}
DIRECTIONS = ["higher is better", "lower is better"]
PRUNE_AT = "0.2, 0.4, 0.6"
ANY_SCALE = 1e6
"""Range of the widgets for other scorers' numbers, from minus to plus this."""


def images_input(tooltip: str = "A batch or a list of images, also of different sizes.", **options: Any) -> Any:
    """The images."""
    return io.Image.Input("images", tooltip=tooltip, **options)


def model_input(name: str = "model") -> Any:
    """The optional model."""
    return RaliModelType.Input(
        name, optional=True, tooltip="From RALI Load Model. If not connected, the bundled model is used."
    )


def threshold_input(tooltip: str, default: float = 0.5, *, any_scale: bool = False) -> Any:
    """A score; RALI's, or with `any_scale` also another scorer's."""
    low, high = (-ANY_SCALE, ANY_SCALE) if any_scale else (0.0, 1.0)
    return io.Float.Input("threshold", default=default, min=low, max=high, step=0.01, tooltip=tooltip)


def scale_inputs() -> list[Any]:
    """The scale of connected scores; these come last, because saved workflows hold the widgets' values in order."""
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
    """Whether higher or lower connected scores are better."""
    return io.Combo.Input(
        "scores_direction",
        options=DIRECTIONS,
        default=DIRECTIONS[0],
        optional=True,
        advanced=True,
        tooltip="For connected scores: lower is better for scorers such as NIQE, BRISQUE or LPIPS.",
    )


def scale_of(direction: list[str] | None, low: list[float] | None = None, high: list[float] | None = None) -> Scale:
    """The scale of the widgets of `scale_inputs`, as a node that takes lists receives them."""
    ends = (low[0] if low else 0.0, high[0] if high else 1.0)
    return Scale(*ends, lower_is_better=bool(direction) and direction[0] == DIRECTIONS[1])


def coverage_input() -> Any:
    """How images that are not square are scored."""
    return io.Combo.Input(
        "coverage",
        options=COVERAGES,
        default=COVERAGES[0],
        advanced=True,
        tooltip=(
            "What the model looks at: center takes the central square, tiles squares along the whole longer side, "
            "full also crops at the image's own size, which see what you see at 100 % and take more time. "
            "auto: the model's own setting."
        ),
    )


def scores_input(tooltip: str) -> Any:
    """Scores from elsewhere."""
    return io.Float.Input("scores", optional=True, force_input=True, tooltip=tooltip)


def latent_mask_seed_inputs() -> list[Any]:
    """The standard attachments: latents, masks and seeds."""
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


def latent_mask_seed_outputs(which: str) -> list[Any]:
    """The outputs of `latent_mask_seed_inputs`."""
    return [
        io.Latent.Output("latents", is_output_list=True, tooltip=f"The latents of the {which} images, if connected."),
        io.Mask.Output("masks", is_output_list=True, tooltip=f"The masks of the {which} images, if connected."),
        io.Int.Output("seeds", is_output_list=True, tooltip=f"The seeds of the {which} images, if connected."),
    ]


def attachment_inputs() -> list[Any]:
    """Any other attachments; these come last, because they were added later."""
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
