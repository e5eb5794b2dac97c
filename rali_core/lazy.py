"""A package's public names, each imported from its module when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def import_on_first_use(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A `__getattr__` for a package's `__init__` (PEP 562).

    Importing torch takes seconds, and some modules need extras: `rali --help`, a ComfyUI start-up and users without
    the extra should not pay for what they do not use.

    Args:
        package: The package's `__name__`.
        homes: From the name of a module in it to the public names that it holds. None of the modules may have
            such a name itself: importing it would put the module in the name's place.

    Returns:
        A function from a name to its value; raises AttributeError for others.

    Raises:
        ValueError: A module has the name of what it holds.
    """
    module_of = {name: module for module, names in homes.items() for name in names}
    if taken := sorted(module_of.keys() & homes.keys()):
        raise ValueError(f"modules of {package} have the names of what they hold: {', '.join(taken)}")

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module_of[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
