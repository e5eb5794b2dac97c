"""Each adapter is called as its project calls it; the callers below follow the projects' documented conventions."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from rali_core.constants import CLIP_MEAN, CLIP_STD
from rali_core.rewards import (
    Clip,
    RaliReward,
    RenoLoss,
    ScaleFluxVerifier,
    TrlReward,
    flow_grpo_score,
)

PROMPTS = ["a", "b", "c", "d", "e"]


def flow_grpo_trainer(factories: dict[str, Any], weights: dict[str, float], images: Any) -> dict[str, Any]:
    """How flow_grpo's `multi_score` makes and calls its rewards, and how its trainer reads them."""
    functions = {
        name: factories[name]("cpu") if "device" in factories[name].__code__.co_varnames else factories[name]()
        for name in weights
    }

    def score(images: Any, prompts: Any, metadata: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        details: dict[str, Any] = {}
        total: list[Any] = []
        for name, weight in weights.items():
            scores, _ = functions[name](images, prompts, metadata)
            details[name] = scores
            weighted = [weight * value for value in scores]
            total = [a + b for a, b in zip(total, weighted, strict=True)] if total else weighted
        return {**details, "avg": total}, {}

    with ThreadPoolExecutor(8) as pool:
        rewards, _ = pool.submit(score, images, PROMPTS, [{}] * 5).result()
    return {name: torch.as_tensor(value, device="cpu").float() for name, value in rewards.items()}


@pytest.mark.parametrize("form", ["NCHW float", "NHWC uint8"])
def test_flow_grpo_gets_its_scores(form: str, tiny_scorer: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(device: str) -> Any:
        return flow_grpo_score(device, model=None)

    def constant() -> Any:
        return lambda images, *_: ([1.0] * len(images), {})

    monkeypatch.setattr("rali_core.rewards.core.RaliScorer.from_pretrained", lambda *_, **__: tiny_scorer)
    images = pixels if form == "NCHW float" else (pixels * 255).byte().permute(0, 2, 3, 1).numpy()
    assert "device" in flow_grpo_score.__code__.co_varnames
    rewards = flow_grpo_trainer({"rali": factory, "one": constant}, {"rali": 0.5, "one": 2.0}, images)
    expected = torch.from_numpy(tiny_scorer.score(pixels).scores)
    assert torch.allclose(rewards["rali"], expected, atol=1e-6)
    assert torch.allclose(rewards["avg"], 0.5 * expected + 2, atol=1e-6)


def test_flow_grpo_images_without_a_prompt_or_a_batch_are_refused(tiny_scorer: Any, pixels: Any) -> None:
    function = flow_grpo_score(model=tiny_scorer)
    with pytest.raises(ValueError, match="expected a prompt for each of 5 images, got 1"):
        function(pixels, ["a"], {})
    with pytest.raises(ValueError, match="expected a batch of images"):
        function(pixels[0], ["a"], {})


def test_trl_ddpo_gets_rewards_as_numbers(tiny_scorer: Any, pixels: Any) -> None:
    function = TrlReward(tiny_scorer, transforms=[Clip(high=0.5)])
    rewards, info = function(pixels, tuple(PROMPTS), tuple({} for _ in PROMPTS))
    # DDPOTrainer.compute_rewards: torch.as_tensor(reward, device=...), then a cat over batches
    gathered = torch.cat([torch.as_tensor(rewards, device="cpu")])
    assert gathered.shape == (5,)
    assert gathered.max() <= 0.5
    assert not gathered.requires_grad
    assert info == {}
    with pytest.raises(ValueError, match="expected a prompt for each of 5 images"):
        function(pixels, ("a",), ({},))


def test_trl_alignprop_differentiates_through_the_rewards(tiny_scorer: Any, pixels: Any) -> None:
    function = TrlReward(tiny_scorer, differentiable=True)
    images = pixels.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        rewards, _ = function(images, tuple(PROMPTS), tuple({} for _ in PROMPTS))
        loss = 10.0 - rewards.mean()  # AlignPropTrainer.calculate_loss
        loss.backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().sum(dim=1) > 0).all()
    assert torch.allclose(rewards.detach(), torch.from_numpy(tiny_scorer.score(pixels).scores), atol=1e-6)


def test_reno_optimises_noise_through_the_loss(tiny_scorer: Any, pixels: Any) -> None:
    loss = RenoLoss(weighting=2.0, model=tiny_scorer)
    assert loss.name == "RALI"
    latents = pixels[:1].clone().requires_grad_(True)
    optimiser = torch.optim.SGD([latents], lr=5.0, nesterov=True, momentum=0.9)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    totals = []
    for _ in range(4):  # LatentNoiseTrainer.train: generate, resize and normalise, sum the weighted losses, step
        optimiser.zero_grad()
        image = torch.nn.functional.interpolate(latents.clamp(0, 1), size=(224, 224), mode="bicubic")
        value = loss((image - mean) / std, "a prompt")
        totals.append(value.item())
        (value * loss.weighting).backward()
        torch.nn.utils.clip_grad_norm_(latents, 0.1)
        optimiser.step()
    assert totals[-1] < totals[0]


def test_reno_sees_the_same_score_whichever_way_the_image_comes(tiny_scorer: Any, pixels: Any) -> None:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    normalised = RenoLoss(model=tiny_scorer)((pixels - mean) / std, "a")
    plain = RenoLoss(model=tiny_scorer, image_input="pixels")(pixels, "a")
    assert float(normalised) == pytest.approx(float(plain), abs=1e-6)
    assert float(plain) == pytest.approx(1 - tiny_scorer.score(pixels).scores.mean(), abs=1e-6)
    assert float(RenoLoss(model=tiny_scorer, target=0.0, image_input="pixels")(pixels, "a")) == 0.0
    with pytest.raises(ValueError, match="normalised with CLIP's constants"):
        RenoLoss(model=tiny_scorer)(pixels * 255, "a")
    with pytest.raises(ValueError, match="image_input must be one of clip, pixels"):
        RenoLoss(model=tiny_scorer, image_input="bytes")  # type: ignore[arg-type]


def test_tt_scale_flux_finds_the_best_noise_and_writes_it_as_json(tiny_scorer: Any, pil_images: Any) -> None:
    supported = {"rali": ScaleFluxVerifier}
    configured = {"name": "rali", "choice_of_metric": "rali_score", "max_new_tokens": 800}
    assert configured["choice_of_metric"] in supported["rali"].SUPPORTED_METRIC_CHOICES
    verifier = supported["rali"](model=tiny_scorer, **configured)
    inputs = verifier.prepare_inputs(images=pil_images, prompts=["a"] * len(pil_images))
    outputs = verifier.score(inputs=inputs)
    results = [{**output, "seed": seed} for seed, output in enumerate(outputs)]
    best = sorted(results, key=lambda result: result["rali_score"], reverse=True)[0]
    assert best["seed"] == tiny_scorer.score(pil_images).ranking()[0]
    assert json.loads(json.dumps(best)) == best
    assert len(verifier.prepare_inputs(images=pil_images[0], prompts="a")) == 1
    with pytest.raises(ValueError, match="choice_of_metric must be 'rali_score', got 'overall'"):
        ScaleFluxVerifier(model=tiny_scorer, choice_of_metric="overall")


def test_every_adapter_is_picklable(tiny_file: Any, pixels: Any) -> None:
    reward = RaliReward(tiny_file, device="cpu")
    for adapter in (flow_grpo_score(model=reward), TrlReward(reward)):
        scores, _ = pickle.loads(pickle.dumps(adapter))(pixels, PROMPTS, [{}] * 5)
        assert [float(value) for value in scores] == pytest.approx(reward(pixels))
    assert pickle.loads(pickle.dumps(RenoLoss(model=reward))).name == "RALI"
    with pytest.raises(ValueError, match="device, transforms and on_error belong to the reward"):
        TrlReward(reward, device="cpu")
