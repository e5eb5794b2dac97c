"""RALI Gate: the rest of the graph runs only if the images are good enough."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..rali_core.attachments import flat_numbers
from ._convert import split_images
from ._inputs import (
    KEEPS_ITS_PANEL,
    coverage_input,
    images_input,
    model_input,
    scale_inputs,
    scale_of,
    threshold_input,
)
from ._panel import Note
from ._scoring import AGGREGATIONS, Scores, block_without_images, check_threshold, scalar, score_images, score_panel

MODES = ["block", "raise", "either-or"]


def _judge(
    images: Any,
    score: Any,
    threshold: Any,
    aggregation: Any,
    coverage: Any,
    model: Any,
    scores_direction: Any = None,
    scores_low: Any = None,
    scores_high: Any = None,
) -> tuple[bool, float, Scores] | None:
    """Whether the gate is open, the number that decided, and its scores; None if no image came."""
    if images is None and score is None:
        raise ValueError("RALI Gate has nothing to judge: connect images, or a score")
    if score:
        values = [float(value) for value in flat_numbers(score)]
        scores = Scores(values, [None] * len(values), scale=scale_of(scores_direction, scores_low, scores_high))
    else:
        check_threshold(scalar(threshold))
        single = split_images(images)
        if not single:
            return None
        scores = score_images(single, scalar(model), scalar(coverage))
    number = scores.aggregate(scalar(aggregation))
    return scores.scale.reaches(number, scalar(threshold)), number, scores


class RaliGate(io.ComfyNode):
    """Passes a value only if a score is reached."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_Gate",
            display_name="RALI Gate",
            category="RALI",
            description=(
                "Passes value through only if the images (or a connected score) reach the threshold; otherwise "
                "everything downstream is skipped: no upscale, no save. What leads to value is not computed either if "
                "it is not needed."
            ),
            search_aliases=["quality gate", "stop if bad", "conditional", "switch", "block", "if score"],
            is_input_list=True,
            **KEEPS_ITS_PANEL,
            inputs=[
                io.AnyType.Input("value", lazy=True, tooltip="Anything; it is computed only if the gate opens."),
                images_input("The images that decide. Not needed if a score is connected.", optional=True),
                io.Float.Input(
                    "score",
                    optional=True,
                    force_input=True,
                    tooltip="A score, or a list of scores, that decides instead of images.",
                ),
                threshold_input(
                    "The gate opens where the score is at least this; a connected score in its own scale.",
                    any_scale=True,
                ),
                io.Combo.Input(
                    "mode",
                    options=MODES,
                    default=MODES[0],
                    tooltip=(
                        "If the gate stays shut: block skips everything downstream; raise stops the whole run with an "
                        "error; switch passes otherwise through instead."
                    ),
                ),
                io.Combo.Input(
                    "aggregation",
                    options=list(AGGREGATIONS),
                    default="minimum",
                    advanced=True,
                    tooltip=(
                        "How the images' scores are combined. minimum: all of them must reach the threshold. An image "
                        "that cannot be scored counts as 0."
                    ),
                ),
                model_input(),
                io.AnyType.Input(
                    "otherwise",
                    optional=True,
                    lazy=True,
                    tooltip="For mode switch: passed through if the gate stays shut; only then is it computed.",
                ),
                coverage_input(),
                *scale_inputs(),
            ],
            outputs=[
                io.AnyType.Output("value", is_output_list=True, tooltip="The value, unchanged, or otherwise."),
                io.Boolean.Output("passed", tooltip="Whether the gate opened."),
                io.Float.Output("score", tooltip="The number that decided."),
            ],
        )

    @classmethod
    def check_lazy_status(
        cls,
        threshold: list[float],
        mode: list[str],
        aggregation: list[str],
        coverage: list[str],
        images: list[Tensor] | None = None,
        score: list[Any] | None = None,
        model: list[Any] | None = None,
        scores_direction: list[str] | None = None,
        scores_low: list[float] | None = None,
        scores_high: list[float] | None = None,
        **lazy: Any,
    ) -> list[str]:
        scale = (scores_direction, scores_low, scores_high)
        judged = _judge(images, score, threshold, aggregation, coverage, model, *scale)
        if judged is None:
            return []
        opened, _, _ = judged
        wanted = "value" if opened else "otherwise" if scalar(mode) == "either-or" else None
        # An input that is wired but not computed yet is (None,); an input that is not wired is absent.
        return [wanted] if wanted in lazy and all(item is None for item in lazy[wanted]) else []

    @classmethod
    def execute(
        cls,
        threshold: list[float],
        mode: list[str],
        aggregation: list[str],
        coverage: list[str],
        value: list[Any] | None = None,
        images: list[Tensor] | None = None,
        score: list[Any] | None = None,
        model: list[Any] | None = None,
        otherwise: list[Any] | None = None,
        scores_direction: list[str] | None = None,
        scores_low: list[float] | None = None,
        scores_high: list[float] | None = None,
    ) -> io.NodeOutput:
        scale = (scores_direction, scores_low, scores_high)
        judged = _judge(images, score, threshold, aggregation, coverage, model, *scale)
        if judged is None:
            return block_without_images(cls)
        opened, number, scores = judged
        sign = {(False, True): "≥", (False, False): "<", (True, True): "≤", (True, False): ">"}[
            scores.scale.lower_is_better, opened
        ]
        verdict = f"{number:.3f} {sign} {scalar(threshold):.3f}"
        result = list(value or []) if opened else _when_shut(scalar(mode), otherwise, scores, verdict)
        note = Note.of("open" if opened else "shut", score=number, sign=sign, threshold=float(scalar(threshold)))
        ui = score_panel(scores, threshold=scalar(threshold), note=note, headline=number, images=split_images(images))
        return io.NodeOutput(result, opened, number, ui=ui)


def _when_shut(mode: str, otherwise: list[Any] | None, scores: Scores, verdict: str) -> Any:
    """The gate's output where the threshold is not reached.

    Raises:
        ValueError: The mode is `raise`, or there is nothing to switch to.
    """
    if mode == "raise":
        because = f" ({remarks})" if (remarks := scores.remarks()) else ""
        missed = "high" if scores.scale.lower_is_better else "low"
        raise ValueError(
            f"RALI Gate: the score is too {missed}, {verdict}{because}. The run was stopped, as mode says."
        )
    if mode != "either-or":
        return ExecutionBlocker(None)
    if otherwise is None:
        raise ValueError("RALI Gate: mode switch (either-or) needs something connected to otherwise")
    return list(otherwise)
