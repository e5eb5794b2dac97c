"""The official encoder on a GPU: its rate against the card's own, end to end, and against a language model's.

    python bench/gpu.py [--json FILE]       # a CUDA machine: minutes, 24 GB of its memory with the language model
    python bench/gpu.py --tiny              # the same on small models on the CPU: does the script work?

Without a CUDA device it reports that and ends. Needs the package and transformers. Weights are random. Measured are
1. images per second of the encoder in bfloat16 for batches of 1 to 256, as a share of the card's rate at a large matrix
   product;
2. images per second from uint8 images on the card, and from PIL images in main memory;
3. the time of one score as a share of the time in which Qwen2.5-VL-7B writes 100 tokens about one image, as a
   quality model does that describes before it scores (RALI's paper: 3.4 % of Q-Insight's time, at batch 16).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rali_core.benchmark import EMBED_DIM, OFFICIAL_SHAPE, random_model
from rali_core.checkpoint import ModelInfo
from rali_core.scorer import RaliScorer

TINY_SHAPE = {"image_size": 56, "layers": 2, "width": 64, "head_width": 32, "patch_size": 14}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIDE = 512
GOAL_SHARE = 0.6
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
    """Median seconds of `work()`, the device's queue empty before and after; two unmeasured calls first."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for number in range(rounds + 2):
        wait()
        begun = time.perf_counter()
        work()
        wait()
        if number >= 2:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def matrix_rate(device: torch.device, side: int, rounds: int) -> float:
    """Operations per second of a square bfloat16 matrix product; a multiplication and an addition are two."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: left @ right, device, rounds)


def encoder_operations(shape: dict[str, Any], embed_dim: int) -> int:
    """Operations of the matrix products for one image, counted as the encoder computes them.

    Args:
        shape: `image_size`, `patch_size`, `width` and `layers`; the MLP is four times as wide.
        embed_dim: Length of the embedding.
    """
    width, patches = shape["width"], (shape["image_size"] // shape["patch_size"]) ** 2
    tokens = patches + 1
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    last = tokens * 2 * width**2 + 10 * width**2 + 2 * tokens * width  # one query; keys and values of all tokens
    embedding = patches * 3 * shape["patch_size"] ** 2 * width
    return int(2 * (embedding + (shape["layers"] - 1) * block + last + width * embed_dim))


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
    shape, batches, side, rounds = (TINY_SHAPE, (1, 2), 64, 1) if tiny else (OFFICIAL_SHAPE, BATCHES, SIDE, 10)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    rate = matrix_rate(device, 256 if tiny else 8192, rounds)
    info = ModelInfo("random", "Apache-2.0")
    scorer = RaliScorer(random_model(shape), info, device=device, dtype="bfloat16")
    model, size = scorer.model, shape["image_size"]
    operations = encoder_operations(shape, EMBED_DIM)
    result: dict[str, Any] = {
        "card": card, "torch": torch.__version__, "matrix_tflops": rate / 1e12, "gflop_per_image": operations / 1e9,
        "encoder": [], "end_to_end": [],
    }  # fmt: skip
    with torch.inference_mode():
        for batch in batches:
            crops = torch.randn(batch, 3, size, size, device=device, dtype=torch.bfloat16)
            took = seconds(lambda crops=crops: model.head(model.embed(crops)), device, rounds)  # type: ignore[misc]
            images = batch / took
            result["encoder"].append(
                {"batch": batch, "images_per_s": images, "share": images * operations / rate, "ms": took * 1e3}
            )
        for batch in (batches[0], batches[-1]):
            pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
            took = seconds(lambda pixels=pixels: score_levels(model, pixels), device, rounds)  # type: ignore[misc]
            result["end_to_end"].append({"from": "uint8 on the card", "batch": batch, "images_per_s": batch / took})
            pil_images = [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]
            scorer.batch_size = batch
            took = seconds(lambda pil_images=pil_images: scorer.score(pil_images), device, rounds)  # type: ignore[misc]
            result["end_to_end"].append({"from": "PIL", "batch": batch, "images_per_s": batch / took})
        one = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=device)
        ours = seconds(lambda: score_levels(model, one), device, rounds)
        many = torch.randint(0, 256, (16 if not tiny else 2, 3, side, side), dtype=torch.uint8, device=device)
        ours_batched = seconds(lambda: score_levels(model, many), device, rounds) / len(many)
    try:
        config = QWEN_TINY if tiny else QWEN_7B
        theirs = language_seconds(config, device, 5 if tiny else 100, 1 if tiny else 3)
        result["language"] = {"seconds": theirs, "share": ours / theirs, "share_of_batch_16": ours_batched / theirs}
    except (ImportError, torch.OutOfMemoryError) as error:
        result["language"] = {"error": f"{type(error).__name__}: {error}"}
    return result


def score_levels(model: Any, levels: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to (B,) scores."""
    scores: Tensor = model(levels.float() / 255.0, coverage="center")
    return scores


def show(result: dict[str, Any]) -> None:
    """Print the figures and the goals."""
    print(f"{result['card']}, torch {result['torch']}: bfloat16 matrix product {result['matrix_tflops']:.1f} TFLOP/s")
    print(f"encoder: {result['gflop_per_image']:.1f} GFLOP per image\n{'batch':>6}{'images/s':>12}{'share':>8}")
    for row in result["encoder"]:
        print(f"{row['batch']:>6}{row['images_per_s']:>12.1f}{row['share']:>8.1%}")
    for row in result["end_to_end"]:
        print(f"end to end from {row['from']}, batch {row['batch']}: {row['images_per_s']:.1f} images/s")
    best = max(row["share"] for row in result["encoder"])
    print(
        f"best share of the matrix rate {best:.1%}, goal {GOAL_SHARE:.0%}: {'met' if best >= GOAL_SHARE else 'not met'}"
    )
    language = result["language"]
    if "error" in language:
        print(f"Qwen2.5-VL-7B not measured: {language['error']}")
        return
    met = "met" if language["share"] <= GOAL_LANGUAGE else "not met"
    print(
        f"Qwen2.5-VL-7B writes for {language['seconds']:.2f} s; a score takes {language['share']:.2%} of that, in "
        f"batches of 16 {language['share_of_batch_16']:.2%}; goal {GOAL_LANGUAGE:.0%}: {met}"
    )


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
