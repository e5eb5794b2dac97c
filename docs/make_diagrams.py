"""Draw the workflows' thumbnails and the help pages' pictures from what they show: python docs/make_diagrams.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
BACKGROUND, BOX, OURS, TEXT, FAINT, WIRE = "#1b1e26", "#353a45", "#2f5f46", "#f0f0f0", "#aab2be", "#8fb4ff"


def name_of(kind: str) -> str:
    """A node's name as the page shows it."""
    names = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    return str(names[kind]["display_name"]) if kind in names else kind


def draw_workflow(workflow: dict[str, Any]) -> Image.Image:
    """Boxes and wires, our nodes in green."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values()) + 20
    bottom = max(node["pos"][1] + 180 for node in nodes.values()) + 20
    image = Image.new("RGB", (right, max(bottom, round(right * 0.6))), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for _, source, output, target, place, _ in workflow["links"]:
        one, two = nodes[source], nodes[target]
        start = (one["pos"][0] + one["size"][0], one["pos"][1] + 55 + 20 * output)
        wired = [slot["link"] is not None for slot in two["inputs"]][: place + 1].count(True)
        end = (two["pos"][0], two["pos"][1] + 35 + 20 * wired)
        draw.line((start, (start[0] + 15, start[1]), (end[0] - 15, end[1]), end), fill=WIRE, width=5)
    for node in nodes.values():
        left, top = node["pos"]
        ours = node["type"].startswith("RALI_")
        draw.rounded_rectangle((left, top, left + node["size"][0], top + 160), 14, fill=OURS if ours else BOX)
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name_of(node["type"])).split()
        lines = [" ".join(words[:2]), " ".join(words[2:4])]
        for row, line in enumerate(lines):
            draw.text((left + 24, top + 38 + 44 * row), line, font=ImageFont.load_default(34), fill=TEXT)
    return image


def draw_node(page: str) -> Image.Image:
    """A node with its inputs and outputs, from its help page."""
    title = re.findall(r"^# (.+)$", page, re.MULTILINE)[0]
    tables = page.split("| output | |")
    sides = [re.findall(r"^\| ([\w ,.]+) \| .+\|$", table, re.MULTILINE) for table in tables]
    inputs = [name for name in sides[0] if name != "input"]
    height = 100 + 40 * max(len(inputs), len(sides[1]))
    image = Image.new("RGB", (900, height + 40), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((40, 20, 860, height + 20), 16, fill=BOX)
    draw.rounded_rectangle((40, 20, 860, 80), 16, fill=OURS)
    draw.text((64, 34), title, font=ImageFont.load_default(30), fill=TEXT)
    for column, (names, x, anchor) in enumerate(((inputs, 70, "lm"), (sides[1], 830, "rm"))):
        for row, name in enumerate(names):
            y = 116 + 40 * row
            dot = 40 if column == 0 else 860
            draw.ellipse((dot - 8, y - 8, dot + 8, y + 8), fill=WIRE)
            draw.text((x, y), name, font=ImageFont.load_default(22), fill=FAINT, anchor=anchor)
    return image


def main() -> None:
    """Write all pictures."""
    for path in sorted((ROOT / "workflows").glob("*.json")):
        image = draw_workflow(json.loads(path.read_text(encoding="utf-8")))
        image.thumbnail((640, 640), Image.Resampling.LANCZOS)
        image.save(path.with_suffix(".jpg"), quality=82, optimize=True)
    pictures = ROOT / "web" / "docs" / "images"
    pictures.mkdir(exist_ok=True)
    for path in sorted((ROOT / "web" / "docs").glob("*.md")):
        draw_node(path.read_text(encoding="utf-8")).save(pictures / f"{path.stem}.webp", quality=85)


if __name__ == "__main__":
    main()
