"""`rali export`: a model as one ONNX file."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..constants import COVERAGES

DESCRIPTION = """\
Write a model as one ONNX file (opset 18) that needs neither torch nor this package to run. What the graph does:
input `pixels`, (B, H, W, 3) uint8, sRGB, of any size and any batch size; images longer than 32:1 are cut to that; the
shorter side is resized to the encoder's size (antialiased bicubic); crops are taken (--coverage), normalised, encoded
in --precision and scored by the head; output `score`, (B,) float32, the mean over the crops (weighted
where --coverage is full). Images without content
(blank frames) score 0.02, as everywhere. What the caller does: decode the file, turn it upright (EXIF), convert its
colours to sRGB, composite transparency on white. Before the file is written its scores are compared with the model's,
by ONNX Runtime on the CPU. Needs the extra `export`: pip install "rali-score[export]"."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("export", help="write a model as an ONNX file", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="model name or file (default: the bundled model)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.onnx", help="file to write")
    parser.add_argument("--precision", choices=("float32", "float16"), default="float32",
                        help="weights and arithmetic of the encoder (default: float32)")  # fmt: skip
    parser.add_argument("--coverage", choices=COVERAGES,
                        help="centre crop, crops along the longer side, or these and crops at the image's own size, "
                             "of large images only or of all (default: the model's own)")  # fmt: skip
    parser.add_argument("--domain", help="the kind of images, if it is known, see `rali score --help`")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export, and say what came out."""
    from ..checkpoint import load_model
    from ..hub import find_model
    from ..onnx_export import check_packages, export_onnx
    from ._outputs import check_file

    check_packages()
    check_file(options.output, "--output", (".onnx",))
    loaded = load_model(find_model(options.model))
    loaded.model.set_domain(options.domain)
    made = export_onnx(
        loaded.model, options.output, info=loaded.info, coverage=options.coverage, precision=options.precision
    )
    print(
        f"wrote {made.path} ({made.path.stat().st_size / 1e6:.1f} MB, opset {made.opset}, {made.precision}, "
        f"coverage {made.coverage})"
    )
    print(
        f"  its scores of {made.images} images differ from the model's by at most {made.largest_difference:.1e}",
        file=sys.stderr,
    )
    return 0
