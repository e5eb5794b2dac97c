"""The table of docs/diffusers.md: every family under each condition, with and without pruning, and its seed alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rali_core.diffusers_hook import SuccessiveHalving, best_of_n
from rali_core.diffusers_hook.latents import why_no_preview

diffusers = pytest.importorskip("diffusers", minversion="0.42")

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "diffusers.md"
NAMES = {
    "sd15": "Stable Diffusion 1.5", "sdxl": "SDXL", "sd3": "Stable Diffusion 3", "flux": "Flux", "flux2": "Flux 2",
    "qwen": "Qwen-Image", "sana": "Sana", "z_image": "Z-Image", "krea2": "Krea 2", "pixart": "PixArt",
    "lumina2": "Lumina 2", "hidream": "HiDream", "chroma": "Chroma", "kolors": "Kolors",
    "kandinsky22": "Kandinsky 2.2", "kandinsky5": "Kandinsky 5", "wan": "Wan", "ltx": "LTX",
    "animatediff": "AnimateDiff", "cogvideox": "CogVideoX",
}  # fmt: skip


def networks(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or pipe.unet


@contextmanager
def plain(pipe: Any) -> Iterator[None]:
    del pipe
    yield


@contextmanager
def deterministic(pipe: Any) -> Iterator[None]:
    del pipe
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def offloaded(pipe: Any) -> Iterator[None]:
    """What enable_model_cpu_offload() builds, with the CPU in the place of the GPU that it insists on."""
    from accelerate import cpu_offload_with_hook

    hook = None
    for module in networks(pipe):
        _, hook = cpu_offload_with_hook(module, torch.device("cpu"), prev_module_hook=hook)
    yield


@contextmanager
def group_offloaded(pipe: Any) -> Iterator[None]:
    denoiser(pipe).enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
    yield


@contextmanager
def quantised(pipe: Any) -> Iterator[None]:
    """Weights stored as float8, the quantisation that diffusers does itself."""
    denoiser(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    yield


@contextmanager
def compiled(pipe: Any) -> Iterator[None]:
    """Graphs as torch.compile captures them, without generated code, which takes a minute for each."""
    torch.compiler.reset()
    denoiser(pipe).compile(backend="eager")
    yield
    torch.compiler.reset()


CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "plain": plain, "deterministic": deterministic, "offload": offloaded, "group offload": group_offloaded,
    "float8": quantised, "compiled": compiled,
}  # fmt: skip


def contrast(images: list[Any]) -> list[float]:
    return [float(np.asarray(image, dtype=np.float64).std()) for image in images]


def arrays_of(output: Any) -> np.ndarray:
    images = next(output[key] for key in ("images", "image", "frames") if key in output)
    return np.stack([np.asarray(each) for each in images[0]]) if isinstance(images[0], list) else np.asarray(images[0])


def try_condition(name: str, condition: str, families: Any) -> str:
    """What the table says: `same`, `varies` (the plain pipeline does), or `fails` (it does)."""
    pipe, call = families.make(name)
    call["num_inference_steps"] = 2
    prunes = (None,) if why_no_preview(type(pipe)) else (None, SuccessiveHalving(at=(0.5,)))
    with CONDITIONS[condition](pipe):

        def alone(seed: int) -> np.ndarray:
            return arrays_of(pipe(**call, generator=torch.Generator("cpu").manual_seed(seed)))

        try:
            alone(0)
        except RuntimeError:
            return "fails"
        for prune in prunes:
            result = best_of_n(pipe, n=2, scorer=contrast, prune=prune, **call)
            (seed,) = result.seeds
            assert result.report.denoiser_calls, "it is counted"
            expected = alone(seed)
            if not np.array_equal(expected, alone(seed)):
                return "varies"
            kept = result.images[0]
            found = np.stack([np.asarray(each) for each in kept]) if isinstance(kept, list) else np.asarray(kept)
            assert np.array_equal(found, expected), "the winner alone is another image"
    return "same"


@pytest.mark.parametrize(
    "condition", [pytest.param(name, marks=pytest.mark.slow if name == "compiled" else ()) for name in CONDITIONS]
)
@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_happens(name: str, condition: str, families: Any) -> None:
    table = re.search(r"^\| family \|.*?\n\n", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert table is not None
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines() if line]
    written = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert written.keys() == set(NAMES.values())
    assert set(head) == {"family", "pruning", *CONDITIONS}
    assert written[NAMES[name]][condition] == try_condition(name, condition, families)
    pruning = why_no_preview(type(families.build(name)[0]))
    assert written[NAMES[name]]["pruning"] == ("works" if pruning is None else pruning)


@pytest.mark.slow
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("name", ["chroma"])
def test_generated_code_gives_the_same_image_and_is_not_compiled_again_for_each_call(
    name: str, fullgraph: bool, families: Any
) -> None:
    from torch._dynamo.utils import counters

    pipe, call = families.make(name)
    torch.compiler.reset()
    counters.clear()
    try:
        denoiser(pipe).compile(fullgraph=fullgraph)
        for _ in range(2):
            for prune in (None, SuccessiveHalving(at=(0.5,))):
                result = best_of_n(pipe, n=2, scorer=contrast, prune=prune, **call)
                alone = arrays_of(pipe(**call, generator=torch.Generator("cpu").manual_seed(result.seeds[0])))
                assert np.array_equal(np.asarray(result.images[0]), alone)
        assert counters["stats"]["unique_graphs"] <= 4
    finally:
        torch.compiler.reset()
