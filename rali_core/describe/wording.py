"""Words for measured values, scores and known distortions, and the sentences made of them.

The cuts of the aspects come from the distribution on 500 training photographs of BIQ2021: "p90" beside a cut says that
90 % of those photographs lie below it. "Beyond" is where strong synthetic distortions lie, which none of the
photographs reached. In the tables, " | " stands between the ways to say one thing.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import astuple
from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .measures import Measurements

QUALITY_WORDS = ("bad", "poor", "fair", "good", "excellent")
"""The five-grade quality scale of ITU-R BT.500, worst first; equal fifths of the score's range."""
IMPAIRMENT_WORDS = ("very annoying", "annoying", "slightly annoying", "perceptible but not annoying", "imperceptible")
"""The five-grade impairment scale of ITU-R BT.500, in the same order."""
BORDER = 0.04
"""A score this near to the border of two grades is described as between them."""
LEVEL_WORDS = (
    ("very slight", "barely noticeable", "minimal"), ("slight", "mild", "light"),
    ("moderate", "clearly visible", "noticeable"), ("strong", "heavy", "severe"),
    ("extreme", "overwhelming", "massive"),
)  # fmt: skip
"""Adjectives for the levels 1 to 5 of a known distortion."""
VERDICTS = (
    "The quality of this {noun} is {quality}.", "Overall, the quality is {quality}.",
    "This {noun} has {quality} quality.", "Technically, this is {quality} quality.",
    "The impression that the {noun} makes is {quality}.", "Judged by its technical quality, the {noun} is {quality}.",
)  # fmt: skip
IMPAIRMENTS = ("Its flaws are {impairment}.", "To a viewer, its flaws are {impairment}.",
               "What is wrong with it is {impairment}.")  # fmt: skip
DAMAGES = ("It suffers from {level} {name}.", "The {noun} shows {level} {name}.", "The main flaw is {level} {name}.",
           "There is {level} {name}.", "{level} {name} affects the {noun}.")  # fmt: skip
NOUNS = ("image", "picture")
CONTRASTS = (", but ", ", while ", ", yet ")
ADDITIONS = (" and ", ", and ", "; ")
CLEAR_FLAW, MOST_FLAWS = 2, 4
"""Flaws of this severity or more are always mentioned, up to so many of them."""
FEWEST, MOST = 3, 6
"""Clauses about measurements in one description, strengths included."""


class Grade(NamedTuple):
    """How severe a flaw is (0 none or a strength, 1 a hint, 2 clear, 3 strong, 4 extreme), and clauses that say it."""

    severity: int
    clauses: tuple[str, ...]


class Aspect(NamedTuple):
    """Grades of a measurement: i + 1 from `cuts[i]` on. The higher its `weight`, the earlier its flaws come."""

    name: str
    weight: float
    cuts: tuple[float, ...]
    grades: tuple[Grade, ...]

    def grade(self, value: float) -> Grade:
        """The grade of a value."""
        return self.grades[bisect_right(self.cuts, value)]


class DistortionWords(NamedTuple):
    """Noun phrases for a type of distortion, clauses on what it does, and the measurements whose praise it silences."""

    names: tuple[str, ...]
    effects: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()


def _grade(text: str) -> Grade:
    return Grade(int(text[0]), tuple(text[2:].split(" | ")))


def _aspect(name: str, weight: float, cuts: tuple[float, ...], *grades: str) -> Aspect:
    return Aspect(name, weight, cuts, tuple(map(_grade, grades)))


def _words(names: str, effects: str, aspects: str = "") -> DistortionWords:
    return DistortionWords(tuple(names.split(" | ")), tuple(effects.split(" | ")), tuple(aspects.split()))


ASPECTS = (
    _aspect("blur", 1.3, (0.26, 0.4, 0.5, 0.62, 0.86),  # p11, p61, p86, p97, p99.8
        "0 edges are crisp | the image is very sharp | contours are finely drawn | focus is spot on",
        "0 sharpness is good | edges are clear | outlines are well defined | the picture is in focus",
        "1 edges are a little soft | sharpness is only moderate | the picture lacks some bite | "
          "outlines are slightly soft",
        "2 the picture is visibly blurred | edges are smeared | outlines are blurry | sharpness is clearly lacking",
        "3 the picture is heavily blurred | strong blur washes out the outlines | nothing is in focus | "
          "edges spread over many pixels",
        "4 extreme blur leaves only vague shapes | blur has wiped out all structure | hardly any edge can be made out"),
    _aspect("noise", 1.2, (0.7, 2.3, 5.0, 12.0, 25.0),  # p76, p95, p98.6, p99.8, beyond
        "0 there is no visible noise | even areas are clean | the image is free of grain | smooth areas stay smooth",
        "0 noise is low | only a trace of grain is left | a fine texture or grain covers the image",
        "1 some grain is visible | a little noise shows in even areas | there is light noise",
        "2 noise is plainly visible | the image looks grainy | noise disturbs the even areas",
        "3 the image is very noisy | strong noise covers everything | heavy grain hides fine detail",
        "4 extreme noise buries the content | the picture drowns in noise | noise is stronger than the detail"),
    _aspect("resolution", 1.0, (0.08, 0.2, 0.41, 0.56, 0.83),  # p0.6, p3, p10, p24, p74
        "4 hardly any detail is left | only the coarsest structures are resolved | "
          "it looks like a tiny image enlarged many times",
        "3 the effective resolution is very low | fine detail is missing altogether | it looks strongly enlarged",
        "2 the effective resolution is low | fine detail is missing | textures look washed out",
        "1 fine detail is limited | textures are somewhat smoothed | the resolution is moderate",
        "0 detail is good | textures are well resolved | the resolution is adequate",
        "0 detail reaches down to single pixels | fine textures are fully resolved | the resolution is high | "
          "it is rich in fine detail"),
    _aspect("blocking", 1.2, (1.38, 1.65, 1.85, 2.5, 4.0),  # p76, p95, p99, beyond, beyond
        "0 there are no blocks from compression | compression leaves no block edges | no block pattern can be seen",
        "1 faint block edges show on a close look | compression is just detectable",
        "2 block edges from compression are visible | JPEG blocks show in even areas",
        "2 blocking is plainly visible | the grid of compression blocks disturbs",
        "3 strong blocking covers the image | heavy compression breaks it into squares",
        "4 it falls apart into flat squares | extreme compression leaves little but 8 by 8 blocks"),
    _aspect("lightness", 1.0, (8.0, 20.0, 33.0, 60.0, 73.0, 88.0),  # p2, p9, p25, p76, p90, p98
        "4 it is almost black | the scene disappears in darkness",
        "3 it is far too dark | underexposure hides much of the scene | it is badly underexposed",
        "1 it is rather dark | the exposure is on the dark side | the tones are low",
        "0 exposure is balanced | brightness is well chosen | it is well exposed",
        "0 it is bright | the exposure is on the bright side | the tones are light",
        "2 it is very bright | the tones are too light | it looks overexposed",
        "4 it is almost white | brightness washes the scene out | it is badly overexposed"),
    _aspect("shadows", 0.7, (0.02, 0.07, 0.35),  # p90, p95, p98.6
        "0 shadows keep their detail | dark areas stay readable",
        "1 the deepest shadows are black",
        "2 shadows are crushed to black | dark areas have lost their detail",
        "3 large parts are pure black | much of it is swallowed by black shadows"),
    _aspect("highlights", 0.7, (0.03, 0.08, 0.35),  # p90, p95, p98.6
        "0 highlights keep their detail | bright areas are not clipped",
        "1 the brightest spots are clipped",
        "2 highlights are blown out | bright areas have lost their detail",
        "3 large parts are pure white | clipped highlights cover much of it"),
    _aspect("contrast", 1.0, (0.04, 0.08, 0.12, 0.16, 0.25, 0.31),  # p1, p5, p11, p26, p79, p95
        "4 there is next to no contrast | everything melts into one tone",
        "3 contrast is very low | it looks flat and veiled",
        "2 contrast is low | it looks flat | a veil lies over it",
        "1 contrast is a little low | tones lie close together",
        "0 contrast is good | the tonal range is well used | contrast looks natural",
        "0 contrast is strong | dark and light stand out clearly | it has punch",
        "1 contrast is very strong | contrast is hard | dark and light clash"),
    _aspect("colourfulness", 1.0, (3.0, 10.0, 22.0, 54.0, 76.0, 110.0),  # p1, p5, p25, p75, p90, p97
        "1 it has no colour | it is in shades of grey | it is monochrome",
        "1 there is hardly any colour | colours are nearly gone | it is almost monochrome",
        "0 colours are muted | colours are restrained | colours are pale",
        "0 colours look natural | saturation is balanced | colours are pleasant",
        "0 colours are vivid | colours are rich | saturation is high",
        "1 colours are very strong | saturation is very high",
        "2 colours are garish | colours are oversaturated | saturation is overdone"),
)  # fmt: skip
_DISTORTIONS = {  # names; effects; aspects
    "smear": "smearing | overdone denoising | smudging; texture turns into flat patches | surfaces look like wax; "
        "blur resolution",
    "chroma_noise": "colour noise | chroma noise; blotches of wrong colours cover it; noise",
    "upscaler": "upscaler artefacts | harsh upscaling; halos stand where detail should be | detail looks like plastic; "
        "blur resolution",
    "warp": "warping | wavy distortion; straight lines wobble | shapes look melted",
    "blur": "Gaussian blur | blur | softening; edges and textures melt away | fine detail is lost; blur resolution",
    "lens_blur": "defocus blur | lens blur | misfocus; points spread to discs | the lens seems out of focus; "
        "blur resolution",
    "motion_blur": "motion blur | camera shake; everything is smeared in one direction | outlines are drawn out; "
        "blur resolution",
    "noise": "white noise | sensor noise | Gaussian noise; coloured grain covers it; noise resolution",
    "impulse_noise": "impulse noise | salt-and-pepper noise; single pixels flash black, white or in wrong colours; "
        "noise resolution",
    "speckle_noise": "speckle noise | multiplicative noise; bright areas are full of speckles; noise resolution",
    "poisson_noise": "photon noise | shot noise | low-light noise; it looks as if too little light was caught; "
        "noise resolution",
    "jpeg": "JPEG compression | JPEG artefacts | block compression; "
        "blocks and ripples appear | colours smear within blocks; blocking blur resolution",
    "jpeg2000": "JPEG 2000 compression | wavelet compression; textures turn to smears with ripples at the edges; "
        "blocking blur resolution",
    "webp": "WebP compression | WebP artefacts; textures are smoothed to patches | detail turns to mush; "
        "blocking blur resolution",
    "low_resolution": "upscaling from a low resolution | loss of resolution | enlargement of a small image; "
        "fine detail is gone | it was enlarged from too few pixels; blur resolution",
    "pixelate": "pixelation | mosaic artefacts; large square pixels show | outlines turn to staircases; "
        "blur resolution blocking",
    "brighten": "overexposure | excessive brightness; highlights are washed out; lightness highlights",
    "darken": "underexposure | darkening; shadows swallow detail; lightness shadows",
    "contrast_low": "loss of contrast | flattened contrast; tones sit close together; contrast",
    "contrast_high": "excessive contrast | overdone contrast; tones are pushed to black and white; "
        "contrast shadows highlights",
    "saturation_low": "desaturation | loss of colour | fading of colours; colours look washed out; colourfulness",
    "saturation_high": "oversaturation | excessive saturation; colours glow unnaturally | colours clip; colourfulness",
    "oversharpen": "oversharpening | excessive sharpening; halos line every edge | textures look harsh and gritty; "
        "blur noise resolution",
    "banding": "banding | posterisation | colour quantisation; gradients break into steps",
    "colour_shift": "colour shift | colour misalignment | false colours; colours no longer sit where they belong; "
        "cast colourfulness",
    "colour_diffusion": "colour bleeding | colour diffusion; colours run over the outlines; cast colourfulness",
    "checkerboard": "checkerboard artefacts | grid artefacts of upsampling; a fine regular grid lies over it; "
        "noise resolution blocking",
    "ringing": "ringing | ripples along edges; outlines are echoed by ripples; blur resolution",
    "patch_jitter": "displacement of small patches | local jitter; lines are torn and displaced; blur resolution",
    "dither": "dithering | dither patterns; tones dissolve into dots; noise resolution",
    "haze": "haze | fog; a grey veil hides contrast and colour; contrast colourfulness lightness",
}  # fmt: skip
DISTORTION_WORDS = {name: _words(*text.split("; ")) for name, text in _DISTORTIONS.items()}
"""By the type's name in `rali_core.training.distortions`."""

HUES = ("reddish", "reddish-yellow", "yellowish", "greenish", "greenish", "cyan", "bluish", "bluish", "violet",
        "pinkish")  # fmt: skip
"""Names of the cast's direction, for ten equal sectors of the a*b* plane, the first one centred on 18 degrees."""
CAST_WEIGHT = 0.8


def describe_measurements(
    measurements: Measurements, *, score: float | None = None, distortion: str | None = None, level: int = 0, seed: int
) -> str:
    """Describe the quality of an image in a few sentences.

    Clear flaws are always mentioned, the worst first; the rest, and the wording, is drawn. Same arguments, same text.

    Args:
        measurements: Measurements of the image, with the distortion in it.
        score, distortion, level: See `DescriptionRequest`, which checks them; without a score there is no verdict.
        seed: Seed of the wording.
    """
    values = ",".join(f"{value:.3g}" for value in astuple(measurements))
    random = Random(f"{seed}|{distortion}|{level}|{score}|{values}")
    noun = random.choice(NOUNS)
    sentences = _measurement_sentences(measurements, distortion, 0.5 if score is None else score, random)
    if distortion is not None:
        sentences.insert(0, _distortion_sentences(distortion, level, noun, random))
    if score is not None:
        verdict = [random.choice(VERDICTS).format(noun=noun, quality=quality_words(score))]
        grade = _fifth(score)
        if random.random() < 0.4 and grade < 4:  # "imperceptible" flaws are better not mentioned
            verdict.append(random.choice(IMPAIRMENTS).format(impairment=IMPAIRMENT_WORDS[grade]))
        place = 0 if random.random() < 0.7 else len(sentences)
        sentences[place:place] = verdict
    return " ".join(sentences)


def describe_score(score: float, random: Random) -> str:
    """One sentence with the quality word of a score in [0, 1], and nothing else."""
    return random.choice(VERDICTS).format(noun=random.choice(NOUNS), quality=quality_words(score))


def quality_words(score: float) -> str:
    """The quality word of a score in [0, 1], or two of them if it is near their border."""
    border = round(score * 5.0)
    if 1 <= border <= 4 and abs(score - border / 5.0) < BORDER:
        return f"{QUALITY_WORDS[border - 1]} to {QUALITY_WORDS[border]}"
    return QUALITY_WORDS[_fifth(score)]


def words_for(distortion: str) -> DistortionWords:
    """The words for a type; one that is not in the table is named by its own name."""
    return DISTORTION_WORDS.get(distortion) or DistortionWords((distortion.replace("_", " ").strip(),))


def grade_all(measurements: Measurements) -> dict[str, tuple[Grade, float]]:
    """Grade and weight of every aspect, by the measurement's name."""
    graded = {aspect.name: (aspect.grade(getattr(measurements, aspect.name)), aspect.weight) for aspect in ASPECTS}
    return {**graded, "cast": (grade_cast(measurements), CAST_WEIGHT)}


def grade_cast(measurements: Measurements) -> Grade:
    """The colour cast's grade: a cast counts if it is visible and the whole image leans to its side."""
    cast, dominance = measurements.cast, measurements.cast_dominance
    hue = HUES[int(measurements.cast_hue // 36.0) % len(HUES)]
    if cast < 10.0 or dominance < 0.1:  # dominance: p75, and 0.6 is p90, 1.2 is p95
        return _grade("0 there is no colour cast | colours are neutral | the white balance is right")
    if dominance < 0.6:
        return _grade(f"0 the colours lean slightly to the {hue} | there is a light {hue} tint")
    if dominance < 1.2 or cast < 24.0:
        return _grade(f"1 a {hue} tint lies over it | colours have a {hue} cast")
    return _grade(f"2 a strong {hue} cast covers everything | the {hue} cast is strong")


def _fifth(score: float) -> int:
    return min(int(score * 5.0), 4)


def _distortion_sentences(distortion: str, level: int, noun: str, random: Random) -> str:
    words, damage = words_for(distortion), random.choice(DAMAGES)
    level_word = random.choice(LEVEL_WORDS[level - 1])
    sentence = damage.format(level=level_word, name=random.choice(words.names), noun=noun)
    if words.effects and level >= 3:
        sentence = f"{sentence[:-1]}: {random.choice(words.effects)}."
    return sentence[0].upper() + sentence[1:]


def _measurement_sentences(
    measurements: Measurements, distortion: str | None, score: float, random: Random
) -> list[str]:
    """Sentences about what was measured: the clear flaws, worst first, then a draw of the rest.

    Of the rest, hints of a flaw come more readily the lower the score is, and strengths the higher it is.
    """
    graded = grade_all(measurements)
    unsaid = set(words_for(distortion).aspects if distortion is not None else ())
    if graded["noise"][0].severity >= CLEAR_FLAW:
        unsaid |= {"blur", "resolution"}  # noise is mistaken for detail there
    flaws: list[tuple[float, Grade]] = []
    others: list[tuple[float, Grade]] = []
    for name, (grade, weight) in graded.items():
        if grade.severity >= CLEAR_FLAW:
            flaws.append((grade.severity * weight + random.random() * 0.5, grade))
        elif name not in unsaid or grade.severity:
            others.append((random.random() + (1.0 - score if grade.severity else score), grade))
    told, rest = ([grade for _, grade in sorted(part, key=lambda item: -item[0])] for part in (flaws, others))
    told = told[:MOST_FLAWS]
    wanted = random.randint(max(FEWEST, len(told)), max(MOST - 1, min(len(told) + 1, MOST)))
    return _join(told + rest[: wanted - len(told)], random)


def _join(grades: list[Grade], random: Random) -> list[str]:
    """One or two clauses to a sentence."""
    sentences = []
    while grades:
        count = 2 if random.random() < 0.65 else 1
        pair, grades = grades[:count], grades[count:]
        clauses = [random.choice(grade.clauses) for grade in pair]
        contrary = len({grade.severity >= CLEAR_FLAW for grade in pair}) == 2
        clause = random.choice(CONTRASTS if contrary else ADDITIONS).join(clauses) if len(pair) == 2 else clauses[0]
        sentences.append(clause[0].upper() + clause[1:] + ".")
    return sentences
