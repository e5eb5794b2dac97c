"""Natural sentences from measurements, score and known distortion; every choice comes from the seed."""

from __future__ import annotations

import math
from dataclasses import astuple
from random import Random

from .distortion_words import LEVEL_WORDS, LEVELS, words_for
from .measurements import Measurements
from .words import Grade, grade_all

QUALITY_WORDS = ("bad", "poor", "fair", "good", "excellent")
"""The five-grade quality scale of ITU-R BT.500, worst first; equal fifths of the score's range."""
IMPAIRMENT_WORDS = (
    "very annoying",
    "annoying",
    "slightly annoying",
    "perceptible but not annoying",
    "imperceptible",
)
"""The five-grade impairment scale of ITU-R BT.500, in the same order."""
BORDER = 0.04
"""A score this near to the border of two grades is said to lie between them."""

VERDICTS = (
    "The quality of this {noun} is {quality}.",
    "Overall, the quality is {quality}.",
    "This {noun} has {quality} quality.",
    "Technically, this is {quality} quality.",
    "The impression that the {noun} makes is {quality}.",
    "Judged by its technical quality, the {noun} is {quality}.",
)
IMPAIRMENTS = ("Its flaws are {impairment}.", "To a viewer, its flaws are {impairment}.",
               "What is wrong with it is {impairment}.")  # fmt: skip
DAMAGES = (
    "It suffers from {level} {name}.",
    "The {noun} shows {level} {name}.",
    "The main flaw is {level} {name}.",
    "There is {level} {name}.",
    "{level} {name} affects the {noun}.",
)
NOUNS = ("image", "picture")
CONTRASTS = (", but ", ", while ", ", yet ")
ADDITIONS = (" and ", ", and ", "; ")
CLEAR_FLAW = 2
MOST_FLAWS = 4
FEWEST, MOST = 3, 6
"""Clauses about measurements in one description, strengths included."""


def describe_image(
    measurements: Measurements, *, score: float | None = None, distortion: str | None = None, level: int = 0, seed: int
) -> str:
    """Describe the quality of an image in a few sentences.

    Clear flaws are always told, the worst first; what else is told, and how, is drawn. Same arguments, same text.

    Args:
        measurements: Of the image, with the distortion in it.
        score: Human score in [0, 1], 1 is best; sets the quality word. None: no verdict is given.
        distortion: Type of a synthetic distortion; names without an entry in `DISTORTION_WORDS` are used as they are.
        level: 1 (weakest) to 5 with a distortion, 0 without.
        seed: Seed of the wording.

    Raises:
        ValueError: A score outside [0, 1], a level without a distortion, or one outside 1..5 with it.
    """
    if score is not None and not 0.0 <= score <= 1.0:
        raise ValueError(f"score must lie in [0, 1], or be None, got {score}")
    if distortion is None and level != 0:
        raise ValueError(f"level must be 0 without a distortion, got {level}")
    if distortion is not None and not 1 <= level <= LEVELS:
        raise ValueError(f"level must lie in 1..{LEVELS} with a distortion, got {level} for {distortion!r}")
    values = ",".join(f"{value:.3g}" for value in astuple(measurements))
    random = Random(f"{seed}|{distortion}|{level}|{score}|{values}")
    noun = random.choice(NOUNS)
    observations = _observe(measurements, distortion, 0.5 if score is None else score, random)
    if distortion is not None:
        observations.insert(0, _tell_distortion(distortion, level, noun, random))
    if score is not None:
        verdict = [random.choice(VERDICTS).format(noun=noun, quality=quality_words(score))]
        if random.random() < 0.4:
            grade = min(int(score * 5.0), 4)
            if grade < 4:  # "imperceptible" flaws are better not mentioned
                verdict.append(random.choice(IMPAIRMENTS).format(impairment=IMPAIRMENT_WORDS[grade]))
        place = 0 if random.random() < 0.7 else len(observations)
        observations[place:place] = verdict
    return " ".join(observations)


def quality_words(score: float) -> str:
    """The quality word of a score in [0, 1], or two of them where it lies near their border."""
    grade = min(int(score * 5.0), 4)
    border = round(score * 5.0)
    if 1 <= border <= 4 and math.fabs(score - border / 5.0) < BORDER:
        return f"{QUALITY_WORDS[border - 1]} to {QUALITY_WORDS[border]}"
    return QUALITY_WORDS[grade]


def _tell_distortion(distortion: str, level: int, noun: str, random: Random) -> str:
    words = words_for(distortion)
    sentence = random.choice(DAMAGES).format(
        level=random.choice(LEVEL_WORDS[level - 1]), name=random.choice(words.names), noun=noun
    )
    if words.effects and level >= 3:
        sentence = f"{sentence[:-1]}: {random.choice(words.effects)}."
    return sentence[0].upper() + sentence[1:]


def _observe(measurements: Measurements, distortion: str | None, score: float, random: Random) -> list[str]:
    """Sentences about what was measured: the clear flaws, worst first, then a draw of the rest.

    Of the rest, hints of a flaw come more readily the lower the score is, and strengths the higher it is.
    """
    graded = grade_all(measurements)
    unsaid = set(words_for(distortion).aspects if distortion is not None else ())
    if graded["noise"][0].severity >= CLEAR_FLAW:
        unsaid |= {"blur", "resolution"}  # noise passes for detail there
    flaws: list[tuple[float, Grade]] = []
    others: list[tuple[float, Grade]] = []
    for name, (grade, weight) in graded.items():
        if grade.severity >= CLEAR_FLAW:
            flaws.append((grade.severity * weight + random.random() * 0.5, grade))
        elif name not in unsaid or grade.severity:
            others.append((random.random() + (1.0 - score if grade.severity else score), grade))
    flaws.sort(key=lambda item: -item[0])
    others.sort(key=lambda item: -item[0])
    told = [grade for _, grade in flaws[:MOST_FLAWS]]
    wanted = random.randint(max(FEWEST, len(told)), max(MOST - 1, min(len(told) + 1, MOST)))
    told += [grade for _, grade in others[: wanted - len(told)]]
    return _join(told, random)


def _join(grades: list[Grade], random: Random) -> list[str]:
    """One or two clauses to a sentence."""
    sentences = []
    position = 0
    while position < len(grades):
        pair = grades[position : position + (2 if random.random() < 0.65 else 1)]
        clauses = [random.choice(grade.clauses) for grade in pair]
        position += len(pair)
        if len(pair) == 2:
            contrary = (pair[0].severity >= CLEAR_FLAW) != (pair[1].severity >= CLEAR_FLAW)
            clause = random.choice(CONTRASTS if contrary else ADDITIONS).join(clauses)
        else:
            clause = clauses[0]
        sentences.append(clause[0].upper() + clause[1:] + ".")
    return sentences
