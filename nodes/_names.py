"""File names from a template: our {score}, and the fields that ComfyUI's page fills in for its own Save Image."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from string import Formatter
from typing import Any

log = logging.getLogger("rali")

FIELDS = ("score", "rank", "seed")
FORBIDDEN = r'?<>:*|"\x00-\x1f\x7f'
"""Characters that Windows does not allow in names."""

RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names that Windows reserves for devices."""

LONGEST = 180
"""Bytes of a name; a counter and an ending follow, and file systems allow 255."""

DATE_PARTS = re.compile("dd?|MM?|hh?|mm?|ss?|yyyy|yy")


@dataclass(frozen=True)
class NameFields:
    """The values of a template's fields.

    Attributes:
        score: The image's score; NaN without one.
        place: 1 for the best image.
        count: Number of images; decides the rank's leading zeros.
        seed: The image's seed, if seeds are wired.
    """

    score: float = 0.5
    place: int = 1
    count: int = 1
    seed: int | None = None


def check_template(template: str, *, seeds: bool) -> None:
    """Refuse a template before the work.

    Args:
        template: As the user wrote it.
        seeds: Whether seeds are wired.

    Raises:
        ValueError: Unknown fields, a format that does not fit, single braces, or {seed} without seeds.
    """
    _fill_fields(template, NameFields(seed=1))
    if not seeds and any(name == "seed" for _, name, _, _ in Formatter().parse(template)):
        raise ValueError("filename_prefix asks for {seed}: wire seeds, or take {seed} out")


def make_prefix(template: str, fields: NameFields, prompt: Any, extra: Any, now: datetime | None = None) -> str:
    """A prefix for the host's `get_save_image_path`, which fills in %year%, %width% and the like.

    Args:
        template: With {score}, {rank}, {seed}, each with a format as in Python ({score:.2f}); %date:yyyy-MM-dd% and
            %Node.widget%, which the page fills in for its own nodes only.
        fields: What the fields stand for.
        prompt: ComfyUI's prompt, or None.
        extra: ComfyUI's extra metadata (the workflow), or None.
        now: The time for %date%; by default now.

    Returns:
        A relative path with slashes, every part of it a name that Windows allows too.

    Raises:
        ValueError: As for `check_template`.
    """
    moment = now or datetime.now()

    def replace(match: re.Match[str]) -> str:
        text = match[1]
        if text.startswith("date:"):
            return format_date(text[len("date:") :], moment)
        node, dot, widget = text.partition(".")
        value = find_widget(node, widget, prompt, extra) if dot else None
        return match[0] if value is None else re.sub(rf"[/\\{FORBIDDEN}]", "_", str(value))

    return clean_path(re.sub("%([^%]+)%", replace, _fill_fields(template, fields))) or "RALI"


def format_date(pattern: str, moment: datetime) -> str:
    """A date as the page writes it: d, M, h (0 to 23), m, s, doubled for two digits, and yy or yyyy."""
    parts = {"d": moment.day, "M": moment.month, "h": moment.hour, "m": moment.minute, "s": moment.second}

    def replace(match: re.Match[str]) -> str:
        part = match[0]
        return f"{moment.year:04}"[-len(part) :] if part[0] == "y" else f"{parts[part[0]]:0{len(part)}}"

    return DATE_PARTS.sub(replace, pattern)


def find_widget(name: str, widget: str, prompt: Any, extra: Any) -> Any:
    """A widget's value of the node of that name ("Node name for S&R", else title); None if there is none."""
    nodes: Mapping[str, Any] = prompt if isinstance(prompt, dict) else {}
    for naming in (_search_names(nodes, extra), _titles(nodes)):
        for number, node in nodes.items():
            if naming.get(str(number)) == name:
                value = node.get("inputs", {}).get(widget)
                # A link is not a value: the widget was converted to an input.
                return None if value is None or isinstance(value, list) else value
    log.warning("RALI Save Image: filename_prefix asks for %%%s.%s%%: there is no such node", name, widget)
    return None


def clean_path(path: str) -> str:
    """Make every part of a path a name that Windows allows too. A drive is kept on a system with drives."""
    drive, rest = os.path.splitdrive(path)
    parts = [re.sub(f"[{FORBIDDEN}]", "_", part) for part in re.split(r"[/\\]", rest)]
    return drive.replace("\\", "/") + "/".join(
        _clean_name(part) if part not in ("", ".", "..") else part for part in parts
    )


def _clean_name(name: str) -> str:
    short = name.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore").rstrip(" .")
    return f"_{short}" if not short or RESERVED.match(short) else short


def _fill_fields(template: str, fields: NameFields) -> str:
    """{score}, {rank} and {seed}; doubled braces become single ones."""
    known = {"score": fields.score, "rank": fields.place, "seed": fields.seed}
    plain = {"score": ".3f", "rank": f"0{len(str(fields.count))}", "seed": ""}
    made = []
    try:
        for text, name, form, conversion in Formatter().parse(template):
            made.append(text)
            if name is None:
                continue
            if name not in known or conversion:
                raise ValueError(f"there is no {{{name}{'!' + conversion if conversion else ''}}}")
            made.append(format(known[name], form or plain[name]))
    except (ValueError, TypeError) as error:
        wanted = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(
            f"filename_prefix {template!r}: {error}; it may hold {wanted}, with a format such as {{score:.2f}}, and "
            "{{ and }} for braces"
        ) from None
    return "".join(made)


def _search_names(nodes: Mapping[str, Any], extra: Any) -> dict[str, str]:
    names = {str(number): str(node.get("class_type", "")) for number, node in nodes.items()}
    workflow = extra.get("workflow") if isinstance(extra, dict) else None
    for node in workflow.get("nodes", []) if isinstance(workflow, dict) else []:
        name = (node.get("properties") or {}).get("Node name for S&R")
        if name and str(node.get("id")) in names:
            names[str(node["id"])] = str(name)
    return names


def _titles(nodes: Mapping[str, Any]) -> dict[str, str]:
    """Titles as the page sends them; for a prompt without titles, "Load Image" for LoadImage."""
    return {
        str(number): (node.get("_meta") or {}).get("title")
        or re.sub("(?<=[a-z])(?=[A-Z])", " ", str(node.get("class_type", "")))
        for number, node in nodes.items()
    }
