"""`rali verify`: a converted file against the release that it came from."""

from __future__ import annotations

import argparse
from typing import Any

DESCRIPTION = """\
Compare a file of `rali convert` or `rali download` with the release that it came from: hashes, configuration and every
tensor. Where no release is named, it is looked for beside the file and in the hub client's cache."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("verify", help="compare a converted file with its release", description=DESCRIPTION)
    parser.add_argument("model", metavar="FILE", help="converted model file, or `official` for the downloaded one")
    parser.add_argument("release", metavar="RELEASE_DIR", nargs="?", help="folder of the release")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare and print what was compared."""
    from ..hub import find_model
    from ..official.verify import locate_release, verify
    from ._common import show_progress

    path = find_model(options.model)
    release = options.release or locate_release(path)
    with show_progress("comparing") as progress:
        result = verify(path, release, progress=progress)
    for name, digest in result.files.items():
        print(f"{name}: SHA-256 {digest}")
    print(
        f"{path}: all {result.tower_tensors} tensors of the tower equal the release's in {result.dtype} "
        f"(largest rounding {result.largest_rounding:.3g}), all {result.head_tensors} of the head as well"
    )
    return 0
