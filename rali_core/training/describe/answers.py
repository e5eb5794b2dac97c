"""What is asked of a reasoning model, and how its answer is read.

After W. Li et al., "Q-Insight: Understanding Image Quality via Visual Reinforcement Learning", NeurIPS 2025: the model
reasons about the quality between think tags and then gives a rating from 1 to 5 as JSON between answer tags. RALI
trains on the text between the think tags. The question is in our own words, and can be replaced by the very words that
a model was trained with.
"""

from __future__ import annotations

import json
import re

from .describer import Description

WORST, BEST = 1.0, 5.0
"""Ends of the rating scale."""

PROMPT = """\
How good is the quality of this image? Look at its sharpness, noise, compression, exposure, contrast and colours, and \
at whatever else disturbs or pleases, and reason about it step by step. Then rate the quality with a number from 1 \
(very bad) to 5 (excellent) that has two decimals.
Put your reasoning between <think> and </think>. After it, put only the rating, as JSON with the single key "rating", \
between <answer> and </answer>, for example: <think>...</think><answer>{"rating": 3.47}</answer>"""

THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL | re.IGNORECASE)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def read_answer(output: str) -> Description:
    """Read what a model wrote.

    Args:
        output: Everything that the model wrote.

    Returns:
        The text between the think tags, white space made single, and the rating mapped from 1..5 to [0, 1].

    Raises:
        ValueError: There is no closed think block with words in it, no closed answer block, more than one of either, or
            no single rating from 1 to 5 in the answer.
    """
    thought = " ".join(_only(THINK, output, "think").split())
    if not any(character.isalpha() for character in thought):
        raise ValueError("the think block holds no words")
    rating = _read_rating(_only(ANSWER, output, "answer"))
    if not WORST <= rating <= BEST:  # also NaN, which JSON as Python reads it can hold
        raise ValueError(f"expected a rating from {WORST:g} to {BEST:g}, got {rating:g}")
    return Description(thought, (rating - WORST) / (BEST - WORST))


def _only(pattern: re.Pattern[str], output: str, name: str) -> str:
    found: list[str] = pattern.findall(output)
    if len(found) != 1:
        raise ValueError(f"expected one closed {name} block, got {len(found)}")
    return found[0]


def _read_rating(answer: str) -> float:
    """The rating in an answer: JSON with the key `rating`, as asked, or else the only number that is there."""
    try:
        parsed = json.loads(answer[answer.index("{") : answer.rindex("}") + 1])
        return float(parsed["rating"])
    except (ValueError, KeyError, TypeError):  # not JSON, another key, not a number
        numbers = NUMBER.findall(answer)
        if len(numbers) != 1:
            raise ValueError(f"expected one rating in the answer, got {answer.strip()[:80]!r}") from None
        return float(numbers[0])
