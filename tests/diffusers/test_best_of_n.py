from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.diffusers_hook import BestOfN, SuccessiveHalving, best_of_n
from rali_core.diffusers_hook.latents import latents_to_pixels
from rali_core.scorer import RaliScorer

FAMILIES = ["sd15", "sdxl", "sd3", "flux"]


def same(first: Any, second: Any) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_known_best_seed_wins_and_alone_gives_the_same_image_bit_for_bit(
    name: str, get_pipe: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    pipe, call = get_pipe(name), arguments(name)
    images = {seed: alone(pipe, seed, **call) for seed in range(5)}
    known = sorted(images, key=lambda seed: -contrast([images[seed]])[0])
    result = best_of_n(pipe, n=5, keep=2, scorer=contrast, **call)
    assert isinstance(result, BestOfN)
    assert list(result.seeds) == known[:2]
    assert same(result.images[0], images[result.seeds[0]])
    assert same(result.images[1], images[result.seeds[1]])
    assert result.scores[0] == contrast([images[known[0]]])[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_winner_from_a_batch_is_regenerated_alone_bit_for_bit(
    name: str, get_pipe: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    pipe, call = get_pipe(name), arguments(name, output_type="np")
    result = best_of_n(pipe, n=4, batch_size=4, scorer=contrast, **call)
    assert contrast.batches == [4, 1]
    assert same(result.images[0], alone(pipe, result.seeds[0], **call))
    without = best_of_n(pipe, n=4, batch_size=4, exact=False, scorer=contrast, **call)
    assert without.seeds == result.seeds
    assert np.abs(without.images[0] - result.images[0]).max() < 1e-4
    assert result.report.denoiser_calls == without.report.denoiser_calls * 5 / 4
    assert result.report.fraction_saved == pytest.approx(-0.25)


@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_noise_drawn_inside_the_steps_belongs_to_the_seed_too(
    scheduler: str, batch_size: int, tiny: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    import diffusers

    pipe = tiny.tiny_sd15()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    call = arguments("sd15", output_type="np", **({"eta": 1.0} if scheduler == "DDIMScheduler" else {}))
    result = best_of_n(pipe, n=3, batch_size=batch_size, scorer=contrast, exact=False, **call)
    expected = alone(pipe, result.seeds[0], **call)
    assert np.abs(result.images[0] - expected).max() < (1e-4 if batch_size > 1 else 1e-9)


def test_image_to_image_and_inpainting_pipelines_are_searched_too(
    sd15: Any, arguments: Any, alone: Any, contrast: Any
) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

    components = {name: part for name, part in sd15.components.items() if name != "image_encoder"}
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 8))
    call = {key: value for key, value in arguments("sd15").items() if key not in ("height", "width")}
    for kind, extra in (
        (StableDiffusionImg2ImgPipeline, {"image": start, "strength": 0.8}),
        (StableDiffusionInpaintPipeline, {"image": start, "mask_image": mask, "height": 32, "width": 32}),
    ):
        pipe = kind(**components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        result = best_of_n(pipe, n=3, scorer=contrast, **call, **extra)
        assert same(result.images[0], alone(pipe, result.seeds[0], **call, **extra))
        pruned = best_of_n(pipe, n=3, scorer=contrast, prune=SuccessiveHalving(at=(0.5,)), **call, **extra)
        assert same(pruned.images[0], alone(pipe, pruned.seeds[0], **call, **extra))


def test_seeds_may_be_chosen_and_default_to_counting(sd15: Any, arguments: Any, contrast: Any) -> None:
    result = best_of_n(sd15, n=2, keep=2, seeds=[77, 5], scorer=contrast, **arguments("sd15"))
    assert sorted(result.seeds) == [5, 77]
    assert [candidate.seed for candidate in result.report.candidates] == [77, 5]
    default = best_of_n(sd15, n=2, keep=2, scorer=contrast, **arguments("sd15", num_inference_steps=1))
    assert sorted(default.seeds) == [0, 1]


def test_it_stops_once_enough_images_reach_the_threshold(sd15: Any, arguments: Any, contrast: Any) -> None:
    result = best_of_n(sd15, n=6, keep=2, threshold=0.0, scorer=contrast, **arguments("sd15"))
    assert result.report.stopped == "threshold"
    assert contrast.batches == [1, 1]
    outcomes = [candidate.outcome for candidate in result.report.candidates]
    assert outcomes == ["kept", "kept", *["skipped"] * 4]
    assert result.report.denoiser_calls == 2 * 2 * 4
    assert result.report.full_denoiser_calls == 6 * 2 * 4
    never = best_of_n(sd15, n=2, threshold=1e9, scorer=contrast, **arguments("sd15"))
    assert never.report.stopped is None


def test_ctrl_c_returns_the_best_so_far_and_raises_only_without_any(sd15: Any, arguments: Any) -> None:
    made = 0

    def score(images: list[Image.Image]) -> list[float]:
        nonlocal made
        made += 1
        if made == 3:
            raise KeyboardInterrupt
        return [float(made)] * len(images)

    result = best_of_n(sd15, n=5, scorer=score, **arguments("sd15"))
    assert result.report.stopped == "interrupt"
    assert result.seeds == (1,)
    made = 2
    with pytest.raises(KeyboardInterrupt):
        best_of_n(sd15, n=5, scorer=score, **arguments("sd15"))


def test_the_progress_callback_sees_each_candidate_and_can_stop(sd15: Any, arguments: Any, contrast: Any) -> None:
    seen: list[tuple[int, int]] = []
    best_of_n(sd15, n=3, scorer=contrast, progress=lambda *now: seen.append(now), **arguments("sd15"))
    assert seen[0] == (1, 3)
    assert seen[-1] == (3, 3)
    result = best_of_n(sd15, n=3, scorer=contrast, progress=lambda done, _: done < 2, **arguments("sd15"))
    assert result.report.stopped == "progress"
    assert len(result) == 1


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_every_output_type_comes_back_as_asked_and_scores_alike(
    name: str, get_pipe: Any, arguments: Any, contrast: Any
) -> None:
    pipe = get_pipe(name)
    results = {
        kind: best_of_n(pipe, n=3, scorer=contrast, keep_latents=True, **arguments(name, output_type=kind))
        for kind in ("pil", "np", "pt", "latent")
    }
    assert {result.seeds for result in results.values()} == {results["pil"].seeds}
    assert isinstance(results["pil"].images[0], Image.Image)
    assert results["np"].images[0].shape == (32, 32, 3)
    assert results["pt"].images[0].shape == (3, 32, 32)
    assert torch.equal(results["latent"].images[0], results["latent"].latents[0])
    for result in results.values():
        assert result.pil_images[0].size == (32, 32)
        assert result.scores[0] == pytest.approx(results["pil"].scores[0], rel=1e-3)
    decoded = latents_to_pixels(pipe, results["latent"].images[0][None], height=32, width=32)[0]
    assert torch.allclose(decoded, results["pt"].images[0], atol=1e-5)


def test_nsfw_filtered_images_never_win_and_are_reported(tiny: Any, arguments: Any, contrast: Any) -> None:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    class Flags(StableDiffusionSafetyChecker):  # the real interface and blanking, with a verdict that is known
        def forward(self, clip_input: Any, images: Any) -> Any:
            del clip_input
            nonlocal calls
            flags = [(calls := calls + 1) in flagged for _ in range(len(images))]
            return torch.stack([image * (not flag) for image, flag in zip(images, flags, strict=True)]), flags

    calls, flagged = 0, {2, 3}
    pipe = tiny.tiny_sd15()
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**size, "image_size": 8, "patch_size": 4}
    pipe.register_modules(
        safety_checker=Flags(CLIPConfig(vision_config=vision, text_config=size, projection_dim=8)),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8),
    )
    result = best_of_n(pipe, n=4, keep=4, batch_size=2, exact=False, scorer=contrast, **arguments("sd15"))
    assert sorted(result.seeds) == [0, 3]
    assert [candidate.outcome for candidate in result.report.candidates] == [
        "kept",
        "nsfw_filtered",
        "nsfw_filtered",
        "kept",
    ]
    assert [candidate.score is None for candidate in result.report.candidates] == [False, True, True, False]
    calls, flagged = 0, {1, 2}
    with pytest.raises(RuntimeError, match="none of the 2 candidates can be kept: 2 x nsfw filtered"):
        best_of_n(pipe, n=2, scorer=contrast, **arguments("sd15"))


def test_a_list_of_prompts_gives_the_best_of_each(sd15: Any, arguments: Any, alone: Any, contrast: Any) -> None:
    prompts, negative = ["a cat", "a dog on a boat"], ["blurred", "dark"]
    call = arguments("sd15", prompt=prompts, negative_prompt=negative)
    result = best_of_n(sd15, n=3, keep=2, scorer=contrast, **call)
    assert result.prompts == (0, 0, 1, 1)
    assert len(result.report.candidates) == 6
    for image, seed, prompt in zip(result.images, result.seeds, result.prompts, strict=True):
        single = arguments("sd15", prompt=prompts[prompt], negative_prompt=negative[prompt])
        assert same(image, alone(sd15, seed, **single))


def test_prompt_embeddings_are_split_like_prompts(sd15: Any, arguments: Any, contrast: Any) -> None:
    embeds, negative = sd15.encode_prompt(["a cat", "a dog"], "cpu", 1, True, ["", ""])
    call = arguments("sd15", prompt=None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    result = best_of_n(sd15, n=2, scorer=contrast, **call)
    expected = best_of_n(sd15, n=2, scorer=contrast, **arguments("sd15", prompt=["a cat", "a dog"]))
    assert result.seeds == expected.seeds
    assert np.allclose(result.scores, expected.scores, atol=0.05)


def test_several_images_per_prompt_are_that_many_candidates_per_call(sd15: Any, arguments: Any, contrast: Any) -> None:
    best_of_n(sd15, n=5, scorer=contrast, exact=False, **arguments("sd15", num_images_per_prompt=2))
    assert contrast.batches == [2, 2, 1]


def test_memory_holds_only_the_kept_images(sd15: Any, arguments: Any) -> None:
    living: list[weakref.ref[Image.Image]] = []
    counts = []

    def score(images: list[Image.Image]) -> list[float]:
        gc.collect()
        counts.append(sum(reference() is not None for reference in living))
        living.extend(weakref.ref(image) for image in images)
        return [float(len(living))] * len(images)

    best_of_n(sd15, n=6, keep=1, scorer=score, **arguments("sd15", num_inference_steps=1))
    assert max(counts) <= 2  # the best so far, and the one that the last call made


def test_the_pipeline_is_left_as_it_was(tiny: Any, arguments: Any, contrast: Any) -> None:
    pipe = tiny.tiny_sd15()
    scheduler, before = pipe.scheduler, dict(vars(pipe.scheduler))
    attributes = dict(vars(pipe))
    best_of_n(pipe, n=4, prune=SuccessiveHalving(), scorer=contrast, **arguments("sd15"))
    assert pipe.scheduler is scheduler
    assert vars(pipe.scheduler).keys() == before.keys()
    assert pipe.scheduler.num_inference_steps is before["num_inference_steps"]
    assert vars(pipe).keys() == attributes.keys()
    assert not pipe.unet._forward_pre_hooks


def test_half_precision_pipelines_work(tiny: Any, arguments: Any, alone: Any, contrast: Any) -> None:
    pipe = tiny.tiny_sd15().to(torch.bfloat16)
    for prune in (None, SuccessiveHalving()):
        result = best_of_n(pipe, n=4, scorer=contrast, prune=prune, **arguments("sd15"))
        assert same(result.images[0], alone(pipe, result.seeds[0], **arguments("sd15")))


def test_offloaded_pipelines_work(tiny: Any, arguments: Any, contrast: Any) -> None:
    from accelerate import cpu_offload_with_hook

    expected = best_of_n(tiny.tiny_sd15(), n=3, scorer=contrast, **arguments("sd15"))
    pipe = tiny.tiny_sd15()
    hook = None
    # What enable_model_cpu_offload() builds, with the CPU in the place of the GPU that it insists on.
    for module in (pipe.text_encoder, pipe.unet, pipe.vae):
        _, hook = cpu_offload_with_hook(module, torch.device("cpu"), prev_module_hook=hook)
    for prune in (None, SuccessiveHalving()):
        result = best_of_n(pipe, n=3, scorer=contrast, prune=prune, **arguments("sd15"))
        assert result.seeds == expected.seeds
        assert same(result.images[0], expected.images[0])


def test_a_rali_scorer_scores_what_it_scores_alone(sd15: Any, arguments: Any, tiny_scorer: Any) -> None:
    result = best_of_n(sd15, n=3, keep=3, scorer=tiny_scorer, **arguments("sd15"))
    assert np.allclose(result.scores, tiny_scorer.score(list(result.images)).scores, atol=1e-6)
    assert list(result.scores) == sorted(result.scores, reverse=True)


def test_a_scorer_that_tells_attributes_says_what_is_wrong_with_each_finished_image(
    sd15: Any, arguments: Any, probing_model: Any, tiny_info: Any, tmp_path: Any
) -> None:
    scorer = RaliScorer(probing_model, tiny_info, device="cpu", attributes=True)
    result = best_of_n(sd15, n=3, keep=3, scorer=scorer, **arguments("sd15"))
    said = {candidate.seed: candidate.words for candidate in result.report.candidates}
    told = [scorer.score(image).attributes[0] for image in result.images]
    assert said == {seed: each.words for seed, each in zip(result.seeds, told, strict=True) if each}
    assert any(said.values())
    result.save(tmp_path)
    record = json.loads((tmp_path / "best-of-n.json").read_text())
    assert [tuple(candidate["words"]) for candidate in record["report"]["candidates"]] == list(said.values())
    plain = best_of_n(sd15, n=1, scorer=RaliScorer(probing_model, tiny_info, device="cpu"), **arguments("sd15"))
    assert plain.report.candidates[0].words == ()
    assert result.contact_sheet().height > plain.contact_sheet().height, "a line for the words"


def test_saving_writes_images_with_metadata_a_sheet_and_all_figures(
    sd15: Any, arguments: Any, contrast: Any, tmp_path: Any
) -> None:
    result = best_of_n(sd15, n=3, keep=2, keep_latents=True, scorer=contrast, **arguments("sd15"))
    paths = result.save(tmp_path / "out")
    assert [path.name for path in paths] == [f"best-{i + 1:02d}-seed-{seed}.png" for i, seed in enumerate(result.seeds)]
    with Image.open(paths[0]) as image:
        record = json.loads(image.text["rali"])
        assert same(image.convert("RGB"), result.images[0])
    assert record["seed"] == result.seeds[0]
    assert record["settings"]["arguments"]["prompt"] == "a cat"
    figures = json.loads((tmp_path / "out" / "best-of-n.json").read_text())
    assert figures["scores"] == list(result.scores)
    assert len(figures["report"]["candidates"]) == 3
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.width > 2 * 192
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "out" / "latents.safetensors")[paths[1].stem], result.latents[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"keep": 3}, "keep must lie between 1 and n = 2"),
        ({"seeds": [1]}, "expected n = 2 seeds, got 1"),
        ({"seeds": [1, 1]}, "same number twice"),
        ({"seeds": [1, -1]}, "whole number"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 2, "num_images_per_prompt": 3}, "both say how many"),
        ({"generator": torch.Generator()}, "generator cannot be given here: .*seeds"),
        ({"latents": torch.zeros(1, 4, 16, 16)}, "latents cannot be given here"),
        ({"callback": print}, "callback cannot be given here: it is deprecated"),
        ({"generator_device": "nowhere"}, "generator_device must be a device of this machine"),
        ({"generator_device": "meta"}, "generator_device must be a device of this machine"),
        ({"output_type": "jpeg"}, "output_type must be one of"),
        ({"prompt": []}, "empty list"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "expected 2 entries in negative_prompt"),
        ({"scorer": lambda _: [0.0, 1.0]}, "2 scores for 1 images"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str, sd15: Any, arguments: Any) -> None:
    settings = {"n": 2, "scorer": lambda images: [0.0] * len(images), **arguments("sd15"), **changes}
    with pytest.raises(ValueError, match=message):
        best_of_n(sd15, **settings)


def test_a_wrong_pipeline_or_scorer_is_refused(sd15: Any, arguments: Any) -> None:
    with pytest.raises(TypeError, match="expected a diffusers pipeline, got int"):
        best_of_n(3, n=2)
    with pytest.raises(TypeError, match="scorer must be a RaliScorer or a callable"):
        best_of_n(sd15, n=2, scorer=3, **arguments("sd15"))
    with pytest.raises(TypeError, match="treshold"):
        best_of_n(sd15, n=2, scorer=lambda _: [0.0], treshold=1.0, **arguments("sd15"))


def test_generators_are_on_the_device_that_was_asked_for(
    sd15: Any, arguments: Any, contrast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    generator = torch.Generator

    def note(device: Any = "cpu") -> torch.Generator:
        asked.append(str(device))
        return generator(device)

    monkeypatch.setattr(torch, "Generator", note)
    best_of_n(sd15, n=1, scorer=contrast, generator_device="cpu", **arguments("sd15", num_inference_steps=1))
    assert set(asked) == {"cpu"}
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="generator_device must be a device of this machine.*got 'cuda'"):
            best_of_n(sd15, n=1, scorer=contrast, generator_device="cuda", **arguments("sd15"))
    if torch.cuda.is_available():
        noise = torch.randn(1, 4, 16, 16, device="cuda", generator=generator("cuda").manual_seed(0))
        pipe = sd15.to("cuda")
        result = best_of_n(pipe, n=1, scorer=contrast, generator_device="cuda", **arguments("sd15"))
        expected = pipe(**arguments("sd15"), latents=noise).images[0]
        pipe.to("cpu")
        assert same(result.images[0], expected)


def test_old_names_work_for_one_release_with_a_warning(sd15: Any, arguments: Any, contrast: Any) -> None:
    import rali_core.diffusers_hook as hook

    result = best_of_n(sd15, n=2, scorer=contrast, threshold=0.0, **arguments("sd15", num_inference_steps=1))
    with pytest.warns(DeprecationWarning, match=r"saved is deprecated .* use BestOfNReport\.fraction_saved"):
        assert result.report.saved == result.report.fraction_saved
    with pytest.warns(DeprecationWarning, match=r"fate is deprecated .* use Candidate\.outcome"):
        assert [candidate.fate for candidate in result.report.candidates] == ["kept", "not made"]
    with pytest.warns(DeprecationWarning, match="pictures is deprecated .* use pil_images"):
        assert result.pictures == result.pil_images
    with pytest.warns(DeprecationWarning, match="Report is deprecated .* use BestOfNReport"):
        assert hook.Report is hook.BestOfNReport
