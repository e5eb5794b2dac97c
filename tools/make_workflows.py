"""Write `workflows/*.json`: python tools/make_workflows.py http://127.0.0.1:8188 (a ComfyUI with this pack)."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
CHECKPOINT_FILE = "v1-5-pruned-emaonly-fp16.safetensors"
CHECKPOINT_URL = "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
MODELS = [
    {"name": CHECKPOINT_FILE, "url": f"{CHECKPOINT_URL}{CHECKPOINT_FILE}?download=true", "directory": "checkpoints"}
]
"""What the page offers to download where it is missing, as in ComfyUI's own first template."""
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

XY = ((4.0, 12), (8.0, 12), (4.0, 25), (8.0, 25))
"""Guidance scale and steps of the XY plot."""

WORKFLOWS: dict[str, Spec] = {
    "RALI - score an image": {
        "image": ("LoadImage", 0, {}, {}),
        "score": ("RALI_Score", 1, {}, {"images": ("image", 0)}),
    },
    "RALI - filter a batch": {
        "image": ("LoadImage", 0, {}, {}),
        "blurred": ("ImageBlur", 0, {"blur_radius": 15, "sigma": 5.0}, {"image": ("image", 0)}),
        "batch": ("BatchImagesNode", 1, {}, {"images.image0": ("image", 0), "images.image1": ("blurred", 0)}),
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
        "image": ("LoadImage", 0, {}, {}),
        "soft": ("ImageBlur", 0, {"blur_radius": 3, "sigma": 1.0}, {"image": ("image", 0)}),
        "blurred": ("ImageBlur", 0, {"blur_radius": 15, "sigma": 5.0}, {"image": ("image", 0)}),
        "frames": (
            "BatchImagesNode",
            1,
            {},
            {
                f"images.image{number}": (frame, 0)
                for number, frame in enumerate(("soft", "image", "soft", "blurred", "blurred", "soft"))
            },
        ),
        "video": ("CreateVideo", 1, {"fps": 2.0}, {"images": ("frames", 0)}),
        "score": ("RALI_ScoreVideo", 2, {}, {"video": ("video", 0)}),
        "best": ("SaveImage", 3, {"filename_prefix": "thumbnail"}, {"images": ("score", 1)}),
        "plot": ("PreviewImage", 4, {}, {"images": ("score", 3)}),
        "report": ("PreviewAny", 3, {}, {"source": ("score", 8)}),
    },
    "RALI - scores for a script": {
        "image": ("LoadImage", 0, {}, {}),
        "score": ("RALI_Score", 1, {}, {"images": ("image", 0)}),
    },
    "RALI - gate before hires fix": {
        **DIFFUSION,
        "latent": ("EmptyLatentImage", 1, {}, {}),
        "sample": ("KSampler", 2, {}, {**SAMPLED, "latent_image": ("latent", 0)}),
        "decode": ("VAEDecode", 2, {}, {"samples": ("sample", 0), "vae": ("checkpoint", 2)}),
        "gate": ("RALI_Gate", 3, {"threshold": 0.5}, {"value": ("sample", 0), "images": ("decode", 0)}),
        "larger": ("LatentUpscaleBy", 4, {"scale_by": 1.5}, {"samples": ("gate", 0)}),
        "again": ("KSampler", 4, {"denoise": 0.5}, {**SAMPLED, "latent_image": ("larger", 0)}),
        "refined": ("VAEDecode", 5, {}, {"samples": ("again", 0), "vae": ("checkpoint", 2)}),
        "save": ("SaveImage", 5, {"filename_prefix": "good"}, {"images": ("refined", 0)}),
    },
    "RALI - generate 8, keep the best": {
        **DIFFUSION,
        "latent": ("EmptyLatentImage", 1, {"batch_size": 8}, {}),
        "sample": ("KSampler", 2, {}, {**SAMPLED, "latent_image": ("latent", 0)}),
        "decode": ("VAEDecode", 3, {}, {"samples": ("sample", 0), "vae": ("checkpoint", 2)}),
        "best": ("RALI_BestOfN", 4, {"k": 1}, {"images": ("decode", 0), "latents": ("sample", 0)}),
        "save": ("RALI_SaveImage", 5, {}, {"images": ("best", 0), "scores": ("best", 1)}),
    },
    "RALI - XY plot with scores": {
        **DIFFUSION,
        "latent": ("EmptyLatentImage", 1, {}, {}),
        **{
            f"sample {number}": (
                "KSampler",
                2 + number // 2,
                {"cfg": cfg, "steps": steps, "control_after_generate": "fixed"},
                {**SAMPLED, "latent_image": ("latent", 0)},
            )
            for number, (cfg, steps) in enumerate(XY)
        },
        **{
            f"decode {number}": ("VAEDecode", 4, {}, {"samples": (f"sample {number}", 0), "vae": ("checkpoint", 2)})
            for number in range(len(XY))
        },
        "batch": (
            "BatchImagesNode",
            5,
            {},
            {f"images.image{number}": (f"decode {number}", 0) for number in range(len(XY))},
        ),
        "labels": (
            "PrimitiveStringMultiline",
            5,
            {"value": "\n".join(f"cfg {cfg:g}, {steps} steps" for cfg, steps in XY)},
            {},
        ),
        "sheet": (
            "RALI_ContactSheet",
            6,
            {"columns": 2, "ranked": False},
            {"images": ("batch", 0), "labels": ("labels", 0)},
        ),
        "shown": ("PreviewImage", 7, {}, {"images": ("sheet", 0)}),
    },
    "RALI - combine with another scorer": {
        **DIFFUSION,
        "latent": ("EmptyLatentImage", 1, {"batch_size": 4}, {}),
        "sample": ("KSampler", 2, {}, {**SAMPLED, "latent_image": ("latent", 0)}),
        "decode": ("VAEDecode", 3, {}, {"samples": ("sample", 0), "vae": ("checkpoint", 2)}),
        "quality": ("RALI_Score", 4, {}, {"images": ("decode", 0)}),
        "other": ("RALI_Score", 4, {"coverage": "full"}, {"images": ("decode", 0)}),
        "both": (
            "RALI_CombineScores",
            5,
            {"normalisation": "rank"},
            {"scores_a": ("quality", 2), "scores_b": ("other", 2)},
        ),
        "best": ("RALI_BestOfN", 6, {"k": 1}, {"images": ("decode", 0), "scores": ("both", 0)}),
        "save": ("RALI_SaveImage", 7, {}, {"images": ("best", 0), "scores": ("best", 1)}),
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
        "before": ("RALI_Score", 1, {}, {"images": ("image", 0)}),
        "map": ("RALI_QualityMap", 1, {"weak_mode": "weakest share", "weak_limit": 0.2}, {"images": ("image", 0)}),
        "grow": ("GrowMask", 2, {"expand": 16}, {"mask": ("map", 2)}),
        "overlay": ("PreviewImage", 2, {}, {"images": ("map", 1)}),
        "encode": ("VAEEncode", 2, {}, {"pixels": ("image", 0), "vae": ("checkpoint", 2)}),
        "masked": ("SetLatentNoiseMask", 3, {}, {"samples": ("encode", 0), "mask": ("grow", 0)}),
        "sample": ("KSampler", 3, {"denoise": 0.4}, {**SAMPLED, "latent_image": ("masked", 0)}),
        "decode": ("VAEDecode", 4, {}, {"samples": ("sample", 0), "vae": ("checkpoint", 2)}),
        "after": ("RALI_Score", 4, {}, {"images": ("decode", 0)}),
        "preview": ("PreviewImage", 5, {}, {"images": ("after", 0)}),
    },
}

(SCRIPT,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8"), re.DOTALL)
CHECKPOINT = "Choose a **checkpoint** that you have and write your own **prompt**."
NOTES: dict[str, str] = {
    "RALI - score an image": (
        "Choose an **image** and run. The number is 0 (worst) to 1 (best); the word and the percentages say what it "
        "means.\n\nThe image passes through, so the node fits anywhere: between VAE Decode and Save Image, for one."
    ),
    "RALI - filter a batch": (
        "Wire **your own batch** in place of the two example images; the second is the first one blurred.\n\n"
        "**threshold** decides: set it between the scores that the node shows. Masks, latents and prompts can follow."
    ),
    "RALI - compare two upscalers": (
        "Put **your own two upscalers** in place of the two Upscale nodes: Load Upscale Model and Upscale Image (using "
        "Model), for one.\n\n**coverage** full looks at the image's own pixels too, where upscalers differ."
    ),
    "RALI - rank a folder": (
        "Set **folder** to one of yours and **k** to how many of the best you want. Their copies get rank and score "
        "into their names; the sheet shows them all."
    ),
    "RALI - best frame of a video": (
        "The clip is three seconds of the example image. For your own add **Load Video** and connect it to **video** "
        "of RALI Score Video.\n\nThe best frame is saved as a thumbnail; the plot shows the score over time and the "
        "worst passage in red."
    ),
    "RALI - scores for a script": (
        "Make **any workflow** with RALI nodes, export it with **Workflow > Export (API)** as workflow_api.json, and "
        f"run this script beside it. It queues the workflow and prints the scores.\n\n```python\n{SCRIPT}```"
    ),
    "RALI - gate before hires fix": CHECKPOINT
    + (
        "\n\nThe expensive second pass runs only if the first image reaches **threshold**; otherwise the nodes after "
        "the gate are skipped. Queue many runs: only good ones are refined and saved."
    ),
    "RALI - generate 8, keep the best": CHECKPOINT
    + ("\n\n**batch_size** is how many are made, **k** how many are kept. The file's name has the score."),
    "RALI - XY plot with scores": CHECKPOINT
    + (
        "\n\nFour settings, one noise: the four KSamplers have the **same seed**. Change **cfg** and **steps** in "
        "them, and the lines of the text below to match."
    ),
    "RALI - combine with another scorer": CHECKPOINT
    + (
        "\n\nPut a **prompt-aware scorer** of another pack (PickScore, ImageReward, CLIP score) in place of the second "
        "RALI Score: any list of numbers fits. Ranks are averaged, so its scale does not matter; where less is "
        "better name its list in **lower_is_better**."
    ),
    "RALI - best-of-N sampler with early stop": CHECKPOINT
    + ("\n\nOne seed after the other, up to **n**, until an image reaches **threshold**. Only the best is kept."),
    "RALI - custom sampling, best of 8": CHECKPOINT
    + (
        "\n\nFor models that take a GUIDER and SIGMAS (Flux, SD3, Qwen-Image): wire yours. **early_pruning** stops the "
        "weaker half of the tries early."
    ),
    "RALI - until good, any sampler": CHECKPOINT
    + (
        "\n\nPut **any nodes** between Start and End. They run again with a new seed until the image reaches "
        "**threshold**, at most **n** times; the best try comes out."
    ),
    "RALI - refine the best": CHECKPOINT
    + ("\n\nSix drafts, the best **k** are sampled again at **denoise** 0.4, and the best of those is saved."),
    "RALI - inpaint the weak regions": CHECKPOINT
    + (
        "\n\nThe lowest fifth (**mask_limit**) of the image is sampled again at **denoise** 0.4; less keeps more. "
        "Compare the two scores, before and after."
    ),
}
"""What to change, in a note beside the nodes."""

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


def build(spec: Spec, note: str, info: dict[str, Any]) -> dict[str, Any]:
    """One workflow in the page's own format, with a note on its left."""
    numbers = {key: number for number, key in enumerate(spec, start=1)}
    links: list[list[Any]] = []
    nodes = []
    bottoms: dict[int, int] = {}
    for key, (kind, column, values, wires) in spec.items():
        described = info[kind]
        inputs, widgets, properties = [], [], {"Node name for S&R": kind}
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
                    widgets.append(values.get("control_after_generate", "randomize"))
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
            widgets, properties["models"] = [CHECKPOINT_FILE], MODELS
        slots = max(sum("widget" not in slot for slot in inputs), len(described["output"]))
        tall = height(kind, slots, len(widgets))
        top = bottoms.get(column, 40)
        bottoms[column] = top + tall + TITLE + GAP
        nodes.append(
            {
                "id": numbers[key], "type": kind, "pos": [20 + (column + 1) * (WIDTH + GAP), top],
                "size": [WIDTH, tall], "flags": {}, "order": numbers[key] - 1,
                "mode": 0, "inputs": inputs,
                "outputs": [
                    {"name": name, "type": type_, "links": []}
                    for name, type_ in zip(described["output_name"], described["output"], strict=True)
                ],
                "properties": properties, "widgets_values": widgets,
            }
        )  # fmt: skip
    for link in links:
        nodes[link[1] - 1]["outputs"][link[2]]["links"].append(link[0])
    nodes.append(
        {
            "id": len(nodes) + 1, "type": "MarkdownNote", "pos": [20, 40],
            "size": [WIDTH, 640 if "```" in note else 240],
            "flags": {}, "order": len(nodes), "mode": 0, "inputs": [], "outputs": [], "title": "What to change",
            "properties": {}, "widgets_values": [note],
        }
    )  # fmt: skip
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
        text = json.dumps(build(spec, NOTES[name], info), indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
