"""Measure how far the scores of an exported ONNX file are from the model's, by ONNX Runtime on the CPU.

Run from the repository's root, with the package and its extra `export` installed:

    python bench/onnx_parity.py                              the bundled model, 200 images made by code
    python bench/onnx_parity.py --folder photos/             your own images
    python bench/onnx_parity.py --release small              a converted release with random weights (CLIP encoder)

prints a line per precision: the largest difference, the mean one, and the range of the scores. The exit status is 1
where float32 differs by more than 1e-4. Images made by code: scikit-image's photographs in sizes of 1 to 1600 pixels a
side, noisy, blurred, compressed or drawn, and blank ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from parity import load_helper, make_images

from rali_core import RaliScorer
from rali_core.checkpoint import LoadedModel, load_model
from rali_core.constants import COVERAGES
from rali_core.files import find_images
from rali_core.hub import find_model
from rali_core.images import load_image
from rali_core.onnx_export import export_onnx, open_graph

LIMIT = 1e-4
"""Of float32."""

ODD_SIZES = ((1, 1), (7, 300), (9, 8), (1600, 40), (30, 1200))
"""Width and height: tiny, narrow, longer than 32:1."""


def made_by_code(count: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """`count` images (H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    sides = np.exp(random.uniform(np.log(24), np.log(1600), (max(1, count // 4), 2))).astype(int)
    sizes = (*ODD_SIZES, *((int(width), int(height)) for width, height in sides))
    for number, image in enumerate(make_images(count, sizes, seed)):
        pixels = np.array(image)
        if number % 50 == 49:  # blank, with faint noise
            pixels = (random.integers(0, 255) + random.integers(0, 2, pixels.shape)).astype(np.uint8)
        yield pixels


def read(folder: str, count: int) -> Iterator[NDArray[np.uint8]]:
    """The first images of a folder, as the `rali` command reads them, in 8 bits."""
    for path in find_images([folder], recursive=True)[:count]:
        pixels = load_image(path).mul(255).round().byte()
        yield pixels.permute(1, 2, 0).contiguous().numpy()


def load(options: argparse.Namespace, work: Path) -> LoadedModel:
    """The model that is asked for."""
    if options.release is None:
        return load_model(find_model(options.model))
    from rali_core.official.convert import convert

    maker = load_helper("release_maker")
    size = maker.SMALL if options.release == "small" else maker.OFFICIAL
    release = maker.make_release(work / "release", size=size)
    convert(release, work / "model.safetensors", dtype="float32")
    return load_model(work / "model.safetensors")


def main() -> int:
    """Export, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="NAME_OR_FILE", help="default: the bundled model")
    parser.add_argument("--release", choices=("small", "official"), help="a made release of this size instead")
    parser.add_argument("--precision", action="append", choices=("float32", "float16"), help="default: both")
    parser.add_argument("--coverage", choices=COVERAGES, help="default: the model's own")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="how many (default: 200)")
    parser.add_argument("--folder", help="images to take instead of those made by code")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        loaded = load(options, work)
        images = list(read(options.folder, options.images) if options.folder else made_by_code(options.images))
        scorer = RaliScorer(loaded.model, loaded.info, device="cpu", coverage=options.coverage)
        graphs = {
            precision: export_onnx(loaded.model, work / f"{precision}.onnx", info=loaded.info, precision=precision,
                                   coverage=scorer.coverage)
            for precision in options.precision or ("float32", "float16")
        }  # fmt: skip
        runs = {precision: open_graph(made.path) for precision, made in graphs.items()}
        expected = np.empty(len(images), dtype=np.float32)
        found = {precision: np.empty(len(images), dtype=np.float32) for precision in runs}
        for number, image in enumerate(images):
            expected[number] = scorer.score(image).scores[0]
            for precision, run in runs.items():
                found[precision][number] = run(image[np.newaxis])[0]
            if number % 20 == 19:
                so_far = ", ".join(
                    f"{precision} {np.abs(scores - expected)[: number + 1].max():.2e}"
                    for precision, scores in found.items()
                )
                print(f"{number + 1} of {len(images)}: {so_far}", file=sys.stderr, flush=True)
    print(f"{len(images)} images, coverage {scorer.coverage}, scores from {expected.min():.3f} to {expected.max():.3f}")
    for precision, scores in found.items():
        differences = np.abs(scores - expected)
        worst = int(differences.argmax())
        print(
            f"{precision}, opset {graphs[precision].opset}: largest difference {differences.max():.2e} (image {worst}, "
            f"{images[worst].shape[1]} x {images[worst].shape[0]}), mean {differences.mean():.2e}"
        )
        failed |= precision == "float32" and not differences.max() <= LIMIT
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
