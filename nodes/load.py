"""RALI Load Model."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..rali_core.constants import DOMAINS
from ._models import (
    AUTO,
    BUNDLED_CHOICE,
    DeviceChoice,
    DtypeChoice,
    RaliModelType,
    find_model_file,
    get_model,
    model_choices,
    model_key,
)


class RaliLoadModel(io.ComfyNode):
    """Chooses a model; without it the other nodes use the bundled one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_LoadModel",
            display_name="RALI Load Model",
            category="RALI",
            description=(
                "Loads a model that scores image quality: the bundled one, the authors' where it was downloaded, or a "
                ".safetensors file in models/rali. "
                "The other RALI nodes use the bundled model if no model is connected."
            ),
            search_aliases=["rali loader", "quality model", "IQA model", "image quality model loader"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_choices(),
                    default=BUNDLED_CHOICE,
                    tooltip=(
                        "The bundled model; the authors' after `rali download official`; or a RALI model file "
                        "(.safetensors only) in models/rali."
                    ),
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(get_args(DtypeChoice)),
                    default="auto",
                    advanced=True,
                    tooltip="Precision of the image encoder. auto: float16 on a CUDA GPU good at it, else float32.",
                ),
                io.Combo.Input(
                    "device",
                    options=list(get_args(DeviceChoice)),
                    default="auto",
                    advanced=True,
                    tooltip="auto: ComfyUI's device, memory shared with the other models. cpu: leaves the GPU alone.",
                ),
                io.Combo.Input(
                    "domain",
                    options=[AUTO, *DOMAINS],
                    default=AUTO,
                    optional=True,
                    tooltip=(
                        "What the images are, if all are of one kind: the bundled model then ranks them better, those "
                        "of one generator above all. auto: found out for each image. Only models that know these kinds."
                    ),
                ),
            ],
            outputs=[RaliModelType.Output("RALI_MODEL", tooltip="The model, for any RALI node.")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        try:
            find_model_file(model)
        except FileNotFoundError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str, dtype: str, device: str, domain: str = AUTO) -> str:
        return "|".join((model_key(find_model_file(model)), dtype, device, domain))

    @classmethod
    def execute(cls, model: str, dtype: DtypeChoice, device: DeviceChoice, domain: str = AUTO) -> io.NodeOutput:
        return io.NodeOutput(get_model(model, dtype=dtype, device=device, domain=domain))
