"""The official encoder and the bundled model on a GPU: their rate against the card's own, end to end, memory, and
against a language model.

    python bench/gpu.py [--json FILE]       # a CUDA machine: minutes, 24 GB of its memory with the language model
    python bench/gpu.py --tiny              # the same on small models on the CPU: does the script work?

Without a CUDA device it reports that and ends. Needs the package and transformers. The official encoder's weights are
random. Measured are, for each of the two models,
1. images per second of the encoder for batches of 1 to 256, as a share of the card's rate at a large matrix product
   (`encoder_rate.py`, which also names the operators that the time goes to);
2. images per second from uint8 images on the card, from PIL images in main memory, and from JPEG files, beside what
   decoding these alone takes;
3. memory of the card at the largest batch, and what is left of it when the scorer is gone;
and the time of one score as a share of the time in which Qwen2.5-VL-7B writes 100 tokens about one image, as a
quality model does that describes before it scores (RALI's paper: 3.4 % of Q-Insight's time, at batch 16).
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoder_rate
import torch
from PIL import Image
from torch import Tensor

from rali_core.benchmark import OFFICIAL_SHAPE, random_model
from rali_core.checkpoint import ModelInfo
from rali_core.images import load_image
from rali_core.scorer import RaliScorer

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FILES = 256
SIDE = 512
GOAL_SHARE = 0.6
"""Of the official encoder, at a batch of 64."""
GOAL_IMAGES = 2000
"""Of the bundled model: images of 512 x 512 a second, from uint8 on the card."""
GOAL_LANGUAGE = 0.01

QWEN_7B = {
    "text_config": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584,
        "patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "image_token_id": 151655, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
}  # fmt: skip
"""The published sizes of Qwen2.5-VL-7B-Instruct."""

QWEN_TINY = {
    "text_config": {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 128, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    },
    "vision_config": {
        "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64,
        "patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [0],
    },
    "image_token_id": 120, "vision_start_token_id": 121, "vision_end_token_id": 122,
}  # fmt: skip


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of `work()`; two unmeasured calls first."""
    return statistics.median([encoder_rate.seconds(work, device) for _ in range(rounds + 2)][2:])


def language_seconds(config: dict[str, Any], device: torch.device, tokens: int, rounds: int) -> float:
    """Seconds in which Qwen2.5-VL with random weights reads one image of 504 x 504 and writes `tokens` tokens."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    settings = Qwen2_5_VLConfig(**config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = Qwen2_5_VLForConditionalGeneration(settings).eval()
    finally:
        torch.set_default_dtype(before)
    grid, merged = 36, 18 * 18
    words = torch.arange(50) % 100 + 1
    start, pad, end = (torch.tensor([config[f"{name}_token_id"]]) for name in ("vision_start", "image", "vision_end"))
    prompt = torch.cat([words[:25], start, pad.expand(merged), end, words[25:]]).unsqueeze(0).to(device)
    inputs = {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "pixel_values": torch.randn(grid * grid, 3 * 2 * 14 * 14, device=device, dtype=torch.bfloat16),
        "image_grid_thw": torch.tensor([[1, grid, grid]], device=device),
        "mm_token_type_ids": (prompt == config["image_token_id"]).int(),
    }

    def write() -> None:
        made = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        assert made.shape[1] == prompt.shape[1] + tokens

    with torch.inference_mode():
        return seconds(write, device, rounds)


def measure(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """All figures; JSON."""
    shape = encoder_rate.TINY_SHAPE if tiny else OFFICIAL_SHAPE
    batches, rounds = ((1, 2), 1) if tiny else (BATCHES, 10)
    dtype = "bfloat16"

    def official(name: str) -> RaliScorer:
        return RaliScorer(random_model(shape), ModelInfo("random", "Apache-2.0"), device=device, dtype=name)  # type: ignore[arg-type]

    def bundled(name: str) -> RaliScorer:
        return RaliScorer.from_pretrained(device=str(device), dtype=name)  # type: ignore[arg-type]

    makers = {"official": official} if tiny else {"official": official, "bundled": bundled}
    models: Any = {name: lambda dtype, make=make: make(dtype).model for name, make in makers.items()}
    sides = (256,) if tiny else encoder_rate.SIDES["cuda"]
    result = encoder_rate.measure(
        models, device, dtypes=[dtype], batches=batches, sides=sides, rounds=1 if tiny else encoder_rate.ROUNDS
    )
    result["end_to_end"], result["memory"] = [], []
    for name, make in makers.items():
        result["end_to_end"] += measure_end_to_end(name, make(dtype), batches, rounds, tiny=tiny)
        result["memory"].append(measure_memory(name, make, device, batches[-1]))
    scorer = official(dtype)
    ours = seconds(lambda: scorer.model(random_levels(1, device), coverage="center"), device, rounds)
    many = random_levels(2 if tiny else 16, device)
    ours_batched = seconds(lambda: scorer.model(many, coverage="center"), device, rounds) / len(many)
    try:
        config = QWEN_TINY if tiny else QWEN_7B
        theirs = language_seconds(config, device, 5 if tiny else 100, 1 if tiny else 3)
        result["language"] = {"seconds": theirs, "share": ours / theirs, "share_of_batch_16": ours_batched / theirs}
    except (ImportError, torch.OutOfMemoryError) as error:
        result["language"] = {"error": f"{type(error).__name__}: {error}"}
    return result


def random_levels(count: int, device: torch.device) -> Tensor:
    """(count, 3, SIDE, SIDE) uint8."""
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, device=device)


def measure_end_to_end(
    name: str, scorer: RaliScorer, batches: tuple[int, ...], rounds: int, *, tiny: bool
) -> list[dict[str, Any]]:
    """Images per second of one scorer by where the images come from."""
    device, rows = scorer.model.device, []

    def add(source: str, batch: int, count: int, work: Callable[[], object]) -> None:
        rows.append({
            "model": name, "from": source, "batch": batch, "images_per_s": count / seconds(work, device, rounds),
        })  # fmt: skip

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for batch in (batches[0], batches[-1]):
            pixels = random_levels(batch, device)
            images = [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]
            scorer.batch_size = batch
            add("uint8 on the card", batch, batch, lambda pixels=pixels: scorer.model(pixels, coverage="center"))  # type: ignore[misc]
            add("PIL images", batch, batch, lambda images=images: scorer.score(images))  # type: ignore[misc]
        paths = [Path(folder, f"{number}.jpg") for number in range(2 if tiny else FILES)]
        for number, path in enumerate(paths):
            images[number % len(images)].save(path, quality=90)
        add("JPEG files", batches[-1], len(paths), lambda: scorer.score(paths))
        add("JPEG files, decoded only, by one thread", 1, len(paths), lambda: [load_image(path) for path in paths])
    return rows


def measure_memory(name: str, make: Callable[[str], RaliScorer], device: torch.device, batch: int) -> dict[str, Any]:
    """Megabytes of the card that a score of the largest batch takes at most, and what is left without the scorer."""
    if device.type != "cuda":
        return {"model": name, "batch": batch, "most_mb": None, "left_mb": None}
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    scorer, pixels = make("bfloat16"), random_levels(batch, device)
    with torch.inference_mode():
        scorer.model(pixels, coverage="center")
    most = torch.cuda.max_memory_allocated(device) - before
    del scorer, pixels
    gc.collect()
    left = torch.cuda.memory_allocated(device) - before
    return {"model": name, "batch": batch, "most_mb": most / 2**20, "left_mb": left / 2**20}


def show(result: dict[str, Any]) -> None:
    """Print the figures and the goals."""
    encoder_rate.show(result)
    print()
    for row in result["end_to_end"]:
        print(f"{row['model']}, from {row['from']}, batch {row['batch']}: {row['images_per_s']:.1f} images/s")
    for row in result["memory"]:
        if row["most_mb"] is not None:
            print(f"{row['model']}, batch {row['batch']}: {row['most_mb']:,.0f} MB at most, {row['left_mb']:,.1f} left")
    shares = {entry["model"]: max(row["share"] for row in entry["batches"]) for entry in result["models"]}
    report("best share of the matrix rate, official encoder", shares["official"], GOAL_SHARE, "{:.0%}")
    on_card = [
        row["images_per_s"] for row in result["end_to_end"] if row["model"] == "bundled" and "card" in row["from"]
    ]
    if on_card:
        report("bundled model, images/s from uint8 on the card", max(on_card), GOAL_IMAGES, "{:,.0f}")
    language = result["language"]
    if "error" in language:
        print(f"Qwen2.5-VL-7B not measured: {language['error']}")
        return
    print(f"Qwen2.5-VL-7B writes for {language['seconds']:.2f} s; in batches of 16 a score takes "
          f"{language['share_of_batch_16']:.2%} of that")  # fmt: skip
    report("one score's share of that time", language["share"], GOAL_LANGUAGE, "{:.2%}", at_least=False)


def report(what: str, value: float, goal: float, form: str, *, at_least: bool = True) -> None:
    """One line: the figure, the goal, whether it is met."""
    met = value >= goal if at_least else value <= goal
    print(f"{what}: {form.format(value)}, goal {form.format(goal)}: {'met' if met else 'not met'}")


def main() -> int:
    """Measure on the first CUDA device, or say that there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU; the figures mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("skipped: there is no CUDA device here")
        return 0
    result = measure(torch.device("cpu" if options.tiny else "cuda"), tiny=options.tiny)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
