"""RALI Gate: the rest of the graph runs only where the images are good enough."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..rali_core.combine import aggregate_scores
from ._convert import split_images
from ._inputs import coverage_input, images_input, model_input, threshold_input
from ._scoring import AGGREGATIONS, first, score_images, show

MODES = ["block", "raise", "either-or"]


def _judge(
    images: Any, score: Any, threshold: Any, aggregation: Any, coverage: Any, model: Any
) -> tuple[bool, float, list[float]]:
    """Whether the gate is open, the number that decided, and the scores behind it."""
    if score:
        values = [float(value) for value in score]
    elif images:
        values = score_images(split_images(images), first(model), first(coverage)).values
    else:
        raise ValueError("RALI Gate has nothing to judge: wire images, or a score")
    number = aggregate_scores(values, first(aggregation))
    return number >= first(threshold), number, values


class RaliGate(io.ComfyNode):
    """Lets a value through only where a score is reached."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_Gate",
            display_name="RALI Gate",
            category="RALI",
            description=(
                "Hands value on only where the images (or a score) reach the threshold; otherwise nothing that hangs "
                "on it runs: no upscale, no save. What leads to value is not computed either where it is not needed."
            ),
            search_aliases=["quality gate", "stop if bad", "conditional", "switch", "block", "if score"],
            is_input_list=True,
            inputs=[
                io.AnyType.Input("value", lazy=True, tooltip="Anything; it is computed only where the gate opens."),
                images_input("The images that decide. Not needed where a score is wired.", optional=True),
                io.Float.Input(
                    "score",
                    optional=True,
                    force_input=True,
                    tooltip="A score, or a list of scores, that decides instead of images.",
                ),
                threshold_input("The gate opens where the score is at least this."),
                io.Combo.Input(
                    "mode",
                    options=MODES,
                    default=MODES[0],
                    tooltip=(
                        "Where the gate stays shut: block stops what follows, silently; raise stops the whole run "
                        "with an error; either-or hands on otherwise instead."
                    ),
                ),
                io.Combo.Input(
                    "aggregation",
                    options=list(AGGREGATIONS),
                    default="minimum",
                    advanced=True,
                    tooltip="How several images' scores become one. minimum: all of them must reach the threshold.",
                ),
                model_input(),
                io.AnyType.Input(
                    "otherwise",
                    optional=True,
                    lazy=True,
                    tooltip="For either-or: comes out where the gate stays shut; only then is it computed.",
                ),
                coverage_input(),
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
        score: list[float] | None = None,
        model: list[Any] | None = None,
        **lazy: Any,
    ) -> list[str]:
        opened, _, _ = _judge(images, score, threshold, aggregation, coverage, model)
        wanted = "value" if opened else "otherwise" if first(mode) == "either-or" else None
        # An input that is wired but not computed yet is (None,); what is not wired is absent.
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
        score: list[float] | None = None,
        model: list[Any] | None = None,
        otherwise: list[Any] | None = None,
    ) -> io.NodeOutput:
        opened, number, values = _judge(images, score, threshold, aggregation, coverage, model)
        verdict = f"{number:.3f} {'>=' if opened else '<'} {first(threshold):.3f}"
        if opened:
            result: Any = list(value or [])
        elif first(mode) == "raise":
            raise ValueError(f"RALI Gate: the score is too low, {verdict}. The run was stopped, as mode says.")
        elif first(mode) == "either-or":
            if otherwise is None:
                raise ValueError("RALI Gate: mode either-or needs something wired to otherwise")
            result = list(otherwise)
        else:
            result = ExecutionBlocker(None)
        note = f"{'open' if opened else 'shut'}: {verdict}"
        return io.NodeOutput(result, opened, number, ui=show(values, threshold=first(threshold), note=note))
