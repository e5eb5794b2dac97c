"""What was measured as text, Markdown and plots, with the goals of the project beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .contenders import REFERENCE

FAST, SMALL = "ours, official encoder, auto", "ours, bundled, auto"
NIQE = "NIQE (scikit-video)"


def format_case(case: Mapping[str, Any], reference: str) -> str:
    """A table of one case."""
    lines = [
        f"{case['size']} x {case['size']}, batch {case['batch']}, {case['kind']}",
        f"{'':<40}{'images/s':>10}{'min':>9}{'max':>9}{'CPU s/image':>13}{'x ' + reference:>19}{'x by CPU s':>12}",
    ]
    for name, values in case["contenders"].items():
        if "error" in values:
            lines.append(f"{name:<40}{values['error']}")
            continue
        rate = values["rate"]
        shown = f"{name} ({values['dtype']})" if name.endswith("auto") else name
        ratio = f"{values['ratio']:>19.2f}{values['processor_ratio']:>12.2f}" if "ratio" in values else ""
        lines.append(
            f"{shown:<40}{rate['median']:>10.3f}{rate['min']:>9.3f}{rate['max']:>9.3f}{values['processor']:>13.4f}{ratio}"
        )
    return "\n".join(lines)


def goals(result: Mapping[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """(goal, wanted, measured, met) for what was measured; met is None where something was missing."""
    cases = result["compare"]["cases"]
    main: Mapping[str, Any] = next((case["contenders"] for case in cases if case["size"] == 512), {})

    def ratio(name: str, other: str = REFERENCE) -> float | None:
        ours, theirs = main.get(name, {}), main.get(other, {})
        if "ratio" not in ours or "ratio" not in theirs:
            return None
        value: float = ours["ratio"] / theirs["ratio"]
        return value

    memory = result.get("memory", {}).get(FAST, {})
    found: list[tuple[str, str, float | None, float, bool]] = [
        ("official encoder: images/s of the official recipe's", ">= 3", ratio(FAST), 3.0, True),
        ("official encoder: peak memory of the official recipe's", "<= 0.35", memory.get("ratio"), 0.35, False),
        ("the same above what importing torch takes", "(<= 0.35)", memory.get("ratio_above_torch"), 0.35, False),
        ("bundled model: images/s of the official recipe's", ">= 40", ratio(SMALL), 40.0, True),
        ("bundled model: images/s of NIQE's at 512 x 512", ">= 1", ratio(SMALL, NIQE), 1.0, True),
        ("folder: share of the model-only rate", ">= 0.9", result.get("folder", {}).get("share"), 0.9, True),
        ("rali score one.jpg: time of import torch", "<= 1.3",
         result.get("cold_start", {}).get("ratio", {}).get("median"), 1.3, False),
        ("cache hit, 4 x 1024 x 1024: milliseconds", "<= 5", result.get("cache", {}).get("median"), 5.0, False),
    ]  # fmt: skip
    for dtype, values in result.get("agreement", {}).items():
        found.append((f"{dtype}: SRCC with float32", ">= 0.999", values["srcc"], 0.999, True))
        found.append((f"{dtype}: largest difference", "<= 0.01", values["largest"], 0.01, False))
    return [
        (what, wanted, "-" if value is None else f"{value:.4g}",
         None if value is None else (value >= limit if at_least else value <= limit))
        for what, wanted, value, limit, at_least in found
    ]  # fmt: skip


def format_goals(result: Mapping[str, Any]) -> str:
    """A Markdown table of the goals."""
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [f"| {what} | {wanted} | {value} | {words[met]} |" for what, wanted, value, met in goals(result)]
    return "\n".join(["| goal | wanted | measured | met |", "|---|---|---|---|", *rows])


def format_markdown(result: Mapping[str, Any], command: str, plots: Mapping[str, str]) -> str:
    """The whole report.

    Args:
        result: See `suite.run_suite`.
        command: That made it.
        plots: Captions by file name.
    """
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    parts = [
        "# Benchmarks",
        f"Made by `{command}`. All contenders run in turns on one machine, each in its own process; the figures are "
        "medians over the rounds, and the ratios are medians of the ratios within a round.",
        f"Machine: {machine['processor']}, {machine['cores']} cores ({machine['instructions']}), {machine['threads']} "
        f"threads, {machine['system']}; Python {machine['python']}, {versions}.",
        "Weights are random where the published ones would have to be downloaded: the cost is the same.",
        "## Goals",
        format_goals(result),
    ]
    parts += [f"![{caption}]({name})" for name, caption in plots.items()]
    parts.append("## Speed")
    parts += [f"```text\n{format_case(case, REFERENCE)}\n```" for case in result["compare"]["cases"]]
    if "scaling" in result:
        parts.append("## How the cost grows")
        parts += [f"```text\n{format_case(case, REFERENCE)}\n```" for case in result["scaling"]["cases"]]
    if result.get("growth"):
        rows = [
            f"| {entry['images']:.0f} | {entry['seconds']:.1f} | {entry['seconds'] / entry['images']:.3f} |"
            for entry in result["growth"]
        ]
        parts.append("\n".join(["| files | seconds, start included | seconds a file |", "|---|---|---|", *rows]))
    if result.get("memory"):
        rows = [
            f"| {name} | {values['peak'] / 2**20:,.0f} | {values.get('ratio', float('nan')):.2f} | "
            f"{values['above_torch'] / 2**20:,.0f} | {values.get('ratio_above_torch', float('nan')):.2f} |"
            for name, values in result["memory"].items()
        ]
        head = ["| contender | peak MiB | x recipe | above `import torch` MiB | x recipe |", "|---|---|---|---|---|"]
        parts += ["## Peak memory", "\n".join([*head, *rows])]
    missing = {**result["compare"]["missing"], **result.get("scaling", {}).get("missing", {})}
    if missing:
        parts += ["## Not measured", "\n".join(f"- {name}: {reason}" for name, reason in missing.items())]
    return "\n\n".join(parts) + "\n"


def draw(result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Plots of how the cost grows with pixels and with the batch.

    Returns:
        Captions by file name.
    """
    from matplotlib.figure import Figure

    cases = result.get("scaling", {}).get("cases", [])
    drawn = {}
    for axis, fixed, caption in (
        ("size", "batch", "Seconds per picture by its side in pixels, batch 1"),
        ("batch", "size", "Seconds per picture by batch, 512 x 512"),
    ):
        value = 1 if fixed == "batch" else 512
        chosen = [case for case in cases if case[fixed] == value and case["kind"] == "pil"]
        if len({case[axis] for case in chosen}) < 2:
            continue
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        for name in dict.fromkeys(name for case in chosen for name in case["contenders"]):
            points = sorted(
                (case[axis], 1 / case["contenders"][name]["rate"]["median"])
                for case in chosen
                if "rate" in case["contenders"].get(name, {})
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        _label(axes, sorted({case[axis] for case in chosen}), xlabel=axis, ylabel="seconds per picture", title=caption)
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
    """Lines on ratios to the reference that fell under `tolerance` times the baseline's; none where all is well.

    Processor time is compared, which other work on the machine disturbs least.
    """
    lines = []
    before = {(case["size"], case["batch"], case["kind"]): case for case in baseline["compare"]["cases"]}
    for case in result["compare"]["cases"]:
        known = before.get((case["size"], case["batch"], case["kind"]), {"contenders": {}})["contenders"]
        for name, values in known.items():
            old, new = values.get("processor_ratio"), case["contenders"].get(name, {}).get("processor_ratio")
            if old is not None and (new is None or new < tolerance * old):
                got = "not measured" if new is None else f"{new:.2f}"
                lines.append(f"slower than the baseline: {name}, {case['size']} x {case['size']}: {got}, was {old:.2f}")
    return lines
