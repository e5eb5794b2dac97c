"""RALI Retry Start and RALI Retry End: what is between them is repeated with new seeds until it is good."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor

from ..rali_core.constants import MAX_SEED, SEED_STEP
from ._attachments import block_output
from ._convert import check_numbers, join_images, split_images
from ._inputs import (
    KEEPS_ITS_PANEL,
    coverage_input,
    direction_input,
    images_input,
    model_input,
    scale_of,
    scores_input,
    threshold_input,
)
from ._panel import Note
from ._scoring import (
    AGGREGATIONS,
    Scores,
    check_threshold,
    judge_pixels,
    scalar,
    score_panel,
    score_what_can_be,
)

if TYPE_CHECKING:
    from ..rali_core.graph_loop import Attempt, Retry

# What repeats nodes is imported where it is used, because ComfyUI imports this module at its start.

RetryType = io.Custom("RALI_RETRY")
VALUES = ("value_1", "value_2", "value_3")
SEED, ATTEMPT = 1, 2
"""Output indexes of RALI Retry Start."""


class RaliRetryStart(io.ComfyNode):
    """Gives the seeds of a loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_RetryStart",
            display_name="RALI Retry Start",
            category="RALI",
            description=(
                "Begins a part of the workflow that is repeated until RALI Retry End finds its images good enough. "
                "Connect seed to the sampler (any sampler) and retry to RALI Retry End."
            ),
            search_aliases=["retry", "loop", "until good", "repeat until", "while loop", "reroll"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip=(
                        f"Seed of the first try; each next one is {SEED_STEP:,} higher, so that with control after "
                        "generate on increment no seed is tried twice."
                    ),
                )
            ],
            outputs=[
                RetryType.Output("retry", tooltip="For RALI Retry End."),
                io.Int.Output("seed", tooltip="This try's seed, for the sampler between the two nodes."),
                io.Int.Output("attempt", tooltip="1 for the first try, 2 for the next, ..."),
            ],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        from ..rali_core.graph_loop import Retry

        return io.NodeOutput(Retry(cls.hidden.unique_id, (seed,)), seed, 1)


class RaliRetryEnd(io.ComfyNode):
    """Repeats what is between, and keeps the best."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_RetryEnd",
            display_name="RALI Retry End",
            category="RALI",
            description=(
                "Repeats all that lies between RALI Retry Start and this node (any sampler, hires fix, img2img, "
                "inpainting, other packs' nodes) with a new seed, until the images reach the threshold or n tries are "
                "done, and outputs the best try. Running again after an interrupt resumes after the tries that are "
                "done, as long as ComfyUI has them in its cache."
            ),
            search_aliases=["retry", "loop", "until good", "repeat until", "while loop", "reroll", "best of n"],
            is_input_list=True,
            enable_expand=True,
            **KEEPS_ITS_PANEL,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                RetryType.Input("retry", tooltip="From RALI Retry Start."),
                images_input("What a try makes: one image, or a batch of one size."),
                io.Int.Input("n", default=4, min=1, max=256, tooltip="How many tries at most."),
                threshold_input(
                    "Stop at the first try whose images have at least this score; of connected scores in their own "
                    "scale.",
                    any_scale=True,
                ),
                io.Combo.Input(
                    "aggregation",
                    options=list(AGGREGATIONS),
                    default="minimum",
                    advanced=True,
                    tooltip="How a batch's scores become one. minimum: all its images must reach the threshold.",
                ),
                coverage_input(),
                *(
                    io.AnyType.Input(
                        name,
                        optional=True,
                        tooltip="Anything that the try made, such as its latent; that of the best comes out.",
                    )
                    for name in VALUES
                ),
                model_input(),
                scores_input("Another scorer's scores, one per image; then nothing is scored here."),
                direction_input(),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The images of the best try."),
                io.Float.Output("score", tooltip="Its score."),
                io.Int.Output("seed", tooltip="Its seed."),
                io.Int.Output("tries", tooltip="How many tries were made."),
                io.Boolean.Output("passed", tooltip="Whether the threshold was reached."),
                io.String.Output("report", tooltip="Every try with its seed and score."),
                *(io.AnyType.Output(name, tooltip=f"The best try's {name}, if connected.") for name in VALUES),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        retry: list[Retry],
        images: list[Tensor],
        n: list[int],
        threshold: list[float],
        aggregation: list[Any],
        coverage: list[str],
        model: list[Any] | None = None,
        scores: list[Any] | None = None,
        scores_direction: list[str] | None = None,
        **values: list[Any],
    ) -> io.NodeOutput:
        single = split_images(images)
        result = _single(single, values)
        limit, wired = scalar(threshold), check_numbers(scores, len(single), "scores")
        if wired:
            scored = judge_pixels(single, wired, scale_of(scores_direction))
        else:
            check_threshold(limit)
            scored = score_what_can_be(single, scalar(model), scalar(coverage))
        loop = retry[0].after(_attempt(retry[0].seeds[-1], scored, scalar(aggregation), result))
        assert loop.best is not None
        passed = scored.scale.reaches(scored.scale.upwards([loop.best.score])[0], limit)
        if passed or len(loop.lines) >= scalar(n):
            return _output(loop, scored, limit, passed)
        return _again(loop, cls.hidden.unique_id, cls.hidden.dynprompt, len(cls.RETURN_TYPES))


def _single(images: list[Tensor], values: dict[str, list[Any]]) -> tuple[Tensor, dict[str, Any]]:
    """A try's images as one batch, and its attachments.

    Raises:
        ValueError: No images, of different sizes, or a value that is a list: a repeated node cannot output lists.
    """
    joined = join_images(images)
    if len(joined) != 1:
        what = "images of different sizes" if images else "none"
        raise ValueError(f"images: expected one image, or several of one size, from each try, got {what}")
    for name, value in values.items():
        if len(value) > 1:
            raise ValueError(f"{name}: expected one thing from each try, or one batch, got a list of {len(value)}")
    return joined[0], {name: value[0] for name, value in values.items() if value}


def _attempt(seed: int, scored: Scores, aggregation: Any, result: Any) -> Attempt:
    from ..rali_core.graph_loop import Attempt

    number = scored.aggregate(aggregation)
    remarks = scored.remarks()
    if all(isnan(value) for value in scored.values):
        return Attempt(seed, float("nan"), result, remarks or "no score")
    text = f"{number:.4f}" + (f", {remarks}" if remarks else "")
    return Attempt(seed, scored.scale.upwards([number])[0], result, text)


def _again(loop: Retry, here: str, graph: Any, outputs: int) -> io.NodeOutput:
    """One more try, as new nodes of the running prompt.

    Raises:
        ValueError: The seed is not used between the two nodes.
    """
    from ..rali_core.graph_loop import copy_between

    end = loop.end or here
    following = loop.next(end)
    if not _uses_seed(loop.start, end, graph):
        raise ValueError(
            "RALI Retry: nothing between RALI Retry Start and RALI Retry End uses its seed or attempt, so that every "
            "try would be the same: connect seed to the sampler"
        )
    prefix = GraphBuilder.alloc_prefix()
    copies = copy_between(
        graph.get_node, loop.start, end,
        outputs={SEED: following.seeds[-1], ATTEMPT: len(following.seeds)},
        inputs={"retry": following}, prefix=prefix,
    )  # fmt: skip
    for name, node in copies.items():
        node["override_display_id"] = graph.get_display_node_id(name.removeprefix(prefix))
    return io.NodeOutput(*([prefix + end, number] for number in range(outputs)), expand=copies)


def _uses_seed(start: str, end: str, graph: Any) -> bool:
    from ..rali_core.graph_loop import nodes_between

    inputs = [graph.get_node(name)["inputs"] for name in nodes_between(graph.get_node, start, end)]
    return any([start, number] in each.values() for each in inputs for number in (SEED, ATTEMPT))


def _output(loop: Retry, scored: Scores, threshold: float, passed: bool) -> io.NodeOutput:
    best = loop.best
    assert best is not None
    if isnan(best.score):
        raise ValueError(f"RALI Retry: none of the {len(loop.lines)} tries made an image with a score: {loop.lines[0]}")
    tries = len(loop.lines)
    text = f"{tries} {'try' if tries == 1 else 'tries'}"
    ending = Note.of("reached" if passed else "not reached", threshold=f"{threshold:g}", count=tries, tries=text)
    score = scored.scale.upwards([best.score])[0]
    images, values = best.result
    return io.NodeOutput(
        images,
        score,
        best.seed,
        tries,
        passed,
        "\n".join([str(ending), *loop.lines]),
        *(values.get(name, block_output()) for name in VALUES),
        ui=score_panel(
            Scores([score], [None], scored.calibration, scored.scale),
            threshold=threshold,
            note=Note.of("best seed", seed=str(best.seed)),
            more=[ending],
        ),
    )
