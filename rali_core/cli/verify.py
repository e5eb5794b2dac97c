"""`rali verify`: the old name of `rali convert --check`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

DESCRIPTION = "Deprecated, goes in the next release: use `rali convert --check FILE [RELEASE_DIR]`."


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser("verify", help="deprecated: use convert --check", description=DESCRIPTION)
    parser.add_argument("model", metavar="FILE", help="converted model file, or `official` for the downloaded one")
    parser.add_argument("release", metavar="RELEASE_DIR", nargs="?", help="folder of the release")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Say the new name, and do it."""
    from .convert import check

    print("rali verify is deprecated and goes in the next release; use rali convert --check", file=sys.stderr)
    return check(options.model, options.release)
