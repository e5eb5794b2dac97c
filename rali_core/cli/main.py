"""Entry point of the `rali` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from . import bench, best, convert, dataset, describe, download, evaluate, info, score, train, tune, verify

COMMANDS = (score, best, dataset, info, evaluate, train, tune, describe, download, convert, verify, bench)

EXTRAS = {"pyarrow": "dataset", "fsspec": "dataset", "filelock": "dataset", "ray": "ray", "transformers": "bench"}
"""Which extra brings a missing package; where none does, it is training's."""

DESCRIPTION = """\
Score the perceptual quality of images with RALI: sharpness, noise, compression, exposure, colour and how pleasing
it is technically; 0 is worst, 1 is best. It does not judge whether a picture fits a prompt, its anatomy or taste."""

EPILOG = """\
examples:
  rali score photos/                         a table, best first
  rali score photos/ --recursive --csv scores.csv
  rali score a.png b.png --explain           what the score is made of
  rali best renders/ -k 4 --copy-to keep/    the four best, copied

`rali COMMAND --help` tells more about each command."""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="rali", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"rali {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; by default those of the process.

    Returns:
        Exit status: 0 all went well; 1 some images could not be scored, or the work failed; 2 wrong usage;
        130 stopped with Ctrl-C.
    """
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("rali: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `rali score ... | head`
        sys.stderr.close()
        return 0
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"rali: {_describe(error)}", file=sys.stderr)
        return 1


def _describe(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0], "train")
        return f'{error}; this needs more packages: pip install "rali-score[{extra}]"'
    return str(error)
