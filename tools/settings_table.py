"""Write the table of settings in docs/training.md from the docstrings of `rali_core/training/config.py`.

python tools/settings_table.py            write it
python tools/settings_table.py --check    exit status 1 if the document's table differs from the docstrings
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rali_core.training.config import TrainConfig

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "training.md"
START, END = "<!-- settings: made by tools/settings_table.py -->", "<!-- end of settings -->"


def descriptions(kind: type[Any]) -> dict[str, str]:
    """Name to description of each attribute of a class and of those it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        text = inspect.getdoc(each) or ""
        _, _, attributes = text.partition("Attributes:\n")
        for name, description in re.findall(r"^    (\w+): ((?:.*\n?)(?:     +.*\n?)*)", attributes, re.MULTILINE):
            found[name] = re.sub(r"\s+", " ", description).strip()
    return found


def default_of(field: Field[Any]) -> str:
    """A field's default as TOML writes it; empty where the setting is required."""
    if field.default is MISSING:
        return "" if field.default_factory is MISSING else "`{}`"
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


Row = tuple[str, str, str, str]


def rows(kind: type[Any] = TrainConfig, section: str = "") -> list[Row]:
    """Section, setting, default and meaning of each setting, sections after one another."""
    hints, texts = get_type_hints(kind), descriptions(kind)
    lines, inner = [], []
    for field in fields(kind):
        hint = hints[field.name]
        part = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if part is not None:
            name = f"[[{field.name}]]" if get_args(hint) else f"[{field.name}]"
            inner += rows(part, name)  # type: ignore[arg-type]
        else:
            lines.append((section, f"`{field.name}`", default_of(field), texts[field.name]))
    return lines + inner


def make_table() -> str:
    """The table in Markdown; a setting that several sections have has one line."""
    merged: dict[tuple[str, str], list[Row]] = {}
    for row in rows():
        merged.setdefault((row[1], row[3]), []).append(row)
    lines = ["| section | setting | default | meaning |", "|---|---|---|---|"]
    for (setting, meaning), same in merged.items():
        sections, defaults = (list(dict.fromkeys(row[place] for row in same)) for place in (0, 2))
        lines.append(f"| {', '.join(sections)} | {setting} | {', '.join(defaults)} | {meaning} |")
    return "\n".join(lines)


def main() -> int:
    """Write or check the table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    wanted = f"{before}{START}\n{make_table()}\n{END}{after}"
    if "--check" in sys.argv:
        return int(text != wanted)
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
