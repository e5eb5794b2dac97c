"""The error for a release that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_PROBLEMS = 40


class ReleaseError(ValueError):
    """A release cannot be used as it is; the message lists every problem that was found."""


def describe(what: object, problems: Sequence[str]) -> str:
    """One message for all problems."""
    rest = len(problems) - SHOWN_PROBLEMS
    lines = [*problems[:SHOWN_PROBLEMS], *([f"and {rest} more"] if rest > 0 else [])]
    return f"{what}: {len(problems)} problem(s):\n  " + "\n  ".join(lines)
