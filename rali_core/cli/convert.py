"""`rali convert`: the authors' release to one model file; `--check`: such a file against its release."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..constants import PRECISIONS
from ._console import show_progress

DESCRIPTION = """\
Convert a downloaded RALI release (ckpt.pt, pca.pkl, basis.npz and best/) to one .safetensors model file: image encoder
and head only. No pickle is run. What is missing or does not fit is listed, and then nothing is written.
With --check, compare a file of `rali convert` or `rali download` with its release instead: hashes, configuration and
every tensor. Without RELEASE_DIR the release is looked for beside the file and in the hub client's cache."""


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("convert", help="convert the authors' release", description=DESCRIPTION)
    parser.add_argument("release", metavar="RELEASE_DIR", nargs="?",
                        help="folder that holds ckpt.pt, or RALI/ckpt.pt; optional with --check")  # fmt: skip
    task = parser.add_mutually_exclusive_group()
    task.add_argument("-o", "--output", metavar="FILE", help="file to write (default: rali-official.safetensors)")
    task.add_argument("--check", metavar="FILE",
                      help="compare this converted file, or `official` for the downloaded one, with its release; "
                      "nothing is written")  # fmt: skip
    parser.add_argument("--dtype", choices=PRECISIONS, default="float16",
                        help="of the image encoder in the file; the head stays float32 (default: float16)")  # fmt: skip
    parser.set_defaults(run=run, usage_error=parser.error)


def run(options: argparse.Namespace) -> int:
    """Convert, or compare."""
    if options.check is not None:
        return check(options.check, options.release)
    if options.release is None:
        options.usage_error("expected RELEASE_DIR, the folder that holds ckpt.pt, got none")
    from ..hub import OFFICIAL_FILE
    from ..official.convert import convert
    from ._outputs import check_file

    check_file(options.output or OFFICIAL_FILE, "--output")
    with show_progress("converting") as progress:
        made = convert(options.release, options.output or OFFICIAL_FILE, dtype=options.dtype, progress=progress)
    size = Path(made.path).stat().st_size / 1e6
    print(f"wrote {made.path} ({size:.1f} MB, encoder in {options.dtype})")
    for what, why in made.release.dropped.items():
        print(f"  left out {what}: {why}")
    print(f"use it with --model {made.path}")
    print(f"`rali convert --check {made.path} {options.release}` compares it with the release tensor by tensor")
    return 0


def check(model: str, release: str | None) -> int:
    """Compare a converted file with its release and print what was compared.

    Args:
        model: A model file, or its name.
        release: The release's folder; None looks for it.
    """
    from ..hub import find_model
    from ..official.verify import locate_release, verify

    path = find_model(model)
    folder = release or locate_release(path)
    with show_progress("comparing") as progress:
        result = verify(path, folder, progress=progress)
    for name, digest in result.files.items():
        print(f"{name}: SHA-256 {digest}")
    print(
        f"{path}: all {result.encoder_tensors} tensors of the encoder equal the release's in {result.dtype} "
        f"(largest rounding {result.largest_rounding:.3g}), all {result.head_tensors} of the head as well"
    )
    return 0
