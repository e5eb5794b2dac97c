"""Write `workflows/*.json`: python tools/make_workflows.py http://127.0.0.1:8188 (a ComfyUI with this pack)."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}

# key: (node, column, widget values that differ from the default, wires {input: (key, output number)})
Spec = dict[str, tuple[str, int, dict[str, Any], dict[str, tuple[str, int]]]]

DIFFUSION: Spec = {
    "checkpoint": ("CheckpointLoaderSimple", 0, {}, {}),
    "positive": (
        "CLIPTextEncode",
        1,
        {"text": "a lighthouse on a cliff at sunset, photograph, sharp"},
        {"clip": ("checkpoint", 1)},
    ),
    "negative": ("CLIPTextEncode", 1, {"text": "blurry, noisy"}, {"clip": ("checkpoint", 1)}),
}
SAMPLED = {"model": ("checkpoint", 0), "positive": ("positive", 0), "negative": ("negative", 0)}

WORKFLOWS: dict[str, Spec] = {
    "RALI - score an image": {
        "image": ("LoadImage", 0, {}, {}),
        "score": ("RALI_Score", 1, {}, {"images": ("image", 0)}),
    },
    "RALI - filter a batch": {
        "one": ("LoadImage", 0, {}, {}),
        "two": ("LoadImage", 0, {}, {}),
        "batch": ("BatchImagesNode", 1, {}, {"images.image0": ("one", 0), "images.image1": ("two", 0)}),
        "filter": ("RALI_Filter", 2, {}, {"images": ("batch", 0)}),
        "passed": ("PreviewImage", 3, {}, {"images": ("filter", 0)}),
        "rejected": ("PreviewImage", 3, {}, {"images": ("filter", 1)}),
    },
    "RALI - compare two upscalers": {
        "image": ("LoadImage", 0, {}, {}),
        "first": ("ImageScaleBy", 1, {"upscale_method": "lanczos", "scale_by": 4.0}, {"image": ("image", 0)}),
        "second": ("ImageScaleBy", 1, {"upscale_method": "nearest-exact", "scale_by": 4.0}, {"image": ("image", 0)}),
        "both": ("BatchImagesNode", 2, {}, {"images.image0": ("first", 0), "images.image1": ("second", 0)}),
        "score": ("RALI_Score", 3, {"coverage": "full"}, {"images": ("both", 0)}),
        "sheet": ("RALI_ContactSheet", 3, {"columns": 2, "coverage": "full"}, {"images": ("both", 0)}),
        "shown": ("PreviewImage", 4, {}, {"images": ("sheet", 0)}),
    },
    "RALI - rank a folder": {
        "folder": ("RALI_ScoreFolder", 0, {"k": 4}, {}),
        "sheet": ("PreviewImage", 1, {}, {"images": ("folder", 3)}),
        "save": (
            "RALI_SaveImage",
            2,
            {"filename_prefix": "RALI/best/{rank}_{score}"},
            {"images": ("folder", 0), "scores": ("folder", 2)},
        ),
        "names": ("PreviewAny", 1, {}, {"source": ("folder", 1)}),
    },
    "RALI - best frame of a video": {
        "video": ("LoadVideo", 0, {}, {}),
        "score": ("RALI_ScoreVideo", 1, {}, {"video": ("video", 0)}),
        "best": ("SaveImage", 2, {"filename_prefix": "thumbnail"}, {"images": ("score", 1)}),
        "plot": ("PreviewImage", 3, {}, {"images": ("score", 3)}),
        "report": ("PreviewAny", 2, {}, {"source": ("score", 8)}),
    },
    "RALI - gate before upscale and save": {
        "image": ("LoadImage", 0, {}, {}),
        "gate": ("RALI_Gate", 1, {"threshold": 0.5}, {"value": ("image", 0), "images": ("image", 0)}),
        "upscale": ("ImageScaleBy", 2, {"upscale_method": "lanczos", "scale_by": 2.0}, {"image": ("gate", 0)}),
        "save": ("SaveImage", 3, {"filename_prefix": "good"}, {"images": ("upscale", 0)}),
    },
    "RALI - best of a batch": {
        **DIFFUSION,
        "latent": ("EmptyLatentImage", 1, {"batch_size": 4}, {}),
        "sample": ("KSampler", 2, {}, {**SAMPLED, "latent_image": ("latent", 0)}),
        "decode": ("VAEDecode", 3, {}, {"samples": ("sample", 0), "vae": ("checkpoint", 2)}),
        "best": ("RALI_BestOfN", 4, {"k": 1}, {"images": ("decode", 0), "latents": ("sample", 0)}),
        "save": ("RALI_SaveImage", 5, {}, {"images": ("best", 0), "scores": ("best", 1)}),
    },
    "RALI - best-of-N sampler with early stop": {
        **DIFFUSION,
        "latent": ("EmptyLatentImage", 1, {}, {}),
        "sample": (
            "RALI_BestOfNSampler",
            2,
            {"n": 8, "threshold": 0.7},
            {**SAMPLED, "latent_image": ("latent", 0), "vae": ("checkpoint", 2)},
        ),
        "save": (
            "RALI_SaveImage",
            3,
            {"filename_prefix": "RALI/{score}_{seed}"},
            {"images": ("sample", 0), "scores": ("sample", 3), "seeds": ("sample", 2)},
        ),
    },
    "RALI - custom sampling, best of 8": {
        **DIFFUSION,
        "guider": ("CFGGuider", 2, {"cfg": 7.0}, SAMPLED),
        "sampler": ("KSamplerSelect", 2, {"sampler_name": "dpmpp_2m"}, {}),
        "sigmas": ("BasicScheduler", 2, {"scheduler": "karras"}, {"model": ("checkpoint", 0)}),
        "latent": ("EmptyLatentImage", 2, {}, {}),
        "sample": (
            "RALI_BestOfNCustom",
            3,
            {"n": 8, "early_pruning": True},
            {
                "guider": ("guider", 0),
                "sampler": ("sampler", 0),
                "sigmas": ("sigmas", 0),
                "latent_image": ("latent", 0),
                "vae": ("checkpoint", 2),
            },
        ),
        "save": (
            "RALI_SaveImage",
            4,
            {"filename_prefix": "RALI/{score}_{seed}"},
            {"images": ("sample", 0), "scores": ("sample", 3), "seeds": ("sample", 2)},
        ),
    },
    "RALI - until good, any sampler": {
        **DIFFUSION,
        "latent": ("EmptyLatentImage", 1, {}, {}),
        "start": ("RALI_RetryStart", 2, {}, {}),
        "sample": ("KSampler", 2, {}, {**SAMPLED, "latent_image": ("latent", 0), "seed": ("start", 1)}),
        "decode": ("VAEDecode", 3, {}, {"samples": ("sample", 0), "vae": ("checkpoint", 2)}),
        "end": (
            "RALI_RetryEnd",
            3,
            {"n": 6, "threshold": 0.7},
            {"retry": ("start", 0), "images": ("decode", 0), "value_1": ("sample", 0)},
        ),
        "save": ("SaveImage", 4, {"filename_prefix": "good"}, {"images": ("end", 0)}),
    },
    "RALI - refine the best": {
        **DIFFUSION,
        "latent": ("EmptyLatentImage", 1, {"batch_size": 6}, {}),
        "sample": ("KSampler", 2, {}, {**SAMPLED, "latent_image": ("latent", 0)}),
        "decode": ("VAEDecode", 2, {}, {"samples": ("sample", 0), "vae": ("checkpoint", 2)}),
        "top": ("RALI_BestOfN", 3, {"k": 3}, {"images": ("decode", 0), "latents": ("sample", 0)}),
        "again": ("KSampler", 4, {"denoise": 0.4}, {**SAMPLED, "latent_image": ("top", 3)}),
        "refined": ("VAEDecode", 4, {}, {"samples": ("again", 0), "vae": ("checkpoint", 2)}),
        "best": ("RALI_BestOfN", 5, {"k": 1}, {"images": ("refined", 0), "latents": ("again", 0)}),
        "save": ("RALI_SaveImage", 6, {}, {"images": ("best", 0), "scores": ("best", 1)}),
    },
    "RALI - inpaint the weak regions": {
        **DIFFUSION,
        "image": ("LoadImage", 0, {}, {}),
        "map": ("RALI_QualityMap", 1, {"weak_mode": "weakest share", "weak_limit": 0.2}, {"images": ("image", 0)}),
        "grow": ("GrowMask", 2, {"expand": 16}, {"mask": ("map", 2)}),
        "latent": (
            "VAEEncodeForInpaint",
            2,
            {},
            {"pixels": ("image", 0), "vae": ("checkpoint", 2), "mask": ("grow", 0)},
        ),
        "overlay": ("PreviewImage", 2, {}, {"images": ("map", 1)}),
        "sample": ("KSampler", 3, {}, {**SAMPLED, "latent_image": ("latent", 0)}),
        "decode": ("VAEDecode", 4, {}, {"samples": ("sample", 0), "vae": ("checkpoint", 2)}),
        "score": ("RALI_Score", 4, {}, {"images": ("decode", 0)}),
        "preview": ("PreviewImage", 5, {}, {"images": ("score", 0)}),
    },
}

GAP, TITLE, WIDTH = 60, 30, 300
# What a node draws besides its slots and widgets: texts, images, our panel.
EXTRA = {
    "CLIPTextEncode": 120, "LoadImage": 300, "LoadVideo": 300, "PreviewAny": 100, "PreviewImage": 300,
    "RALI_SaveImage": 300, "RALI_ScoreVideo": 160, "SaveImage": 300,
}  # fmt: skip


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Whether the page draws a widget for this input."""
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def default_value(kind: Any, options: dict[str, Any]) -> Any:
    """What the page puts into a fresh widget."""
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options")
    if isinstance(choices, list):
        return choices[0] if choices else ""
    return {"STRING": "", "BOOLEAN": False}.get(kind, 0)


def height(kind: str, slots: int, widgets: int) -> int:
    """About as high as the taller of the page's two node renderers draws it."""
    panel = 130 if kind.startswith("RALI_") else 0
    return 60 + 22 * slots + 36 * widgets + EXTRA.get(kind, 0) + panel


def build(spec: Spec, info: dict[str, Any]) -> dict[str, Any]:
    """One workflow in the page's own format."""
    numbers = {key: number for number, key in enumerate(spec, start=1)}
    links: list[list[Any]] = []
    nodes = []
    bottoms: dict[int, int] = {}
    for key, (kind, column, values, wires) in spec.items():
        described = info[kind]
        inputs, widgets = [], []
        entries = {**described["input"].get("required", {}), **described["input"].get("optional", {})}
        grown = [(name, (info[spec[wires[name][0]][0]]["output"][wires[name][1]],)) for name in wires if "." in name]
        for name, entry in [*grown, *entries.items()]:
            if entry[0] == "COMFY_AUTOGROW_V3":
                continue  # its inputs are those that have wires
            options = entry[1] if len(entry) > 1 else {}
            slot: dict[str, Any] = {"name": name, "type": "COMBO" if isinstance(entry[0], list) else entry[0]}
            if is_widget(entry[0], options):
                widgets.append(values.get(name, default_value(entry[0], options)))
                slot["widget"] = {"name": name}
                if options.get("control_after_generate"):
                    widgets.append("randomize")
                for upload, example in (("image_upload", "example.png"), ("video_upload", "example.mp4")):
                    if options.get(upload):
                        widgets[-1] = example
                        widgets.append("image")
            if name in wires:
                source, output = wires[name]
                origin_type = info[spec[source][0]]["output"][output]
                links.append([len(links) + 1, numbers[source], output, numbers[key], len(inputs), origin_type])
            slot["link"] = links[-1][0] if name in wires else None
            inputs.append(slot)
        if kind == "CheckpointLoaderSimple":
            widgets = ["v1-5-pruned-emaonly-fp16.safetensors"]
        slots = max(sum("widget" not in slot for slot in inputs), len(described["output"]))
        tall = height(kind, slots, len(widgets))
        top = bottoms.get(column, 40)
        bottoms[column] = top + tall + TITLE + GAP
        nodes.append(
            {
                "id": numbers[key], "type": kind, "pos": [20 + column * (WIDTH + GAP), top],
                "size": [WIDTH, tall], "flags": {}, "order": numbers[key] - 1,
                "mode": 0, "inputs": inputs,
                "outputs": [
                    {"name": name, "type": type_, "links": []}
                    for name, type_ in zip(described["output_name"], described["output"], strict=True)
                ],
                "properties": {"Node name for S&R": kind}, "widgets_values": widgets,
            }
        )  # fmt: skip
    for link in links:
        nodes[link[1] - 1]["outputs"][link[2]]["links"].append(link[0])
    return {
        "last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes, "links": links, "groups": [],
        "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def main(url: str) -> None:
    """Write all workflows."""
    with urllib.request.urlopen(url + "/object_info") as reply:
        info = json.load(reply)
    FOLDER.mkdir(exist_ok=True)
    for name, spec in WORKFLOWS.items():
        text = json.dumps(build(spec, info), indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
