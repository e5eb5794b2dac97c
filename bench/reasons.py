"""How well a model file's probes detect what is wrong with an image, on unseen images and distortions.

    python bench/reasons.py MODEL.safetensors --photographs DIR --drawings DIR --generated DIR [--each 12] [--json FILE]

Each image is scored undistorted and under every kind of distortion at one level. Printed are, as tables in Markdown:
the area under the ROC curve of each attribute by kind of image, with distortions that its probe was trained on and with
others of the same kind; how often each word is used for which distortion; and the rank correlation with the classical
measures of `rali_core.describe`. Images that the probes were trained on (the file has their names) are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, features
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from rali_core.describe.measures import measure_image
from rali_core.files import find_images
from rali_core.images import to_rgb
from rali_core.scorer import RaliScorer
from rali_core.training.attributes import KINDS, PROBED, VISIBLE_LEVEL
from rali_core.training.distortions import LEVELS, distort, recode

LARGEST_SIDE = 768
"""Larger images are reduced to this before they are distorted."""

Make = Callable[[Image.Image, int], Image.Image]
"""An image and a level, 1 to 5."""


def scale_saturation(image: Image.Image, level: int, factors: tuple[float, ...]) -> Image.Image:
    """Saturation in HSV times a factor; the distortions of the probes mix with grey."""
    hue, saturation, value = image.convert("HSV").split()
    saturation = saturation.point(lambda each: min(255, round(each * factors[level - 1])))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def gain(image: Image.Image, level: int, factors: tuple[float, ...]) -> Image.Image:
    """Exposure as a gain that clips; the distortions of the probes are gamma curves."""
    return image.point(lambda each: min(255, round(each * factors[level - 1])))


def s_curve(image: Image.Image, level: int) -> Image.Image:
    """Contrast by a logistic curve; the probes know a straight line."""
    steepness = (4.0, 7.0, 11.0, 17.0, 26.0)[level - 1]
    ends = 1 / (1 + np.exp(steepness * np.array([0.5, -0.5])))
    table = (1 / (1 + np.exp(-steepness * (np.arange(256) / 255 - 0.5))) - ends[0]) / (ends[1] - ends[0]) * 255
    return image.point([round(float(each)) for each in table] * 3)


def lateral_aberration(image: Image.Image, level: int) -> Image.Image:
    """Red is enlarged and blue reduced about the centre; the probes know a shift."""
    width, height = image.size
    planes = []
    for plane, sign in zip(image.split(), (1, 0, -1), strict=True):
        scale = 1 + sign * (0.004, 0.008, 0.015, 0.025, 0.04)[level - 1]
        offsets = width / 2 * (1 - 1 / scale), height / 2 * (1 - 1 / scale)
        affine = (1 / scale, 0, offsets[0], 0, 1 / scale, offsets[1])
        planes.append(plane.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC))
    return Image.merge("RGB", planes)


def enhance_edges(image: Image.Image, level: int) -> Image.Image:
    """Pillow's edge filter, again and again; the probes know the unsharp mask."""
    for _ in range(level):
        image = image.filter(ImageFilter.EDGE_ENHANCE)
    return image


def fine_checkerboard(image: Image.Image, level: int) -> Image.Image:
    """A checkerboard of three pixels all over the image; the probes know one of two pixels, in detail."""
    y, x = np.mgrid[: image.height, : image.width]
    board = (x // 3 + y // 3) % 2 * 2.0 - 1
    values = np.asarray(image, dtype=np.float32) + (board * (4, 8, 14, 24, 38)[level - 1])[..., None]
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


OTHERS: dict[str, tuple[str, Make]] = {
    "gain up": ("overexposure", partial(gain, factors=(1.3, 1.6, 2.0, 2.7, 3.6))),
    "gain down": ("underexposure", partial(gain, factors=(0.75, 0.55, 0.4, 0.27, 0.16))),
    "s-curve": ("high_contrast", s_curve),
    "less HSV saturation": ("desaturation", partial(scale_saturation, factors=(0.7, 0.45, 0.25, 0.1, 0.0))),
    "more HSV saturation": ("oversaturation", partial(scale_saturation, factors=(1.5, 2.0, 2.8, 4.0, 7.0))),
    "lateral aberration": ("chromatic_aberration", lateral_aberration),
    "edge filter": ("sharpening", enhance_edges),
    "mode filter": ("smearing", lambda image, level: image.filter(ImageFilter.ModeFilter(2 * level + 1))),
    "fine checkerboard": ("checkerboard", fine_checkerboard),
    "adaptive palette": (
        "posterisation", lambda image, level: image.quantize((48, 24, 12, 7, 4)[level - 1], dither=0).convert("RGB")
    ),
    **({"avif": ("compression", lambda image, level: recode(image, "AVIF", quality=(40, 25, 14, 7, 1)[level - 1]))}
       if features.check("avif") else {}),
}  # fmt: skip
"""Distortions that are in no training, and the attribute that each causes."""

MEASURES: dict[str, tuple[str, int]] = {
    "blur": ("blur", 1), "noise": ("noise", 1), "compression": ("blocking", 1), "upscaling": ("resolution", -1),
    "overexposure": ("lightness", 1), "underexposure": ("lightness", -1), "low_contrast": ("contrast", -1),
    "high_contrast": ("contrast", 1), "desaturation": ("colourfulness", -1), "oversaturation": ("colourfulness", 1),
}  # fmt: skip
"""Attribute to the classical measure of the same thing, and the sign of their correlation."""


def distortions() -> dict[str, tuple[tuple[str, ...], bool, Make]]:
    """Name to the attributes that it causes, whether a probe was trained on it, and the function that makes it."""
    made: dict[str, tuple[tuple[str, ...], bool, Make]] = {}
    for kind in dict.fromkeys([*KINDS, *(kind for probed in PROBED.values() for kind in probed.unseen)]):
        names = tuple(name for name, probed in PROBED.items() if kind in probed.kinds + probed.unseen)
        made[kind] = (names, kind in KINDS, lambda image, level, kind=kind: distort(image, kind, level, seed=level))
    return made | {name: ((attribute,), False, make) for name, (attribute, make) in OTHERS.items()}


def judge(scorer: RaliScorer, path: Path, number: int) -> list[dict[str, Any]]:
    """The severities of one image and of its distorted versions, with what is measured on them."""
    with Image.open(path) as file:
        image = to_rgb(file)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BICUBIC)
    versions, rows = [image], [{"distortion": "none", "level": 0}]
    for place, (name, (_, _, make)) in enumerate(distortions().items()):
        level = (number + place) % LEVELS + 1
        versions.append(make(image, level))
        rows.append({"distortion": name, "level": level})
    told = scorer.score(versions, attributes=True).attributes
    return [
        {**row, "values": values.values, "measures": asdict(measure_image(version))}
        for row, version, values in zip(rows, versions, told, strict=True)
        if values is not None  # a distorted image may be blank
    ]


def auc_of(rows: list[dict[str, Any]], attribute: str, *, known: bool) -> float | None:
    """Area under the ROC curve: the attribute's own distortions against undistorted images and all others'."""
    kinds = distortions()
    positive, values = [], []
    for row in rows:
        names, trained, _ = kinds.get(row["distortion"], ((), True, None))
        own = attribute in names
        if (own and (trained != known or row["level"] < VISIBLE_LEVEL)) or row["distortion"] in PROBED[attribute].alike:
            continue
        if not own and row["distortion"] != "none" and not trained:
            continue  # other attributes that it resembles are in the table of words
        positive.append(own)
        values.append(row["values"][attribute])
    return float(roc_auc_score(positive, values)) if any(positive) and not all(positive) else None


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.safetensors")
    for kind in ("photographs", "drawings", "generated"):
        parser.add_argument(f"--{kind}", action="append", default=[], metavar="DIR", help=f"undistorted {kind}")
    parser.add_argument("--each", type=int, default=12, metavar="N", help="images of each kind (default: 12)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there")
    options = parser.parse_args()
    scorer = RaliScorer.from_pretrained(options.model, attributes=True)
    used = set(scorer.info.training.get("attributes", {}).get("sources", ()))
    rows: dict[str, list[dict[str, Any]]] = {}
    for kind in ("photographs", "drawings", "generated"):
        folders = getattr(options, kind)
        found = [path for path in (find_images(folders, recursive=True) if folders else []) if path.name not in used]
        chosen = [found[index] for index in np.linspace(0, len(found) - 1, min(options.each, len(found))).astype(int)]
        for number, path in enumerate(chosen):
            print(f"{kind}: {path.name}", file=sys.stderr, flush=True)
            rows.setdefault(kind, []).extend(judge(scorer, path, number))
    everything = [row for each in rows.values() for row in each]
    names = [attribute.name for attribute in scorer.model.attributes]
    report = {
        "auc": auc_table(rows, names),
        "words": words_table(everything, scorer),
        "srcc": srcc_table(everything, names),
    }
    for table in report.values():
        print(to_markdown(table) + "\n")
    if options.json:
        options.json.write_text(json.dumps({"tables": report, "rows": rows}, indent=1) + "\n")


def auc_table(rows: dict[str, list[dict[str, Any]]], names: list[str]) -> list[list[str]]:
    """A row for each attribute: known and other distortions, over all images and by kind."""
    everything = [row for each in rows.values() for row in each]
    columns = {"all": everything, **rows}
    heading = ["attribute", *(f"{name}, {which}" for which in ("known", "others") for name in columns)]
    table = [heading]
    for name in names:
        values = [auc_of(part, name, known=known) for known in (True, False) for part in columns.values()]
        table.append([name, *("" if value is None else f"{value:.3f}" for value in values)])
    return table


def words_table(rows: list[dict[str, Any]], scorer: RaliScorer) -> list[list[str]]:
    """A row for each distortion at its levels from `VISIBLE_LEVEL` on: how often each word is used, in percent."""
    attributes = scorer.model.attributes
    table = [["distortion", *(attribute.word for attribute in attributes), "nothing"]]
    for name in dict.fromkeys(row["distortion"] for row in rows):
        part = [row for row in rows if row["distortion"] == name and (row["level"] >= VISIBLE_LEVEL or name == "none")]
        if not part:
            continue  # of few images it had level 1 alone
        said: NDArray[np.bool_] = np.array([
            [row["values"][attribute.name] >= attribute.threshold for attribute in attributes] for row in part
        ])  # fmt: skip
        shares = [*said.mean(axis=0), (~said.any(axis=1)).mean()]
        table.append([name, *(f"{100 * share:.0f}" if share else "" for share in shares)])
    return table


def srcc_table(rows: list[dict[str, Any]], names: list[str]) -> list[list[str]]:
    """Rank correlation of severities with classical measures, over the undistorted and the attribute's own images."""
    kinds, table = distortions(), [["attribute", "measure", "SRCC"]]
    for name, (measure, sign) in MEASURES.items():
        if name in names:
            part = [row for row in rows if row["distortion"] == "none" or name in kinds[row["distortion"]][0]]
            values = [[row["values"][name], row["measures"][measure]] for row in part]
            table.append([name, measure, f"{sign * float(spearmanr(values).statistic):.3f}"])
    return table


def to_markdown(table: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


if __name__ == "__main__":
    main()
