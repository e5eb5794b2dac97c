"""The `rali` command. One module per subcommand: `add_parser` declares its arguments, `run` does the work."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
