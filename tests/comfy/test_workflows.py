"""The template workflows, run by a real ComfyUI; a tiny random network stands in for the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

FILES = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# Output of the checkpoint loader to output of the test pack's loader; the text encoder's only output is output 1.
STAND_IN = {"CheckpointLoaderSimple": {0: 0, 2: 2}, "CLIPTextEncode": {0: 1}}


def to_prompt(workflow: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The page's format to the server's."""
    links = {link[0]: link for link in workflow["links"]}
    kinds = {str(node["id"]): node["type"] for node in workflow["nodes"]}
    prompt: dict[str, Any] = {"tiny": {"class_type": "Test_TinyDiffusion", "inputs": {}}}
    for node in workflow["nodes"]:
        if node["type"] in {*STAND_IN, "MarkdownNote"}:
            continue
        values = iter(node["widgets_values"])
        described = info[node["type"]]["input"]
        inputs: dict[str, Any] = {}
        for name, entry in {**described.get("required", {}), **described.get("optional", {})}.items():
            options = entry[1] if len(entry) > 1 else {}
            if (isinstance(entry[0], list) or entry[0] in WIDGET_TYPES) and not options.get("forceInput"):
                inputs[name] = next(values)
                if {"control_after_generate", "image_upload", "video_upload"} & {
                    key for key in options if options[key]
                }:
                    next(values)
        # An older ComfyUI may know fewer widgets of its own nodes; its page ignores the other values, too.
        assert not node["type"].startswith("RALI_") or list(values) == [], node["type"]
        for slot in node["inputs"]:
            if slot["link"] is not None:
                _, source, output, target, place, _ = links[slot["link"]]
                assert target == node["id"]
                assert node["inputs"][place]["name"] == slot["name"]
                kind = kinds[str(source)]
                inputs[slot["name"]] = ["tiny", STAND_IN[kind][output]] if kind in STAND_IN else [str(source), output]
        if "steps" in inputs:
            inputs["steps"] = 2
        if node["type"] == "EmptyLatentImage":
            inputs |= {"width": 64, "height": 64}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


@pytest.mark.both_versions
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_a_workflow_runs(server: Any, photographs: dict[str, Image.Image], file: Path) -> None:
    small = photographs["coffee"].resize((320, 200))
    server.upload("example.png", small)  # a fresh ComfyUI has one
    workflow = json.loads(file.read_text(encoding="utf-8"))
    ours = [node["type"] for node in workflow["nodes"] if node["type"].startswith("RALI_")]
    assert ours
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert "**" in note, "names of what to change"
    info = server.get("/object_info")
    loaders = [node for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple"]
    for loader in loaders:  # what the page offers to download
        (model,) = loader["properties"]["models"]
        assert (model["name"], model["directory"]) == (loader["widgets_values"][0], "checkpoints")
        assert model["url"].startswith("https://huggingface.co/Comfy-Org/")
    used = {node["type"] for node in workflow["nodes"]} - {"MarkdownNote"}  # the page alone knows it
    assert used <= set(info)
    assert all(kind in ours or "custom_nodes" not in info[kind]["python_module"] for kind in used)
    server.run(to_prompt(workflow, info)).check()
