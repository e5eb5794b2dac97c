from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from rali_core.content import NO_CONTENT_SCORE
from rali_core.images import ImageError
from rali_core.rewards import Clip, CombinedReward, RaliReward, Ranks, Standardise
from rali_core.rewards.transforms import apply_all
from rali_core.scorer import RaliScorer


def test_every_form_of_the_same_images_gives_the_same_rewards(tiny_scorer: Any, pixels: Any, pil_images: Any) -> None:
    reward = RaliReward(tiny_scorer)
    expected = reward(pil_images)
    assert len(expected) == 5
    assert all(isinstance(value, float) for value in expected)
    assert expected == pytest.approx(tiny_scorer.score(pil_images).scores.tolist())
    as_bytes = (pixels * 255).round().byte()
    for form in (pixels, as_bytes, as_bytes.permute(0, 2, 3, 1).numpy(), list(pixels)):
        assert reward(form) == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 0.01  # not one value for all


def test_rewards_are_deterministic_without_gradient_and_leave_the_random_numbers_alone(
    tiny_scorer: Any, pixels: Any
) -> None:
    reward = RaliReward(tiny_scorer)
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = reward.tensor(pixels.clone().requires_grad_(True))
    assert not first.requires_grad
    assert torch.equal(first, reward.tensor(pixels))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_autocast_around_it_does_not_change_a_reward(tiny_scorer: Any, pixels: Any) -> None:
    reward = RaliReward(tiny_scorer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rewards, with_gradient = reward.tensor(pixels), reward.differentiable(pixels)
    assert torch.equal(rewards, reward.tensor(pixels))
    assert torch.allclose(with_gradient, rewards, atol=1e-6)


def test_a_pickled_reward_holds_the_name_and_scores_the_same(tiny_file: Any, pixels: Any) -> None:
    reward = RaliReward(tiny_file, device="cpu", transforms=[Clip(high=0.9)])
    expected = reward(pixels)
    data = pickle.dumps(reward)
    assert len(data) < 2000
    assert pickle.loads(data)(pixels) == expected


def test_a_reward_around_a_scorer_is_picklable_with_its_weights(tiny_scorer: Any, pixels: Any) -> None:
    reward = RaliReward(tiny_scorer)
    assert pickle.loads(pickle.dumps(reward))(pixels) == reward(pixels)


def test_threads_may_share_a_reward(tiny_file: Any, pixels: Any) -> None:
    reward = RaliReward(tiny_file, device="cpu")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: reward(pixels), range(4)))
    assert all(result == results[0] for result in results)


def test_the_differentiable_reward_has_the_same_values_and_a_gradient(tiny_scorer: Any, pixels: Any) -> None:
    reward = RaliReward(tiny_scorer, transforms=[Standardise()])
    image = pixels.clone().requires_grad_(True)
    rewards = reward.differentiable(image)
    assert torch.allclose(rewards, reward.tensor(pixels), atol=1e-5)
    rewards[0].backward()
    assert image.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no gradient passes through"):
        RaliReward(tiny_scorer, transforms=[Ranks()]).differentiable(image)


def test_a_reward_is_told_the_domain_values_and_gradient_alike(telling_file: Any, pixels: Any) -> None:
    reward = RaliReward(telling_file, device="cpu", domain="generated")
    expected = RaliScorer.from_pretrained(telling_file, device="cpu", domain="generated images").score(pixels).scores
    assert reward(pixels) == pytest.approx(expected, abs=1e-5)
    assert reward.differentiable(pixels).detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert reward(pixels) != pytest.approx(RaliReward(telling_file, device="cpu")(pixels), abs=1e-4)


def test_settings_beside_a_scorer_and_bad_images_are_refused(tiny_scorer: Any, tiny_file: Any) -> None:
    with pytest.raises(ValueError, match="belong to the scorer"):
        RaliReward(tiny_scorer, batch_size=2)
    with pytest.raises(FileNotFoundError, match=r"no model 'nowhere\.safetensors'"):
        RaliReward("nowhere.safetensors")([])
    with pytest.raises(ImageError, match=r"image 0: expected .* in \[0, 1\]"):
        RaliReward(tiny_file, device="cpu")(torch.full((1, 3, 8, 8), 200.0))


def test_clipping_limits_and_keeps_no_gradient_beyond() -> None:
    scores = torch.tensor([0.1, 0.5, 0.9], requires_grad=True)
    clipped = Clip(low=0.2, high=0.8)(scores)
    assert clipped.tolist() == pytest.approx([0.2, 0.5, 0.8])
    clipped.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="low, high or both"):
        Clip()
    with pytest.raises(ValueError, match="low < high"):
        Clip(low=0.5, high=0.5)


def test_ranks_agree_with_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = torch.tensor([0.3, 0.9, 0.3, 0.1, 0.7, 0.9])
    expected = (stats.rankdata(scores.numpy()) - 1) / 5
    assert np.allclose(Ranks()(scores).numpy(), expected)
    assert Ranks()(torch.tensor([0.4])).tolist() == [0.5]


def test_standardised_scores_have_mean_zero_and_deviation_one() -> None:
    scores = Standardise()(torch.tensor([0.1, 0.4, 0.9]))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-6)
    assert float(scores.std(unbiased=False)) == pytest.approx(1, abs=1e-3)
    assert Standardise()(torch.full((4,), 0.3)).tolist() == pytest.approx([0] * 4, abs=1e-3)


def test_a_score_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="a score is not finite"):
        apply_all([Clip(low=0.0)], torch.tensor([0.5, float("nan")]))


def test_rewards_are_combined_by_weight_and_made_comparable(tiny_scorer: Any, pil_images: Any) -> None:
    rali = RaliReward(tiny_scorer)

    def brightness(images: Any) -> list[float]:
        return [float(np.asarray(image).mean()) for image in images]

    combined = CombinedReward({"rali": (rali, 2.0), "bright": (brightness, 0.5)})
    expected = 2 * np.array(rali(pil_images)) + 0.5 * np.array(brightness(pil_images))
    assert combined(pil_images) == pytest.approx(expected.tolist(), rel=1e-6)
    raw, _ = combined.parts(pil_images)
    assert raw["bright"] == brightness(pil_images)
    ranked = CombinedReward({"a": (lambda _: [1, 2, 3], 1.0), "b": (lambda _: [900, 100, 500], 1.0)}, normalise="rank")
    assert ranked(pil_images) == [1.0, 0.5, 1.5]
    even = CombinedReward({"a": (lambda _: [0, 1], 1.0), "b": (lambda _: [900, 100], 1.0)}, normalise="z-score")
    assert even(pil_images) == pytest.approx([0, 0], abs=1e-3)


@pytest.mark.parametrize(("old", "new"), [("ranks", "rank"), ("standardise", "z-score")])
def test_normalisations_of_the_last_release_work_and_say_what_to_use(old: Any, new: Any) -> None:
    rewards = {"a": (lambda _: [1, 2, 3], 1.0), "b": (lambda _: [900, 100, 500], 1.0)}
    with pytest.warns(DeprecationWarning, match=f"normalise='{old}' is deprecated .* use '{new}'"):
        combined = CombinedReward(rewards, normalise=old)
    assert combined == CombinedReward(rewards, normalise=new)


@pytest.mark.parametrize(
    ("rewards", "settings", "message"),
    [
        ({}, {}, "at least one reward"),
        ({"a": (lambda _: [1.0], float("nan"))}, {}, "weight of a must be finite"),
        ({"a": (lambda _: [1.0], 1.0)}, {"normalise": "max"}, "normalise must be one of"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused(rewards: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CombinedReward(rewards, **settings)


def test_parts_of_different_lengths_are_refused() -> None:
    combined = CombinedReward({"a": (lambda _: [1.0], 1.0), "b": (lambda _: [1.0, 2.0], 1.0)})
    with pytest.raises(ValueError, match=r"expected as many rewards from each, got \{'a': 1, 'b': 2\}"):
        combined([])


def test_importing_the_core_imports_no_extra() -> None:
    code = (
        "import sys, rali_core, rali_core.rewards, rali_core.diffusers_hook\n"
        "from rali_core.rewards import RaliReward, RaliLoss, TrlReward, RenoLoss, ScaleFluxVerifier, flow_grpo_score\n"
        "from rali_core.diffusers_hook import best_of_n, RaliGuidance, RaliStepCallback\n"
        "extras = {'diffusers', 'transformers', 'accelerate', 'torchmetrics', 'trl'} & set(sys.modules)\n"
        "assert not extras, extras\n"
        "assert callable(best_of_n)\n"
        "import rali_core.rewards.image_quality_metric\n"
        "assert 'torchmetrics' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def bad_batch(pixels: Any) -> Any:
    """Five images, of which the third is NaN."""
    images = pixels.clone()
    images[2] = float("nan")
    return images


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_bad_sample_gets_what_on_error_says_and_shifts_no_other(
    differentiable: bool, tiny_scorer: Any, pixels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good = [0, 1, 3, 4]
    for transforms in ([], [Ranks()], [Standardise()], [Clip(high=0.5)]):
        if differentiable and isinstance((transforms or [None])[0], Ranks):
            continue
        plain = RaliReward(tiny_scorer, transforms=transforms)
        for on_error, expected in ((-2.0, -2.0), (0, 0.0), ("nan", float("nan"))):
            reward = RaliReward(tiny_scorer, transforms=transforms, on_error=on_error)
            images = bad_batch(pixels).requires_grad_(differentiable)
            rewards = reward.differentiable(images) if differentiable else reward.tensor(images)
            assert rewards[2].item() == pytest.approx(expected, nan_ok=True)
            assert torch.allclose(rewards[good], plain.tensor(pixels[good]), atol=1e-5)
            if differentiable:
                rewards[good].sum().backward()
                assert torch.isfinite(images.grad).all()
                assert images.grad[2].abs().sum() == 0
    assert "reward: sample" in caplog.text
    with pytest.raises(ValueError, match="NaN|not finite"):
        RaliReward(tiny_scorer)(bad_batch(pixels))


def test_unreadable_files_and_blank_images_do_not_end_a_training(
    tiny_scorer: Any, pil_images: Any, tmp_path: Any
) -> None:
    pil_images[4].save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [str(tmp_path / name) for name in ("good.png", "bad.png", "missing.png")]
    rewards = RaliReward(tiny_scorer, on_error=-1.0)(files)
    assert rewards == [pytest.approx(RaliReward(tiny_scorer)([pil_images[4]])[0]), -1.0, -1.0]
    with pytest.raises(OSError, match="missing"):
        RaliReward(tiny_scorer)(files[2:])
    blank = torch.full((1, 3, 40, 40), 0.4, requires_grad=True)
    reward = RaliReward(tiny_scorer)
    assert reward(blank.detach()) == [pytest.approx(NO_CONTENT_SCORE)]
    lowest = reward.differentiable(blank)
    assert float(lowest.detach()) == pytest.approx(NO_CONTENT_SCORE)
    lowest.sum().backward()
    assert blank.grad.abs().sum() > 0  # a way out


def test_every_adapter_takes_on_error(tiny_scorer: Any, pixels: Any) -> None:
    from rali_core.rewards import RaliImageQuality, RenoLoss, ScaleFluxVerifier, TrlReward, flow_grpo_score

    images, prompts = bad_batch(pixels), ["a"] * 5
    good = RaliReward(tiny_scorer)(pixels[[0, 1, 3, 4]])
    assert flow_grpo_score(model=tiny_scorer, on_error=-1.0)(images, prompts, {})[0][2] == -1.0
    for differentiable in (False, True):
        trl = TrlReward(tiny_scorer, on_error=-1.0, differentiable=differentiable)
        assert float(trl(images, prompts, [{}] * 5)[0][2]) == -1.0
    verifier = ScaleFluxVerifier(model=tiny_scorer, on_error=-1.0)
    assert verifier.score(list(images))[2] == {"rali_score": -1.0}
    loss = RenoLoss(model=tiny_scorer, image_input="pixels", on_error="nan")(images, "a")
    assert float(loss) == pytest.approx(1 - np.mean(good), abs=1e-5)
    metric = RaliImageQuality(tiny_scorer, on_error="nan")
    metric.update(images)
    assert int(metric.count) == 4
    assert float(metric.compute()) == pytest.approx(np.mean(good), abs=1e-6)
    with pytest.raises(ValueError, match="on_error belong to the reward"):
        TrlReward(RaliReward(tiny_scorer), on_error=0.0)
    for wrong in ("skip", float("nan"), True, None):
        with pytest.raises(ValueError, match="on_error must be 'raise', 'nan' or a finite number"):
            RaliReward(tiny_scorer, on_error=wrong)


def test_a_combination_takes_on_error_too() -> None:
    nan = float("nan")
    rewards = {"a": (lambda _: [1.0, nan, 3.0], 1.0), "b": (lambda _: [30.0, 20.0, 10.0], 1.0)}
    assert CombinedReward(rewards, on_error=-5.0)([]) == [31.0, -5.0, 13.0]
    assert CombinedReward({"a": rewards["a"]}, normalise="rank", on_error=-5.0)([]) == [0.0, -5.0, 1.0]
    with pytest.raises(ValueError, match="not finite"):
        CombinedReward(rewards)([])


def test_the_metrics_sums_are_on_every_device(tiny_scorer: Any, pixels: Any) -> None:
    from rali_core.rewards import RaliImageQuality

    metric = RaliImageQuality(tiny_scorer)
    assert metric.total.dtype == metric.count.dtype == torch.long  # Apple's GPUs have no float64
    halves = [RaliImageQuality(tiny_scorer) for _ in range(2)]
    metric.update(pixels)
    halves[0].update(pixels[3:])
    halves[1].update(pixels[:3])
    assert int(halves[0].total + halves[1].total) == pytest.approx(int(metric.total), rel=1e-6), (
        "float32 of other batches"
    )
    assert metric.compute().dtype == torch.float32
