"""RaliBestOfNBlock in diffusers' own modular pipelines, made from the tiny models."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.diffusers_hook import best_of_n

diffusers = pytest.importorskip("diffusers")
if not hasattr(diffusers, "StableDiffusion3AutoBlocks"):
    pytest.skip("this diffusers has no stable pipeline blocks", allow_module_level=True)

from rali_core.diffusers_hook import RaliBestOfNBlock  # noqa: E402

BLOCKS = {"sd3": "StableDiffusion3AutoBlocks", "sdxl": "StableDiffusionXLAutoBlocks", "flux": "FluxAutoBlocks"}
CALL: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 3, "height": 32, "width": 32}


def call_of(name: str, **changes: Any) -> dict[str, Any]:
    return {**CALL, **({"max_sequence_length": 16} if name == "flux" else {}), **changes}


def with_parts_of(blocks: Any, pipe: Any) -> Any:
    modular = blocks.init_pipeline()
    modular.update_components(
        **{
            name: part
            for name, part in pipe.components.items()
            if part is not None and name in modular._component_specs
        }
    )
    return modular


def plain(name: str, pipe: Any) -> Any:
    return with_parts_of(getattr(diffusers, BLOCKS[name])(), pipe)


def searching(name: str, pipe: Any, scorer: Any, parts: tuple[str, ...] = ("denoise", "decode")) -> Any:
    blocks = getattr(diffusers, BLOCKS[name])()
    inner = {part: blocks.sub_blocks.pop(part) for part in parts}
    blocks.sub_blocks["best_of_n"] = RaliBestOfNBlock(inner, scorer=scorer)
    return with_parts_of(blocks, pipe)


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@pytest.mark.parametrize("name", list(BLOCKS))
def test_the_known_best_seeds_win_and_alone_make_the_same_images_bit_for_bit(
    name: str, get_pipe: Any, contrast: Any
) -> None:
    pipe, call = get_pipe(name), call_of(name)
    without = plain(name, pipe)
    alone = {seed: without(**call, generator=generator(seed), output="images")[0] for seed in range(4)}
    known = sorted(alone, key=lambda seed: -contrast([alone[seed]])[0])
    state = searching(name, pipe, contrast)(**call, n=4, keep=2)
    assert list(state.winning_seeds) == known[:2]
    assert list(state.scores) == contrast([alone[seed] for seed in known[:2]])
    for image, seed in zip(state.images, state.winning_seeds, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(alone[seed]))


def test_what_stands_before_the_block_runs_once_and_the_denoiser_is_counted(get_pipe: Any, contrast: Any) -> None:
    pipe = get_pipe("sd3")
    encoded, denoised = [], []
    hooks = [
        pipe.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1)),
        pipe.transformer.register_forward_pre_hook(lambda *_: denoised.append(1)),
    ]
    plain("sd3", pipe)(**CALL, generator=generator(0))
    once, steps = len(encoded), len(denoised)
    state = searching("sd3", pipe, contrast)(**CALL, n=5)
    for hook in hooks:
        hook.remove()
    assert len(encoded) == 2 * once
    assert len(denoised) == steps * 6
    assert state.best_of_n.report.denoiser_calls == steps * 5


@pytest.mark.parametrize(("kind", "shape"), [("np", (2, 32, 32, 3)), ("pt", (2, 3, 32, 32))])
def test_images_come_in_the_form_that_was_asked_for(
    kind: str, shape: tuple[int, ...], get_pipe: Any, contrast: Any
) -> None:
    state = searching("sd3", get_pipe("sd3"), contrast)(**CALL, n=3, keep=2, output_type=kind)
    assert tuple(state.images.shape) == shape
    assert len(state.scores) == 2


def test_seeds_and_threshold_work_as_in_best_of_n(get_pipe: Any, contrast: Any, tmp_path: Any) -> None:
    pipe = searching("sd3", get_pipe("sd3"), contrast)
    state = pipe(**CALL, n=3, seeds=[7, 8, 9], threshold=0.0)
    assert state.winning_seeds == (7,)
    assert state.best_of_n.report.stopped == "threshold"
    state.best_of_n.save(tmp_path)
    record = json.loads((tmp_path / "best-of-n.json").read_text())
    assert record["settings"]["pipeline"] == "StableDiffusion3ModularPipeline"
    assert record["settings"]["arguments"]["prompt"] == "a cat"
    with pytest.raises(ValueError, match="expected n = 2 seeds, got 1"):
        pipe(**CALL, n=2, seeds=[1])


def test_a_state_can_be_used_again(get_pipe: Any, contrast: Any) -> None:
    pipe = searching("sd3", get_pipe("sd3"), contrast)
    state = pipe(**CALL, n=3, keep=2)
    again = pipe(state=state, n=3, keep=1)
    assert again.winning_seeds == state.winning_seeds[:1]
    assert again.get("generator") is None


def test_image_to_image_is_searched_with_its_encoder_inside(get_pipe: Any, contrast: Any) -> None:
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pipe, call = get_pipe("sd3"), call_of("sd3", image=start, strength=0.8)
    state = searching("sd3", pipe, contrast, ("vae_encoder", "denoise", "decode"))(**call, n=3)
    expected = plain("sd3", pipe)(**call, generator=generator(state.winning_seeds[0]), output="images")[0]
    assert np.array_equal(np.asarray(state.images[0]), np.asarray(expected))


def test_a_workflow_of_the_pipeline_keeps_the_block_whole(contrast: Any) -> None:
    blocks = diffusers.StableDiffusion3AutoBlocks()
    inner = {part: blocks.sub_blocks.pop(part) for part in ("denoise", "decode")}
    blocks.sub_blocks["best_of_n"] = RaliBestOfNBlock(inner, scorer=contrast)
    assert list(blocks.get_workflow("text2image").sub_blocks) == ["text_encoder", "best_of_n"]
    assert "n seeds" in blocks.sub_blocks["best_of_n"].doc
    copied = copy.deepcopy(blocks.sub_blocks["best_of_n"])
    assert copied._scorer is contrast


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": torch.Generator()}, "generator cannot be given here"),
        ({"latents": torch.zeros(1, 4, 16, 16)}, "latents cannot be given here"),
        ({"num_images_per_prompt": 2}, "expected num_images_per_prompt=1"),
        ({"output_type": "latent"}, "output_type pil, np or pt"),
        ({"prompt": ["a", "b"]}, "expected one prompt, got 2 images"),
        ({"keep": 9}, "keep must lie between 1 and n = 4"),
    ],
)
def test_incompatible_arguments_are_refused(changes: Any, message: str, get_pipe: Any, contrast: Any) -> None:
    with pytest.raises(ValueError, match=message):
        searching("sd3", get_pipe("sd3"), contrast)(**{**CALL, **changes})


def test_blocks_without_images_and_whole_modular_pipelines_are_refused(get_pipe: Any, contrast: Any) -> None:
    inner = {"denoise": diffusers.StableDiffusion3AutoBlocks().sub_blocks["denoise"]}
    with pytest.raises(ValueError, match=r"one gives images, such as a decoder; got \['denoise'\]"):
        RaliBestOfNBlock(inner)
    with pytest.raises(TypeError, match="put a RaliBestOfNBlock among them"):
        best_of_n(plain("sd3", get_pipe("sd3")), n=2, scorer=contrast, prompt="a cat")
