"""Searching seeds in a real ComfyUI: both samplers, retry and guidance, on tiny diffusion models."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SEARCH = {"n": 4, "keep": 1, "threshold": 1.0, "batch_per_try": 1, "coverage": "model's own"}
SCHEDULE = {"steps": 4, "scheduler": "normal", "denoise": 1.0}
TINY = {
    "d": {"class_type": "Test_TinyDiffusion", "inputs": {}},
    "e": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
}


def plain(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def conditioned(**inputs: Any) -> dict[str, Any]:
    return {"model": ["d", 0], "positive": ["d", 1], "negative": ["d", 1], "cfg": 2.0, **inputs}


def probe(name: str, outputs: int = 5) -> dict[str, Any]:
    return plain("Test_Probe", **{f"value{i + 1 if i else ''}": [name, i] for i in range(outputs)})


def ksampler(judge: str, **inputs: Any) -> dict[str, Any]:
    """A prompt with RALI Best-of-N Sampler as node b."""
    settings = {**SEARCH, **SCHEDULE, "seed": 5, "sampler_name": "euler", **inputs}
    return {
        **TINY,
        "r": plain("RALI_LoadModel", model=judge, dtype="auto", device="auto"),
        "b": plain(
            "RALI_BestOfNSampler", **conditioned(**settings), latent_image=["e", 0], vae=["d", 2], rali_model=["r", 0]
        ),
        "p": probe("b"),
    }


def custom_parts(sampler: str, **schedule: Any) -> dict[str, Any]:
    """Guider g, sampler k and sigmas s."""
    return {
        "g": plain("CFGGuider", **conditioned()),
        "k": plain("KSamplerSelect", sampler_name=sampler),
        "s": plain("BasicScheduler", model=["d", 0], **{**SCHEDULE, **schedule}),
    }


def custom(judge: str, sampler: str = "euler", **inputs: Any) -> dict[str, Any]:
    """A prompt with RALI Best-of-N (custom sampling) as node b."""
    prompt = {**ksampler(judge), **custom_parts(sampler)}
    wires = {"guider": ["g", 0], "sampler": ["k", 0], "sigmas": ["s", 0], "latent_image": ["e", 0], "vae": ["d", 2]}
    settings = {**SEARCH, "seed": 5, "rali_model": ["r", 0], **wires, **inputs}
    return {**prompt, "b": plain("RALI_BestOfNCustom", **settings)}


def seeds_of(report: str) -> list[int]:
    return [int(number) for number in re.findall(r"^seed (\d+):", report, flags=re.MULTILINE)]


@pytest.mark.both_versions
@pytest.mark.parametrize("make", [ksampler, custom], ids=["ksampler", "custom"])
@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
def test_an_interrupted_search_is_not_cached_as_done_and_resumes_to_the_same_result(
    server: Any, judge: str, make: Any, pruned: bool
) -> None:
    prompt = make(judge, n=12, keep=2, seed=300, early_pruning=pruned)
    sent = []

    def interrupt(host: Any, kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == "b" and data["value"] >= 6 and not sent:
            sent.append(host.post("/interrupt", {}))

    broken = server.run(prompt, on_message=interrupt)
    assert sent
    if pruned:  # the first comparison comes after all of them have begun: there is no image yet
        assert broken.ending == "execution_interrupted"
    else:
        assert broken.check().seen("p")["value5"][0].startswith("interrupted after ")
    resumed = server.run(prompt).check()
    note = resumed.outputs["b"]["rali"][0]["note"]
    assert int(re.search(r"resumed after (\d+) steps", note)[1]) >= 6  # what was done was not done again
    again = server.run(prompt).check()
    assert "b" not in again.executed
    seen = resumed.seen("p")
    assert note.startswith(f"best: seed {seen['value3'][0]}; {seen['value5'][0].splitlines()[0]}; ")
    assert again.seen("p") == seen
    others = {name: each for name, each in prompt.items() if name != "b"}
    whole = server.run({**others, "c": prompt["b"], "p": probe("c")}).check()
    assert seen == whole.seen("p")
    assert seen["value5"][0].startswith("all 12 seeds tried")
    assert len(seeds_of(seen["value5"][0])) == 12


@pytest.mark.parametrize("make", [ksampler, custom], ids=["ksampler", "custom"])
def test_with_increment_no_seed_is_tried_twice(server: Any, judge: str, make: Any) -> None:
    tried = [seeds_of(server.run(make(judge, seed=seed)).check().seen("p")["value5"][0]) for seed in (40, 41, 42)]
    assert [seeds[0] for seeds in tried] == [40, 41, 42]
    assert len({seed for seeds in tried for seed in seeds}) == 12


@pytest.mark.both_versions
@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_winning_seed_makes_the_same_image_in_samplercustomadvanced(server: Any, judge: str, name: str) -> None:
    prompt = custom(judge, name, keep=2)
    prompt["b"]["inputs"]["noise"] = ["n", 0]
    prompt["n"] = plain("RandomNoise", noise_seed=70)
    seen = server.run(prompt).check().seen("p")
    assert seen["value4"] == sorted(seen["value4"], reverse=True)
    for place, seed in enumerate(seen["value3"]):
        wires = {
            "noise": ["n", 0],
            "guider": ["g", 0],
            "sampler": ["k", 0],
            "sigmas": ["s", 0],
            "latent_image": ["e", 0],
        }
        again = {
            **TINY, **custom_parts(name),
            "n": plain("RandomNoise", noise_seed=seed),
            "a": plain("SamplerCustomAdvanced", **wires),
            "v": plain("VAEDecode", samples=["a", 0], vae=["d", 2]),
            "p": plain("Test_Probe", value=["v", 0], value2=["a", 0]),
        }  # fmt: skip
        same = server.run(again).check().seen("p")
        assert same["value"][0]["each"][0] == seen["value"][0]["each"][place]
        assert same["value2"][0]["samples"]["each"][0] == seen["value2"][0]["samples"]["each"][place]


def test_the_first_part_of_split_sigmas_is_judged_by_its_denoised_preview(server: Any, judge: str) -> None:
    prompt = custom(judge, n=2, seed=9)
    prompt["split"] = plain("SplitSigmas", sigmas=["s", 0], step=2)
    prompt["b"]["inputs"]["sigmas"] = ["split", 0]
    seen = server.run(prompt).check().seen("p")
    wires = {"guider": ["g", 0], "sampler": ["k", 0], "sigmas": ["split", 0], "latent_image": ["e", 0]}
    prompt |= {
        "n": plain("RandomNoise", noise_seed=seen["value3"][0]),
        "a": plain("SamplerCustomAdvanced", noise=["n", 0], **wires),
        "v": plain("VAEDecode", samples=["a", 1], vae=["d", 2]),
        "q": plain("Test_Probe", value=["v", 0], value2=["a", 0]),
    }
    same = server.run(prompt).check().seen("q")
    assert same["value2"][0]["samples"]["sha"] == seen["value2"][0]["samples"]["sha"]  # noisy, for the second part
    assert same["value"][0]["sha"] == seen["value"][0]["sha"]


@pytest.mark.both_versions
@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m", "uni_pc", "euler_cfg_pp"])
def test_pruning_halves_the_work_and_its_winner_is_what_its_seed_makes(server: Any, judge: str, name: str) -> None:
    pruned = server.run(ksampler(judge, sampler_name=name, n=8, steps=10, early_pruning=True)).check()
    seen = pruned.seen("p")
    done, whole = map(int, re.search(r"denoiser calls: (\d+) of (\d+)", seen["value5"][0]).groups())
    assert done <= whole / 2
    if name != "uni_pc":  # which calls the denoiser ahead of its steps
        assert (done, whole) == (8 * 2 + 4 * 2 + 2 * 2 + 1 * 4, 80)
    assert len(re.findall("dropped after step 2", seen["value5"][0])) == 4
    again = {
        **TINY,
        "k": plain(
            "KSampler", **conditioned(seed=seen["value3"][0], sampler_name=name, **{**SCHEDULE, "steps": 10}),
            latent_image=["e", 0],
        ),
        "p": plain("Test_Probe", value=["k", 0]),
    }  # fmt: skip
    assert server.run(again).check().seen("p")["value"][0]["samples"]["sha"] == seen["value2"][0]["samples"]["sha"]


def test_pruning_says_what_it_cannot_do(server: Any, judge: str) -> None:
    batched = server.run(ksampler(judge, early_pruning=True, batch_per_try=2))
    assert "early_pruning samples one seed at a time, got a batch size of 2" in batched.error
    for text, message in (("0.2; 0.4", "expected fractions of the steps"), ("0.5, 0.4", "ascending fractions")):
        assert message in server.run(ksampler(judge, early_pruning=True, prune_at=text)).error


def test_in_fifty_trials_pruning_halves_the_cost_and_keeps_one_of_the_best_two(server: Any, judge: str) -> None:
    good = 0
    for trial in range(50):
        prompt = ksampler(judge, n=8, keep=2, seed=1000 + trial, steps=10)
        prompt["d"] = plain("Test_GradedDiffusion")
        prompt["e"]["inputs"] |= {"width": 128, "height": 128}
        pruned = {**prompt["b"]["inputs"], "keep": 1, "early_pruning": True}
        prompt |= {"c": plain("RALI_BestOfNSampler", **pruned), "q": probe("c")}
        run = server.run(prompt).check()
        done, whole = map(int, re.search(r"calls: (\d+) of (\d+)", run.seen("q")["value5"][0]).groups())
        assert done <= whole / 2
        good += run.seen("q")["value4"][0] >= run.seen("p")["value4"][1]
    print(f"{good} of 50 trials")
    assert good >= 45


def retry(judge: str, **inputs: Any) -> dict[str, Any]:
    """A prompt whose sampling is repeated; node b is the end of the loop."""
    settings = {"n": 3, "threshold": 1.0, "aggregation": "minimum", "coverage": "model's own", **inputs}
    return {
        **TINY,
        "r": plain("RALI_LoadModel", model=judge, dtype="auto", device="auto"),
        "start": plain("RALI_RetryStart", seed=50),
        "k": plain(
            "KSampler", **conditioned(seed=["start", 1], sampler_name="euler", **SCHEDULE), latent_image=["e", 0]
        ),
        "v": plain("VAEDecode", samples=["k", 0], vae=["d", 2]),
        "b": plain(
            "RALI_RetryEnd", retry=["start", 0], images=["v", 0], model=["r", 0], value_1=["k", 0],
            value_2=["start", 2], **settings,
        ),
        "p": probe("b", 8),
    }  # fmt: skip


@pytest.mark.both_versions
def test_retry_repeats_what_lies_between_and_keeps_the_best_with_what_belongs_to_it(server: Any, judge: str) -> None:
    run = server.run(retry(judge)).check()
    seen = run.seen("p")
    again = server.run(retry(judge)).check()
    assert not {"k", "b"} & again.executed
    assert again.seen("p") == seen
    searched = server.run(ksampler(judge, n=3, seed=50)).check().seen("p")
    assert seeds_of(seen["value6"][0]) == [50, 1_000_050, 2_000_050]
    assert (seen["value3"], seen["value4"], seen["value5"]) == (searched["value3"], [3], [False])
    assert seen["value"][0]["sha"] == searched["value"][0]["sha"]
    assert seen["value2"] == [pytest.approx(searched["value4"][0])]
    assert seen["value7"][0]["samples"]["sha"] == searched["value2"][0]["samples"]["sha"]
    assert seen["value8"] == [1 + [50, 1_000_050, 2_000_050].index(seen["value3"][0])]
    shown = [data for kind, data in run.messages if kind == "executed" and data["display_node"] == "b"]
    assert "best: seed" in shown[-1]["output"]["rali"][0]["note"]


@pytest.mark.both_versions
def test_retry_stops_at_the_first_good_try_and_repeats_any_subgraph(server: Any, judge: str) -> None:
    prompt = retry(judge, n=8)
    prompt |= {  # hires fix: a second sampler between the two nodes
        "u": plain("LatentUpscale", samples=["k", 0], upscale_method="bilinear", width=96, height=96, crop="disabled"),
        "k2": plain(
            "KSampler", **conditioned(seed=["start", 1], sampler_name="euler", **{**SCHEDULE, "denoise": 0.5}),
            latent_image=["u", 0],
        ),
        "v": plain("VAEDecode", samples=["k2", 0], vae=["d", 2]),
    }  # fmt: skip
    whole = server.run(prompt).check().seen("p")
    scores = [float(score) for score in re.findall(r"^seed \d+: ([\d.]+)", whole["value6"][0], flags=re.MULTILINE)]
    assert len(scores) == 8
    assert whole["value"][0]["shape"] == [1, 96, 96, 3]
    limit = sorted(scores)[4]
    first = next(index for index, score in enumerate(scores) if score >= limit)
    prompt["b"]["inputs"]["threshold"] = limit - 0.00005
    seen = server.run(prompt).check().seen("p")
    assert (seen["value4"], seen["value5"]) == ([first + 1], [True])
    assert seen["value6"][0].startswith(f"reached {limit - 0.00005:g} in ")


def test_retry_resumes_after_an_interrupt_and_judges_by_other_scores_too(server: Any, judge: str) -> None:
    prompt, sent = retry(judge, n=4), []
    prompt["start"]["inputs"]["seed"] = 77

    def interrupt(host: Any, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data.get("node") and data["node"].count("k") and len(sent) < 3:
            sent.append(data["node"])
            if len(sent) == 3:
                host.post("/interrupt", {})

    assert server.run(prompt, on_message=interrupt).ending == "execution_interrupted"
    seen = server.run(prompt).check().seen("p")
    assert len(seeds_of(seen["value6"][0])) == 4
    prompt["n"] = plain("Test_Numbers", text="5.4")
    prompt["b"]["inputs"] |= {"scores": ["n", 1], "threshold": 6.0, "scores_direction": "lower is better"}
    other = server.run(prompt).check().seen("p")
    assert (other["value2"], other["value4"], other["value5"]) == ([5.4], [1], [True])


def test_retry_reports_wrong_wiring(server: Any, judge: str) -> None:
    prompt = retry(judge)
    prompt["k"]["inputs"]["seed"] = 3
    del prompt["b"]["inputs"]["value_2"]
    assert "uses its seed or attempt, so that every try would be the same" in server.run(prompt).error
    prompt = retry(judge)
    prompt["n"] = plain("Test_Numbers", text="1,2")
    prompt["b"]["inputs"]["value_2"] = ["n", 0]
    assert "value_2: expected one thing from each try, or one batch, got a list of 2" in server.run(prompt).error


@pytest.mark.both_versions
def test_guidance_raises_the_score_and_none_changes_nothing(server: Any, judge: str) -> None:
    scores = {}
    for scale in (None, 0.0, 1e5):
        prompt = ksampler(judge, n=3, keep=3, steps=8)
        if scale is not None:
            settings = {"scale": scale, "clip": 0.2, "start_percent": 0.0, "end_percent": 1.0, "regularisation": 0.1}
            prompt["x"] = plain(
                "RALI_Guidance", model=["d", 0], vae=["d", 2], rali_model=["r", 0], coverage="model's own", **settings
            )
            prompt["b"]["inputs"]["model"] = ["x", 0]
        seen = server.run(prompt).check().seen("p")
        scores[scale] = dict(zip(seen["value3"], seen["value4"], strict=True))
    assert scores[0.0] == scores[None]
    assert all(scores[1e5][seed] > score for seed, score in scores[None].items())
