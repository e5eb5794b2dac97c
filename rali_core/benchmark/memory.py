"""How much memory this process has in use, and had at most."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int:
    """Largest resident set so far, in bytes; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def current_memory() -> int:
    """Resident set now, in bytes; the peak so far where the system tells no more than that."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return peak_memory()
