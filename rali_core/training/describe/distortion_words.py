"""Words for synthetic distortions of known type and level."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = 5
LEVEL_WORDS = (
    ("very slight", "barely noticeable", "minimal"),
    ("slight", "mild", "light"),
    ("moderate", "clearly visible", "noticeable"),
    ("strong", "heavy", "severe"),
    ("extreme", "overwhelming", "massive"),
)
"""Adjectives for the levels 1 to 5."""


@dataclass(frozen=True)
class DistortionWords:
    """How one type of distortion is named.

    Attributes:
        names: Noun phrases without an article.
        effects: Clauses that say what it does to a picture; told from level 3 on.
        aspects: Measurements that it concerns; praise for these is left out.
    """

    names: tuple[str, ...]
    effects: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()


DETAIL = ("blur", "resolution")
DISTORTION_WORDS = {
    "smear": DistortionWords(
        ("smearing", "overdone denoising", "smudging"), ("texture turns into flat patches", "surfaces look like wax"),
        DETAIL,
    ),
    "chroma_noise": DistortionWords(
        ("colour noise", "chroma noise"), ("blotches of wrong colours cover it",), ("noise",)
    ),
    "upscaler": DistortionWords(
        ("upscaler artefacts", "harsh upscaling"), ("halos stand where detail should be", "detail looks like plastic"),
        ("ringing", *DETAIL),
    ),
    "warp": DistortionWords(
        ("warping", "wavy distortion"), ("straight lines wobble", "shapes look melted"), ()
    ),
    "blur": DistortionWords(
        ("Gaussian blur", "blur", "softening"), ("edges and textures melt away", "fine detail is lost"), DETAIL
    ),
    "lens_blur": DistortionWords(
        ("defocus blur", "lens blur", "misfocus"), ("points spread to discs", "the lens seems out of focus"), DETAIL
    ),
    "motion_blur": DistortionWords(
        ("motion blur", "camera shake"), ("everything is smeared in one direction", "outlines are drawn out"), DETAIL
    ),
    "noise": DistortionWords(
        ("white noise", "sensor noise", "Gaussian noise"), ("coloured grain covers it",), ("noise", "resolution")
    ),
    "impulse_noise": DistortionWords(
        ("impulse noise", "salt-and-pepper noise"), ("single pixels flash black, white or in wrong colours",),
        ("noise", "resolution"),
    ),
    "speckle_noise": DistortionWords(
        ("speckle noise", "multiplicative noise"), ("bright areas are full of speckles",), ("noise", "resolution")
    ),
    "poisson_noise": DistortionWords(
        ("photon noise", "shot noise", "low-light noise"), ("it looks as if too little light was caught",),
        ("noise", "resolution"),
    ),
    "jpeg": DistortionWords(
        ("JPEG compression", "JPEG artefacts", "block compression"),
        ("blocks and ripples appear", "colours smear within blocks"), ("blocking", "ringing", "banding", *DETAIL),
    ),
    "jpeg2000": DistortionWords(
        ("JPEG 2000 compression", "wavelet compression"), ("textures turn to smears with ripples at the edges",),
        ("blocking", "ringing", *DETAIL),
    ),
    "webp": DistortionWords(
        ("WebP compression", "WebP artefacts"), ("textures are smoothed to patches", "detail turns to mush"),
        ("blocking", "ringing", "banding", *DETAIL),
    ),
    "low_resolution": DistortionWords(
        ("upscaling from a low resolution", "loss of resolution", "enlargement of a small image"),
        ("fine detail is gone", "it was enlarged from too few pixels"), DETAIL,
    ),
    "pixelate": DistortionWords(
        ("pixelation", "mosaic artefacts"), ("large square pixels show", "outlines turn to staircases"),
        ("blur", "resolution", "blocking", "banding"),
    ),
    "brighten": DistortionWords(
        ("overexposure", "excessive brightness"), ("highlights are washed out",), ("lightness", "highlights")
    ),
    "darken": DistortionWords(
        ("underexposure", "darkening"), ("shadows swallow detail",), ("lightness", "shadows")
    ),
    "contrast_low": DistortionWords(
        ("loss of contrast", "flattened contrast"), ("tones sit close together",), ("contrast",)
    ),
    "contrast_high": DistortionWords(
        ("excessive contrast", "overdone contrast"), ("tones are pushed to black and white",),
        ("contrast", "shadows", "highlights"),
    ),
    "saturation_low": DistortionWords(
        ("desaturation", "loss of colour", "fading of colours"), ("colours look washed out",), ("colourfulness",)
    ),
    "saturation_high": DistortionWords(
        ("oversaturation", "excessive saturation"), ("colours glow unnaturally", "colours clip"), ("colourfulness",)
    ),
    "oversharpen": DistortionWords(
        ("oversharpening", "excessive sharpening"), ("halos line every edge", "textures look harsh and gritty"),
        ("blur", "ringing", "noise", "resolution"),
    ),
    "banding": DistortionWords(
        ("banding", "posterisation", "colour quantisation"), ("gradients break into steps",), ("banding",)
    ),
    "colour_shift": DistortionWords(
        ("colour shift", "colour misalignment", "false colours"), ("colours no longer sit where they belong",),
        ("cast", "colourfulness"),
    ),
    "colour_diffusion": DistortionWords(
        ("colour bleeding", "colour diffusion"), ("colours run over the outlines",), ("cast", "colourfulness")
    ),
    "checkerboard": DistortionWords(
        ("checkerboard artefacts", "grid artefacts of upsampling"), ("a fine regular grid lies over it",),
        ("noise", "resolution", "blocking"),
    ),
    "ringing": DistortionWords(
        ("ringing", "ripples along edges"), ("outlines are echoed by ripples",), ("ringing", *DETAIL)
    ),
    "patch_jitter": DistortionWords(
        ("displacement of small patches", "local jitter"), ("lines are torn and displaced",), ("blur", "resolution")
    ),
    "dither": DistortionWords(
        ("dithering", "dither patterns"), ("tones dissolve into dots",), ("noise", "banding", "resolution")
    ),
    "haze": DistortionWords(
        ("haze", "fog"), ("a grey veil hides contrast and colour",), ("contrast", "colourfulness", "lightness")
    ),
}  # fmt: skip
"""By the type's name in `rali_core.training.distortions`."""


def words_for(distortion: str) -> DistortionWords:
    """The words for a type; one that is not in the table is named by its own name."""
    return DISTORTION_WORDS.get(distortion) or DistortionWords((distortion.replace("_", " ").strip(),))
