"""Numbers that are fixed by published work, each with its source, and the names that settings take.

Free of torch: the command line reads its choices here at its start.
"""

from __future__ import annotations

from typing import Literal, get_args

Coverage = Literal["center", "tiles", "adaptive", "full"]
COVERAGES: tuple[Coverage, ...] = get_args(Coverage)
"""Which crops of an image are scored; `preprocess.preprocess` says what each is."""

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Arithmetic of an encoder, or its numbers in a file."""

DtypeName = Literal["float32", "bfloat16", "float16", "auto"]
DTYPE_NAMES: tuple[DtypeName, ...] = get_args(DtypeName)
"""The dtype argument of scorers: a precision, or `"auto"` for the fastest on this machine."""

CLIP_MEAN: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
"""Channel means (RGB, pixels in [0, 1]) of CLIP's preprocessing; Radford et al. 2021, `openai/CLIP`."""

CLIP_STD: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations (RGB, pixels in [0, 1]) of CLIP's preprocessing; same source."""

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
"""Channel means of ImageNet, used by DINOv2 (Oquab et al. 2023); RGB, pixels in [0, 1]."""

IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Channel standard deviations of ImageNet, used by DINOv2; RGB, pixels in [0, 1]."""

OFFICIAL_IMAGE_SIZE: int = 336
"""Input side in pixels of the official RALI encoder, CLIP ViT-L/14-336 (Zhao et al. 2025, section 4)."""

OFFICIAL_OPEN_CLIP_NAME: str = "ViT-L-14-336-quickgelu"
"""open_clip's name of the official encoder; OpenAI's CLIP uses QuickGELU."""

BAND_NAMES: tuple[str, str, str, str, str] = ("bad", "poor", "fair", "good", "excellent")
"""The five categories of the absolute category rating scale, ITU-R BT.500 / P.910."""

BAND_THRESHOLDS: tuple[float, float, float, float] = (0.2, 0.4, 0.6, 0.8)
"""Lower limits of poor, fair, good and excellent: the [0, 1] scale in five equal parts."""

DOMAINS = ("photographs", "generated images")
"""The kinds of images that the bundled model can be told, see `RaliModel.set_domain`."""

MAX_SEED = 2**64 - 1
"""The largest seed that ComfyUI and torch's generators take."""

SEED_STEP = 1_000_000
"""Distance between the seeds of one search, so that a start seed one higher (ComfyUI's "increment") repeats none."""
