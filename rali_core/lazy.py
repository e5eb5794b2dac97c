"""A package's public names, each imported from its module at first use."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

DEPRECATED = "{old} is deprecated and goes in the next release; use {new}"


def import_on_first_use(
    package: str, homes: Mapping[str, Sequence[str]], *, old_names: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """A `__getattr__` for a package's `__init__` (PEP 562).

    Importing torch takes seconds, and some modules need extras: `rali --help`, a ComfyUI start-up and users without
    the extra should not pay for what they do not use.

    Args:
        package: The package's `__name__`.
        homes: From the name of a module in it to the public names in it. None of the modules may have
            such a name itself: importing it would put the module in the name's place.
        old_names: From a name of the last release to the current one; the old name works with a DeprecationWarning.

    Returns:
        A function from a name to its value; raises AttributeError for others.

    Raises:
        ValueError: A module has the name of what it holds.
    """
    module_of = {name: module for module, names in homes.items() for name in names}
    if taken := sorted(module_of.keys() & homes.keys()):
        raise ValueError(f"modules of {package} have the names of what they hold: {', '.join(taken)}")

    def get(name: str) -> Any:
        if old_names and name in old_names:
            return _get_renamed(package, name, old_names[name])
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module_of[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


def renamed(module: str, old_names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names of the last release, which work with a DeprecationWarning.

    Args:
        module: The module's `__name__`.
        old_names: From the old name to the one it has now.

    Returns:
        A function from a name to its value; raises AttributeError for others.
    """

    def get(name: str) -> Any:
        if name not in old_names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return _get_renamed(module, name, old_names[name])

    return get


def renamed_attribute(old: str, new: str) -> Any:
    """A property for the last release's name of an attribute or method, which works with a DeprecationWarning.

    Args:
        old: The old name.
        new: The name that it has now.
    """

    def get(self: object) -> Any:
        warnings.warn(DEPRECATED.format(old=old, new=new), DeprecationWarning, 2)
        return getattr(self, new)

    return property(get, doc=f"The old name of `{new}`; goes in the next release.")


def _get_renamed(module: str, old: str, new: str) -> Any:
    warnings.warn(DEPRECATED.format(old=old, new=new), DeprecationWarning, 3)
    return getattr(sys.modules[module], new)
