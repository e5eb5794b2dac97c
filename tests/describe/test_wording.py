"""Descriptions: seeded, varied, true to measurements, score and distortion, and English."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest

from rali_core.describe.measures import Measurements
from rali_core.describe.wording import (
    ASPECTS,
    DISTORTION_WORDS,
    HUES,
    LEVEL_WORDS,
    QUALITY_WORDS,
    Aspect,
    describe_measurements,
    grade_all,
    grade_cast,
    quality_words,
    words_for,
)
from rali_core.training.distortions import DISTORTIONS

PLAIN = Measurements(
    blur=0.3, noise=0.4, resolution=0.7, blocking=1.2, lightness=50.0, shadows=0.0,
    highlights=0.0, contrast=0.2, cast=3.0, cast_hue=60.0, cast_dominance=-0.5, colourfulness=40.0,
)  # fmt: skip
HIGHEST = {"noise": 40.0, "blocking": 6.0, "lightness": 100.0, "contrast": 0.5,
           "cast": 60.0, "cast_hue": 360.0, "cast_dominance": 3.0, "colourfulness": 150.0}  # fmt: skip
BY_NAME = {aspect.name: aspect for aspect in ASPECTS}


def draw_measurements(seed: int) -> Measurements:
    random = np.random.default_rng(seed)
    return Measurements(
        **{field.name: float(random.uniform(0.0, HIGHEST.get(field.name, 1.0))) for field in fields(PLAIN)}
    )


def test_the_same_arguments_give_the_same_text_and_seeds_give_different_ones() -> None:
    texts = [describe_measurements(PLAIN, score=0.5, distortion="blur", level=2, seed=seed) for seed in range(30)]
    assert texts == [
        describe_measurements(PLAIN, score=0.5, distortion="blur", level=2, seed=seed) for seed in range(30)
    ]
    assert len(set(texts)) == 30


@pytest.mark.parametrize("seed", range(200))
def test_every_description_is_made_of_whole_english_sentences(seed: int) -> None:
    names = [None, *DISTORTION_WORDS, "some_new_kind"]
    kind = names[seed % len(names)]
    text = describe_measurements(
        draw_measurements(seed), score=(seed % 21) / 20, distortion=kind, level=1 + seed % 5 if kind else 0, seed=seed
    )
    sentences = re.split(r"(?<=\.) ", text)
    assert 2 <= len(sentences) <= 12
    for sentence in sentences:
        assert re.fullmatch(r"[A-Z0-9].*[a-z0-9]\.", sentence), sentence
    assert not re.search(r"[{}_]|  |\ba [aeio]|\ban [^aeiou]", text), text


@pytest.mark.parametrize(
    ("score", "words"),
    [(0.0, "bad"), (0.1, "bad"), (0.19, "bad to poor"), (0.22, "bad to poor"), (0.3, "poor"), (0.5, "fair"),
     (0.6, "fair to good"), (0.7, "good"), (0.8, "good to excellent"), (0.9, "excellent"), (1.0, "excellent")],
)  # fmt: skip
def test_the_score_sets_the_quality_words(score: float, words: str) -> None:
    assert quality_words(score) == words
    assert f" {words}" in describe_measurements(PLAIN, score=score, seed=3)


def test_without_a_score_there_is_no_verdict() -> None:
    for seed in range(20):
        text = describe_measurements(PLAIN, seed=seed)
        assert not re.search(r"\b(bad|poor|fair|excellent|quality|flaws|impression)\b", text), text
    assert len(QUALITY_WORDS) == 5


@pytest.mark.parametrize("kind", sorted({*DISTORTIONS, "lens_blur", "oversharpen", "haze", "a_kind_that_is_new"}))
@pytest.mark.parametrize("level", range(1, 6))
def test_a_distortion_is_named_with_its_level(kind: str, level: int) -> None:
    text = describe_measurements(PLAIN, distortion=kind, level=level, seed=level).lower()
    assert any(f"{word} {name.lower()}" in text for word in LEVEL_WORDS[level - 1] for name in words_for(kind).names), (
        text
    )


def test_every_distortion_of_the_package_has_its_own_words() -> None:
    assert set(DISTORTIONS) <= set(DISTORTION_WORDS)
    assert words_for("a_kind_that_is_new").names == ("a kind that is new",)
    known = {field.name for field in fields(Measurements)}
    assert all(set(words.aspects) <= known for words in DISTORTION_WORDS.values())


def test_a_distortion_silences_the_praise_that_it_makes_untrue() -> None:
    praise = {clause for grade in BY_NAME["blur"].grades if not grade.severity for clause in grade.clauses}
    sharp = replace(PLAIN, blur=0.2)
    blurred = [describe_measurements(sharp, distortion="blur", level=1, seed=seed).lower() for seed in range(40)]
    assert not any(clause in text for clause in praise for text in blurred)
    assert any(clause in describe_measurements(sharp, seed=seed).lower() for clause in praise for seed in range(40))


@pytest.mark.parametrize("aspect", ASPECTS, ids=lambda aspect: aspect.name)
def test_a_clear_flaw_is_always_mentioned(aspect: Aspect) -> None:
    for value in np.linspace(0.0, HIGHEST.get(aspect.name, 1.0), 60):
        grade = aspect.grade(value)
        if grade.severity >= 2:
            for seed in range(5):
                text = describe_measurements(
                    replace(PLAIN, **{aspect.name: float(value)}), score=0.9, seed=seed
                ).lower()
                assert any(clause.lower() in text for clause in grade.clauses), (value, text)


def test_the_worst_flaw_is_mentioned_first() -> None:
    ruined = replace(PLAIN, noise=30.0, contrast=0.11)
    for seed in range(20):
        text = describe_measurements(ruined, seed=seed).lower()
        where = [
            min(text.find(clause) for clause in grade_all(ruined)[name][0].clauses if clause in text)
            for name in ("noise", "contrast")
        ]
        assert where == sorted(where), text
    assert BY_NAME["noise"].grade(30.0).severity == 4


def test_a_low_score_draws_hints_of_flaws_and_a_high_one_strengths() -> None:
    hints = replace(PLAIN, blur=0.45, noise=3.0, resolution=0.5, contrast=0.14)
    words = [clause for name, (grade, _) in grade_all(hints).items() if grade.severity == 1 for clause in grade.clauses]

    def count(score: float) -> int:
        texts = [describe_measurements(hints, score=score, seed=seed).lower() for seed in range(40)]
        return sum(text.count(word) for text in texts for word in words)

    assert count(0.1) > 1.5 * count(0.9)


def test_a_cast_counts_where_it_is_strong_and_the_whole_image_leans() -> None:
    assert grade_cast(replace(PLAIN, cast=40.0, cast_dominance=0.0)).severity == 0
    assert grade_cast(replace(PLAIN, cast=5.0, cast_dominance=2.0)).severity == 0
    strong = grade_cast(replace(PLAIN, cast=40.0, cast_dominance=2.0, cast_hue=265.0))
    assert strong.severity == 2
    assert all("bluish" in clause for clause in strong.clauses)
    assert len(HUES) == 10


@pytest.mark.parametrize("aspect", ASPECTS, ids=lambda aspect: aspect.name)
def test_every_aspect_has_one_grade_more_than_cuts(aspect: Aspect) -> None:
    cuts = aspect.cuts
    assert list(cuts) == sorted(set(cuts))
    assert len(aspect.grades) == len(cuts) + 1
    assert aspect.name in {field.name for field in fields(Measurements)}
