"""How well a model file's probes detect what is wrong with an image, on unseen images and distortions.

    python bench/reasons.py MODEL.safetensors --photographs DIR --drawings DIR --generated DIR [--each 12] [--json FILE]

Each image, cropped to 1:1, 3:2 or 2:3 in turn, is scored undistorted and under every kind of distortion and pair of
them at one level. Printed are, as tables in Markdown: the area under the ROC curve of each attribute by kind of image,
with distortions that its probe was trained on and with others of the same kind; how often each word is used for which
distortion; how often both flaws of a pair are named; and the rank correlation with the classical measures of
`rali_core.describe`. Images that the probes were trained on (the file has their names) are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from rali_core.describe.measures import measure_image
from rali_core.files import find_images
from rali_core.images import to_rgb
from rali_core.scorer import RaliScorer
from rali_core.training.attribute_distortions import distort_further
from rali_core.training.attributes import KINDS, PAIRS, PROBED, UNSEEN, VISIBLE_LEVEL
from rali_core.training.distortions import LEVELS

LARGEST_SIDE = 768
"""Larger images are reduced to this side before they are distorted."""
RATIOS = ((1, 1), (3, 2), (2, 3))
"""Width to height, in turn."""
OTHER_PAIRS = (
    "motion_blur+webp", "lens_blur+jpeg", "blur+poisson_noise", "low_resolution+jpeg", "exposure_down+chroma_noise",
    "contrast_low+noise",
)  # fmt: skip
"""Pairs that no probe is trained on."""

MEASURES: dict[str, tuple[str, int]] = {
    "blur": ("blur", 1), "noise": ("noise", 1), "compression": ("blocking", 1), "upscaling": ("resolution", -1),
    "overexposure": ("lightness", 1), "underexposure": ("lightness", -1), "low_contrast": ("contrast", -1),
    "high_contrast": ("contrast", 1), "desaturation": ("colourfulness", -1), "oversaturation": ("colourfulness", 1),
}  # fmt: skip
"""Attribute to the classical measure of the same thing, and the sign of their correlation."""


CAUSES: dict[str, tuple[str, ...]] = {
    kind: tuple(name for name, probed in PROBED.items() if set(kind.split("+")) & {*probed.kinds, *probed.unseen})
    for kind in KINDS + UNSEEN + OTHER_PAIRS
}
"""Distortion or pair to the attributes that it causes."""


def crop_to(image: Image.Image, across: int, down: int) -> Image.Image:
    """The middle of an image, as large as this ratio of width to height allows."""
    unit = min(image.width / across, image.height / down)
    width, height = int(unit * across), int(unit * down)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def judge(scorer: RaliScorer, path: Path, number: int) -> list[dict[str, Any]]:
    """The severities of one image and of its distorted versions, with what is measured on them."""
    with Image.open(path) as file:
        image = to_rgb(file)
    image = crop_to(image, *RATIOS[number % len(RATIOS)])
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BICUBIC)
    versions, rows = [image], [{"distortion": "none", "level": 0}]
    for place, name in enumerate(CAUSES):
        level = (number + place) % LEVELS + 1
        versions.append(distort_further(image, name, level, seed=level))
        rows.append({"distortion": name, "level": level})
    told = scorer.score(versions, attributes=True).attributes
    return [
        {**row, "values": values.values, "measures": asdict(measure_image(version))}
        for row, version, values in zip(rows, versions, told, strict=True)
        if values is not None  # a distorted image may be blank
    ]


def auc_of(rows: list[dict[str, Any]], attribute: str, *, known: bool) -> float | None:
    """Area under the ROC curve: its own distortions against undistorted images and all others', without pairs."""
    positive, values = [], []
    for row in rows:
        if "+" in row["distortion"]:
            continue
        trained = row["distortion"] not in UNSEEN
        own = attribute in CAUSES.get(row["distortion"], ())
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
        "pairs": pairs_table(everything, scorer),
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


def pairs_table(rows: list[dict[str, Any]], scorer: RaliScorer) -> list[list[str]]:
    """How often, in percent, both flaws of a pair are named, and at least one of them."""
    thresholds = {attribute.name: attribute.threshold for attribute in scorer.model.attributes}
    table = [["pairs", "both named", "one named"]]
    for title, pairs in (("trained on", PAIRS), ("others", OTHER_PAIRS)):
        named = []
        for row in rows:
            if row["distortion"] in pairs and row["level"] >= VISIBLE_LEVEL:
                values = row["values"]
                named.append([
                    any(values[name] >= thresholds[name] for name in CAUSES[part] if name in thresholds)
                    for part in row["distortion"].split("+")
                ])  # fmt: skip
        if named:
            flaws: NDArray[np.bool_] = np.array(named)
            table.append([title, f"{100 * flaws.all(axis=1).mean():.0f}", f"{100 * flaws.any(axis=1).mean():.0f}"])
    return table


def srcc_table(rows: list[dict[str, Any]], names: list[str]) -> list[list[str]]:
    """Rank correlation of severities with classical measures, over the undistorted and the attribute's own images."""
    table = [["attribute", "measure", "SRCC"]]
    for name, (measure, sign) in MEASURES.items():
        if name in names:
            part = [row for row in rows if row["distortion"] == "none" or name in CAUSES[row["distortion"]]]
            values = [[row["values"][name], row["measures"][measure]] for row in part]
            table.append([name, measure, f"{sign * float(spearmanr(values).statistic):.3f}"])
    return table


def to_markdown(table: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


if __name__ == "__main__":
    main()
