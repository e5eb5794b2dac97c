"""Words for measured values: which grade a value has and how that grade is said.

The cuts come from the distribution on 500 training photographs of BIQ2021 (drawn with seed 0,
`bench/describe_statistics.py`): "p90" beside a cut says that 90 % of those photographs lie below it. "Beyond" is
where strong synthetic distortions lie, which none of the photographs reached.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from .measurements import Measurements


@dataclass(frozen=True)
class Grade:
    """One step of an aspect.

    Attributes:
        severity: 0 a strength or nothing wrong, 1 a hint of a flaw, 2 a clear flaw, 3 a strong, 4 an extreme one.
        clauses: Ways to say it, each a clause that can stand alone.
    """

    severity: int
    clauses: tuple[str, ...]


@dataclass(frozen=True)
class Aspect:
    """One measured property and its grades.

    Attributes:
        name: The measurement that it is read from.
        cuts: Ascending limits; a value of at least `cuts[i]` has grade i + 1 or more.
        grades: One more than `cuts`.
        weight: How readily a flaw of this kind is told first, among flaws of the same severity.
    """

    name: str
    cuts: tuple[float, ...]
    grades: tuple[Grade, ...]
    weight: float = 1.0

    def grade(self, value: float) -> Grade:
        """The grade of a value."""
        return self.grades[bisect_right(self.cuts, value)]


BLUR = Aspect(
    "blur",
    (0.26, 0.40, 0.50, 0.62, 0.86),  # p11, p61, p86, p97, p99.8
    (
        Grade(0, ("edges are crisp", "the image is very sharp", "contours are finely drawn", "focus is spot on")),
        Grade(0, ("sharpness is good", "edges are clear", "outlines are well defined", "the picture is in focus")),
        Grade(1, ("edges are a little soft", "sharpness is only moderate", "the picture lacks some bite",
                  "outlines are slightly soft")),
        Grade(2, ("the picture is visibly blurred", "edges are smeared", "outlines are blurry",
                  "sharpness is clearly lacking")),
        Grade(3, ("the picture is heavily blurred", "strong blur washes out the outlines", "nothing is in focus",
                  "edges spread over many pixels")),
        Grade(4, ("extreme blur leaves only vague shapes", "blur has wiped out all structure",
                  "hardly any edge can be made out")),
    ),
    weight=1.3,
)  # fmt: skip

NOISE = Aspect(
    "noise",
    (0.7, 2.3, 5.0, 12.0, 25.0),  # p76, p95, p98.6, p99.8, beyond
    (
        Grade(0, ("there is no visible noise", "even areas are clean", "the image is free of grain",
                  "smooth areas stay smooth")),
        Grade(0, ("noise is low", "only a trace of grain is left", "a fine texture or grain covers the image")),
        Grade(1, ("some grain is visible", "a little noise shows in even areas", "there is light noise")),
        Grade(2, ("noise is plainly visible", "the image looks grainy", "noise disturbs the even areas")),
        Grade(3, ("the image is very noisy", "strong noise covers everything", "heavy grain hides fine detail")),
        Grade(4, ("extreme noise buries the content", "the picture drowns in noise",
                  "noise is stronger than the detail")),
    ),
    weight=1.2,
)  # fmt: skip

RESOLUTION = Aspect(
    "resolution",
    (0.08, 0.20, 0.41, 0.56, 0.83),  # p0.6, p3, p10, p24, p74
    (
        Grade(4, ("hardly any detail is left", "only the coarsest structures are resolved",
                  "it looks like a tiny image enlarged many times")),
        Grade(3, ("the effective resolution is very low", "fine detail is missing altogether",
                  "it looks strongly enlarged")),
        Grade(2, ("the effective resolution is low", "fine detail is missing", "textures look washed out")),
        Grade(1, ("fine detail is limited", "textures are somewhat smoothed", "the resolution is moderate")),
        Grade(0, ("detail is good", "textures are well resolved", "the resolution is adequate")),
        Grade(0, ("detail reaches down to single pixels", "fine textures are fully resolved",
                  "the resolution is high", "it is rich in fine detail")),
    ),
)  # fmt: skip

BLOCKING = Aspect(
    "blocking",
    (1.38, 1.65, 1.85, 2.5, 4.0),  # p76, p95, p99, beyond, beyond
    (
        Grade(0, ("there are no blocks from compression", "compression leaves no block edges",
                  "no block pattern can be seen")),
        Grade(1, ("faint block edges show on a close look", "compression is just detectable")),
        Grade(2, ("block edges from compression are visible", "JPEG blocks show in even areas")),
        Grade(2, ("blocking is plainly visible", "the grid of compression blocks disturbs")),
        Grade(3, ("strong blocking covers the image", "heavy compression breaks it into squares")),
        Grade(4, ("it falls apart into flat squares", "extreme compression leaves little but 8 by 8 blocks")),
    ),
    weight=1.2,
)  # fmt: skip

RINGING = Aspect(
    "ringing",
    (0.3, 0.7, 1.2, 2.5),  # p80, p90, p96, p98
    (
        Grade(0, ("edges have no halos or ripples", "the surroundings of edges are clean")),
        Grade(0, ("hardly any ripples accompany the edges", "edges are nearly free of ripples")),
        Grade(1, ("slight ripples run along strong edges", "edges show a hint of ringing")),
        Grade(2, ("ringing surrounds the edges", "ripples are visible beside outlines")),
        Grade(3, ("strong ringing echoes every outline", "heavy ripples run along the edges")),
    ),
    weight=0.7,
)

BANDING = Aspect(
    "banding",
    (0.005, 0.05, 0.15, 0.5, 1.2),  # all beyond
    (
        Grade(0, ("gradients are smooth", "tones blend without steps", "there is no banding")),
        Grade(1, ("gradients show first steps", "a trace of banding can be seen")),
        Grade(2, ("banding is visible in gradients", "smooth areas break into steps")),
        Grade(3, ("banding is obvious", "tones jump in clear steps", "false contours cross even areas")),
        Grade(3, ("strong banding flattens the shading", "only few tones are left")),
        Grade(4, ("it is posterised to a handful of tones", "extreme banding turns shading into flat patches")),
    ),
)

LIGHTNESS = Aspect(
    "lightness",
    (8.0, 20.0, 33.0, 60.0, 73.0, 88.0),  # p2, p9, p25, p76, p90, p98
    (
        Grade(4, ("it is almost black", "the scene disappears in darkness")),
        Grade(3, ("it is far too dark", "underexposure hides much of the scene", "it is badly underexposed")),
        Grade(1, ("it is rather dark", "the exposure is on the dark side", "the tones are low")),
        Grade(0, ("exposure is balanced", "brightness is well chosen", "it is well exposed")),
        Grade(0, ("it is bright", "the exposure is on the bright side", "the tones are light")),
        Grade(2, ("it is very bright", "the tones are too light", "it looks overexposed")),
        Grade(4, ("it is almost white", "brightness washes the scene out", "it is badly overexposed")),
    ),
)

SHADOWS = Aspect(
    "shadows",
    (0.02, 0.07, 0.35),  # p90, p95, p98.6
    (
        Grade(0, ("shadows keep their detail", "dark areas stay readable")),
        Grade(1, ("the deepest shadows are black",)),
        Grade(2, ("shadows are crushed to black", "dark areas have lost their detail")),
        Grade(3, ("large parts are pure black", "much of it is swallowed by black shadows")),
    ),
    weight=0.7,
)

HIGHLIGHTS = Aspect(
    "highlights",
    (0.03, 0.08, 0.35),  # p90, p95, p98.6
    (
        Grade(0, ("highlights keep their detail", "bright areas are not clipped")),
        Grade(1, ("the brightest spots are clipped",)),
        Grade(2, ("highlights are blown out", "bright areas have lost their detail")),
        Grade(3, ("large parts are pure white", "clipped highlights cover much of it")),
    ),
    weight=0.7,
)

CONTRAST = Aspect(
    "contrast",
    (0.04, 0.08, 0.12, 0.16, 0.25, 0.31),  # p1, p5, p11, p26, p79, p95
    (
        Grade(4, ("there is next to no contrast", "everything melts into one tone")),
        Grade(3, ("contrast is very low", "it looks flat and veiled")),
        Grade(2, ("contrast is low", "it looks flat", "a veil lies over it")),
        Grade(1, ("contrast is a little low", "tones lie close together")),
        Grade(0, ("contrast is good", "the tonal range is well used", "contrast looks natural")),
        Grade(0, ("contrast is strong", "dark and light stand out clearly", "it has punch")),
        Grade(1, ("contrast is very strong", "contrast is hard", "dark and light clash")),
    ),
)

COLOURFULNESS = Aspect(
    "colourfulness",
    (3.0, 10.0, 22.0, 54.0, 76.0, 110.0),  # p1, p5, p25, p75, p90, p97
    (
        Grade(1, ("it has no colour", "it is in shades of grey", "it is monochrome")),
        Grade(1, ("there is hardly any colour", "colours are nearly gone", "it is almost monochrome")),
        Grade(0, ("colours are muted", "colours are restrained", "colours are pale")),
        Grade(0, ("colours look natural", "saturation is balanced", "colours are pleasant")),
        Grade(0, ("colours are vivid", "colours are rich", "saturation is high")),
        Grade(1, ("colours are very strong", "saturation is very high")),
        Grade(2, ("colours are garish", "colours are oversaturated", "saturation is overdone")),
    ),
)

ASPECTS = (
    BLUR, NOISE, RESOLUTION, BLOCKING, RINGING, BANDING,
    LIGHTNESS, SHADOWS, HIGHLIGHTS, CONTRAST, COLOURFULNESS,
)  # fmt: skip

NO_CAST = Grade(0, ("there is no colour cast", "colours are neutral", "the white balance is right"))
HUES = (
    "reddish", "reddish-yellow", "yellowish", "greenish", "greenish",
    "cyan", "bluish", "bluish", "violet", "pinkish",
)  # fmt: skip
"""Names of the cast's direction, for ten equal sectors of the a*b* plane, the first one centred on 18 degrees."""


def grade_cast(measurements: Measurements) -> Grade:
    """The colour cast's grade: a cast counts where it is visible and the whole image leans to its side."""
    cast, dominance = measurements.cast, measurements.cast_dominance
    if cast < 10.0 or dominance < 0.1:  # dominance: p75, and 0.6 is p90, 1.2 is p95
        return NO_CAST
    hue = HUES[int(measurements.cast_hue // 36.0) % len(HUES)]
    if dominance < 0.6:
        return Grade(0, (f"the colours lean slightly to the {hue}", f"there is a light {hue} tint"))
    if dominance < 1.2 or cast < 24.0:
        return Grade(1, (f"a {hue} tint lies over it", f"colours have a {hue} cast"))
    return Grade(2, (f"a strong {hue} cast covers everything", f"the {hue} cast is strong"))


def grade_all(measurements: Measurements) -> dict[str, tuple[Grade, float]]:
    """Grade and weight of every aspect, by the measurement's name."""
    graded = {aspect.name: (aspect.grade(getattr(measurements, aspect.name)), aspect.weight) for aspect in ASPECTS}
    graded["cast"] = (grade_cast(measurements), 0.8)
    return graded
