"""The results as Markdown and plots, and compared with a baseline."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FAST, SMALL = "ours, official encoder, auto", "ours, bundled, auto"
NIQE = "NIQE (scikit-video)"


def format_table(result: Mapping[str, Any]) -> str:
    """A Markdown table: a row a scorer, speed at 512 x 512 alone, and memory."""
    case = next(case for case in result["compare"]["cases"] if (case["size"], case["kind"]) == (512, "pil"))
    rows = []
    for name, values in case["scorers"].items():
        if "error" in values:
            continue
        shown = f"{name} ({values['dtype']})" if name.endswith("auto") else name
        memory = result.get("memory", {}).get(name, {})
        peak = [f"{memory['peak'] / 2**20:,.0f}", f"{memory['ratio']:.2f}"] if "ratio" in memory else ["-", "-"]
        ratio = f"{values['ratio']:.2f}" if "ratio" in values else "-"
        cells = [shown, f"{values['rate']['median']:.2f}", ratio, f"{values['processor']:.3f}", *peak]
        rows.append("| " + " | ".join(cells) + " |")
    head = "| | images/s | x recipe | CPU s/image | peak MiB | x recipe |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def format_markdown(result: Mapping[str, Any], command: str, plots: Mapping[str, str]) -> str:
    """The whole report.

    Args:
        result: See `suite.run_full`.
        command: That made it.
        plots: Captions by file name.
    """
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    parts = [
        "# Benchmarks",
        f"Made by `{command}`. `rali bench` measures your model on your machine.",
        _wrap(
            f"Machine: {machine['processor']}, {machine['cores']} cores ({machine['instructions']}), "
            f"{machine['threads']} threads, {machine['system']}; Python {machine['python']}, {versions}."
        ),
        _wrap(
            "One image of 512 x 512 pixels at a time. All run in turns on one machine, each in its own process; "
            "figures are medians over the rounds, ratios the medians of the ratios within a round. Weights are random "
            "where the published ones would have to be downloaded: the cost is the same. The official recipe is "
            "transformers' `CLIPModel` (ViT-L/14 at 336 pixels) in float32 with its image processor. What `auto` chose "
            "is measured twice: what lies between both lines is the machine's noise."
        ),
        format_table(result),
    ]
    others = []
    if "cold_start" in result:
        others.append(f"- `rali score one.jpg`, start included: {result['cold_start']['ratio']['median']:.2f} times "
                      "`import torch`")  # fmt: skip
    if "folder" in result:
        others.append(f"- a folder of JPEGs of 1024 x 768: {result['folder']['whole']:.1f} images/s, "
                      f"{result['folder']['share']:.0%} of the model alone on prepared input")  # fmt: skip
    if "cache" in result:
        others.append(f"- four images of 1024 x 1024 found in the score cache: {result['cache']['median']:.1f} ms")
    others += [
        f"- {dtype}: SRCC {values['srcc']:.4f} with float32 on {values['images']} images, largest difference "
        f"{values['largest']:.4f}"
        for dtype, values in result.get("agreement", {}).items()
    ]
    parts += ["\n".join(others)] if others else []
    parts += [f"![{caption}]({name})" for name, caption in plots.items()]
    missing = {**result["compare"]["missing"], **result.get("scaling", {}).get("missing", {})}
    if missing:
        parts.append("Not measured: " + "; ".join(f"{name} ({reason})" for name, reason in missing.items()) + ".")
    parts.append("What was tried and rejected: [experiments.md](experiments.md).")
    return "\n\n".join(parts) + "\n"


def _wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def draw(result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Plots of how the cost grows with pixels and with the batch.

    Returns:
        Captions by file name.
    """
    from matplotlib.figure import Figure

    cases = result.get("scaling", {}).get("cases", [])
    drawn = {}
    for axis, fixed, caption in (
        ("size", "batch", "Seconds per image by its side in pixels, batch 1"),
        ("batch", "size", "Seconds per image by batch, 512 x 512"),
    ):
        value = 1 if fixed == "batch" else 512
        chosen = [case for case in cases if case[fixed] == value and case["kind"] == "pil"]
        if len({case[axis] for case in chosen}) < 2:
            continue
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        for name in dict.fromkeys(name for case in chosen for name in case["scorers"]):
            points = sorted(
                (case[axis], 1 / case["scorers"][name]["rate"]["median"])
                for case in chosen
                if "rate" in case["scorers"].get(name, {})
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        _label(axes, sorted({case[axis] for case in chosen}), xlabel=axis, ylabel="seconds per image", title=caption)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        name = f"benchmark-{axis}.png"
        figure.savefig(folder / name, dpi=120)
        drawn[name] = caption
    if growth := result.get("growth"):
        caption = "Seconds of `rali score FOLDER`, start included, by the number of files"
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        counts = [entry["images"] for entry in growth]
        axes.plot(counts, [entry["seconds"] for entry in growth], marker="o")
        _label(axes, counts, xlabel="files", ylabel="seconds", title=caption.replace("`", ""))
        figure.savefig(folder / "benchmark-images.png", dpi=120)
        drawn["benchmark-images.png"] = caption
    return drawn


def _label(axes: Any, ticks: Sequence[float], **texts: str) -> None:
    axes.set(xscale="log", yscale="log", **texts)
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def compare_with_baseline(
    result: Mapping[str, Any], baseline: Mapping[str, Any], *, tolerance: float = 0.8
) -> list[str]:
    """Lines on ratios to the reference that fell under `tolerance` times the baseline's; none if nothing is slower.

    Processor time is compared, which other work on the machine disturbs least.
    """
    lines = []
    before = {(case["size"], case["batch"], case["kind"]): case for case in baseline["compare"]["cases"]}
    for case in result["compare"]["cases"]:
        known = before.get((case["size"], case["batch"], case["kind"]), {"scorers": {}})["scorers"]
        for name, values in known.items():
            old, new = values.get("processor_ratio"), case["scorers"].get(name, {}).get("processor_ratio")
            if old is not None and (new is None or new < tolerance * old):
                got = "not measured" if new is None else f"{new:.2f}"
                lines.append(f"slower than the baseline: {name}, {case['size']} x {case['size']}: {got}, was {old:.2f}")
    return lines
