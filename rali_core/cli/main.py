"""Entry point of the `rali` command."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import sys
from collections.abc import Sequence

from .. import __version__
from . import average, bench, best, convert, dataset, describe, download, evaluate, export, info, score, train, verify
from ._console import lost_files, lost_output, say, set_up_console, silence

COMMANDS = (score, best, dataset, info, evaluate, train, average, describe, download, convert, verify, export, bench)

EXTRAS = {"pyarrow": "dataset", "fsspec": "dataset", "filelock": "dataset", "ray": "ray", "transformers": "bench"}
"""The extra that contains a missing package; otherwise it is `train`."""

DESCRIPTION = """\
Score the perceptual quality of images with RALI: sharpness, noise, compression, exposure, colour and how pleasing
it is technically; 0 is worst, 1 is best. It does not judge whether an image fits a prompt, its anatomy or taste."""

EPILOG = """\
examples:
  rali score photos/                         a table, best first
  rali score photos/ --recursive --csv scores.csv
  rali score a.png b.png --explain           what the score is made of
  rali score photos/ --tag                   stars and score into the files' metadata
  rali best renders/ -k 4 --copy-to keep/    the four best, copied

`rali COMMAND --help` says more about each command."""


class _ToStandardError(logging.Handler):
    """Prints the core's log records on any console."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        say(self.format(record))


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
    if arguments is None:  # the process is ours: at its end nothing of torch need be searched for garbage, for a second
        atexit.register(gc.freeze)
    set_up_console()
    options = build_parser().parse_args(arguments)
    handler = _ToStandardError()
    logger = logging.getLogger("rali")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        status: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        if lost_output:
            say(f"standard output could not be written: {lost_output[0]}")
            lost_output.clear()
            return status or 1
        return status or int(bool(lost_files))
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except BrokenPipeError:  # `rali score ... | head`
        silence(sys.stdout)
        return 0
    except (ValueError, OSError, ModuleNotFoundError) as error:
        say(_describe(error))
        return 1
    except (MemoryError, RuntimeError) as error:
        from ..devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        say(f"too little memory: {str(error).splitlines()[0] if str(error) else 'the machine has no more'}")
        return 1
    finally:
        lost_files.clear()
        logger.removeHandler(handler)


def _describe(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        if error.name is None:  # its message already says what is needed
            return str(error)
        extra = EXTRAS.get((error.name or "").partition(".")[0], "train")
        return f'{error}; this needs more packages: pip install "rali-score[{extra}]"'
    return str(error)
