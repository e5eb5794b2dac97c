"""RALI Combine Scores."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..rali_core.attachments import flat_numbers
from ..rali_core.combine import Combination, Normalisation, combine_scores
from ..rali_core.scales import share_a_scale
from ..rali_core.selection import rank
from ._inputs import KEEPS_ITS_PANEL
from ._panel import Note
from ._scoring import Scores, indexes_text, scalar, score_panel

LETTERS = "abcd"


class RaliCombineScores(io.ComfyNode):
    """Combines several scorers' numbers into one per image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        lists = [
            io.Float.Input(
                f"scores_{letter}",
                optional=letter != "a",
                force_input=True,
                tooltip="One scorer's scores, one per image, higher is better.",
            )
            for letter in LETTERS
        ]
        weights = [
            io.Float.Input(
                f"weight_{letter}",
                default=1.0,
                min=0.0,
                max=100.0,
                step=0.05,
                tooltip=f"Weight of scores_{letter}; 0 leaves it out.",
            )
            for letter in LETTERS
        ]
        return io.Schema(
            node_id="RALI_CombineScores",
            display_name="RALI Combine Scores",
            category="RALI",
            description=(
                "Combines up to four lists of scores of the same images into one, for example quality, aesthetics and "
                "prompt adherence. A pick that two different scorers agree on is more reliable."
            ),
            search_aliases=["weighted score", "ensemble", "merge scores", "mean score", "reward"],
            is_input_list=True,
            **KEEPS_ITS_PANEL,
            inputs=[
                *lists,
                *weights,
                io.Combo.Input(
                    "normalisation",
                    options=list(get_args(Normalisation)),
                    default="none",
                    tooltip=(
                        "Applied to each list first. none: they share one scale already, and it is refused where they "
                        "do not. min-max, z-score, rank: compare within this batch; the result is no longer absolute."
                    ),
                ),
                io.Combo.Input(
                    "combination",
                    options=list(get_args(Combination)),
                    default="mean",
                    tooltip=(
                        "mean: weighted. minimum: an image is as good as its worst score. geometric mean: one bad "
                        "score weighs more than in the mean."
                    ),
                ),
                io.String.Input(
                    "lower_is_better",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip='Lists in which a lower score is better (NIQE, BRISQUE, LPIPS), such as "b" or "a,c".',
                ),
            ],
            outputs=[
                io.Float.Output("scores", is_output_list=True, tooltip="One combined score per image."),
                io.String.Output("indexes", tooltip="The images from best to worst, counted from 0."),
                io.String.Output("report", tooltip="What each list contributed, per image."),
            ],
        )

    @classmethod
    def execute(
        cls,
        normalisation: list[str],
        combination: list[str],
        lower_is_better: list[str] | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        wired = [letter for letter in LETTERS if inputs.get(f"scores_{letter}")]
        weights = [scalar(inputs[f"weight_{letter}"]) for letter in wired]
        turned = _letters(scalar(lower_is_better, ""))
        given = {letter: [float(x) for x in flat_numbers(inputs[f"scores_{letter}"])] for letter in wired}
        used = [scores for scores, weight in zip(given.values(), weights, strict=True) if weight > 0]
        if scalar(normalisation) == "none" and not share_a_scale(used):
            raise ValueError(_different_scales(given))
        lists = [[-score for score in scores] if letter in turned else scores for letter, scores in given.items()]
        scores = combine_scores(
            lists, weights=weights, normalisation=scalar(normalisation), combination=scalar(combination)
        ).tolist()
        order = rank(scores)
        note = Note.of("combined", how=scalar(combination), count=len(wired))
        panel = score_panel(Scores(scores, [None] * len(scores)), note=note)
        return io.NodeOutput(scores, indexes_text(order), _report(scores, order, given), ui=panel)


def _report(scores: list[float], order: list[int], given: dict[str, list[float]]) -> str:
    """A line per image, best first: its score, and what each list gave it."""
    return "\n".join(
        f"image {index}: {scores[index]:.4f} from "
        + ", ".join(f"{letter} {values[index]:.4f}" for letter, values in given.items())
        for index in order
    )


def _letters(text: str) -> set[str]:
    """Letters of lists from "a, c".

    Raises:
        ValueError: An unknown letter.
    """
    letters = {part.strip() for part in text.lower().split(",")} - {""}
    if not letters <= set(LETTERS):
        raise ValueError(f'lower_is_better: expected letters of lists such as "b" or "a,c", got {text!r}')
    return letters


def _different_scales(lists: dict[str, list[float]]) -> str:
    ranges = ", ".join(f"scores_{letter} {min(scores):g} to {max(scores):g}" for letter, scores in lists.items())
    return (
        f"the lists have different scales ({ranges}), and a mean of them would be that of the largest: choose the "
        "normalisation min-max, z-score or rank"
    )
