"""Every node executed by a real ComfyUI, through /prompt, on real images."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rali_core.scorer import RaliScorer

pytestmark = pytest.mark.slow

NODES = Path(__file__).resolve().parents[2] / "nodes"
NODE_IDS = {
    identifier
    for path in NODES.glob("*.py")
    for identifier in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
}
WIDGETS = {
    "RALI_Score": {"aggregation": "mean", "threshold": 0.5, "coverage": "model's own"},
    "RALI_BestOfN": {"k": 1, "order": "best first", "scores_weight": 1.0, "coverage": "model's own"},
    "RALI_Filter": {"threshold": 0.5, "coverage": "model's own"},
    "RALI_Gate": {"threshold": 0.5, "mode": "block", "aggregation": "minimum", "coverage": "model's own"},
    "RALI_QualityMap": {
        "mode": "tiles", "tile_size": 128, "weak_mode": "weakest share", "weak_limit": 0.25, "stretch_colours": True,
    },
    "RALI_ContactSheet": {"columns": 3, "cell": 128, "coverage": "model's own"},
    "RALI_ScoreFolder": {
        "folder": "", "recursive": False, "include": "", "exclude": "", "k": 2, "order": "best first",
        "coverage": "model's own",
    },
    "RALI_ScoreVideo": {
        "fps": 24.0, "sample_fps": 2.0, "max_frames": 600, "aggregation": "mean", "passage_seconds": 1.0,
        "coverage": "model's own",
    },
    "RALI_LoadScore": {"file": "", "score_if_missing": False},
    "RALI_DrawScore": {"position": "below", "height": 0},
    "RALI_SaveImage": {"filename_prefix": "RALI/{score}_{rank}", "format": "png", "quality": 90, "sidecar": True},
    "RALI_CombineScores": {
        "weight_a": 1.0, "weight_b": 1.0, "weight_c": 1.0, "weight_d": 1.0, "normalisation": "none",
        "combination": "mean",
    },
    "RALI_BestOfNSampler": {
        "seed": 5, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "n": 4,
        "keep": 1, "threshold": 1.0, "batch_per_try": 1, "coverage": "model's own",
    },
}  # fmt: skip


def rali(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": {**WIDGETS.get(kind, {}), **inputs}}


def plain(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def images(server: Any, photographs: dict[str, Image.Image], tools: dict[str, Any]) -> dict[str, str]:
    """Names in the input folder: good, seven damaged copies of it, and an image of another size."""
    good = photographs["astronaut"].resize((384, 384))
    names = {"good": server.upload("good.png", good), "wide": server.upload("wide.png", photographs["rocket"])}
    for level in range(1, 8):
        damaged = tools["degrade"](good, level, seed=level)
        names[f"bad{level}"] = server.upload(f"bad{level}.png", damaged)
    return names


def collected(names: list[str]) -> dict[str, Any]:
    """A prompt's part that loads images and collects them: node "c", outputs 0 list and 1 batch."""
    loaded = {f"l{i}": plain("LoadImage", image=name) for i, name in enumerate(names, start=1)}
    return {**loaded, "c": plain("Test_Collect", **{f"image{i}": [f"l{i}", 0] for i in range(1, len(names) + 1)})}


def eight(images: dict[str, str]) -> list[str]:
    """The undistorted image in the sixth place."""
    bad = [images[f"bad{level}"] for level in range(1, 8)]
    return [*bad[:5], images["good"], *bad[5:]]


@pytest.mark.both_versions
def test_every_node_is_registered_with_descriptions_and_tooltips(server: Any) -> None:
    found = {name: info for name, info in server.get("/object_info").items() if name.startswith("RALI_")}
    assert set(found) == NODE_IDS
    for name, info in found.items():
        assert info["category"] == "RALI"
        assert info["description"], name
        assert len(info["search_aliases"]) >= 3, name
        for section in ("required", "optional"):
            for key, (_, options) in info["input"].get(section, {}).items():
                assert options.get("tooltip"), f"{name}.{key}"
        assert all(info["output_tooltips"]), name
    # Of ours: a core node that needs OpenGL may fail on a machine without it.
    assert not [line for line in server.text().splitlines() if "IMPORT FAILED" in line and "RALI" in line]


@pytest.mark.both_versions
def test_score_shows_one_number_per_image_and_passes_the_images_on(server: Any, images: dict[str, str]) -> None:
    prompt = {
        **collected([images["good"], images["bad5"]]),
        "s": rali("RALI_Score", images=["c", 1], threshold=0.3),
        "p": plain("Test_Probe", **{f"value{i if i > 1 else ''}": ["s", i - 1] for i in range(1, 7)}),
        "q": plain("Test_Probe", value=["c", 1]),
    }
    run = server.run(prompt).check()
    seen, scores = run.seen("p"), run.scores("s")
    assert len(scores) == 2
    assert seen["value"] == run.seen("q")["value"]  # unchanged: same shape, same bits
    assert seen["value2"] == [pytest.approx(np.mean(scores), abs=1e-5)]
    assert seen["value3"] == pytest.approx(scores, abs=1e-5)
    assert seen["value4"] == [bool(np.mean(scores) >= 0.3)]
    assert seen["value5"] == [",".join(str(i) for i in np.argsort(-np.array(scores)))]
    assert seen["value6"][0].startswith("1. image ")


def test_the_node_gives_the_librarys_scores(server: Any, images: dict[str, str], bundled_scorer: Any) -> None:
    run = server.run({**collected([images["good"], images["wide"]]), "s": rali("RALI_Score", images=["c", 0])}).check()
    files = [server.folder / "input" / images[name] for name in ("good", "wide")]
    assert run.scores("s") == pytest.approx(bundled_scorer.score(files).scores.tolist(), abs=1e-4)


def test_the_coverage_is_what_the_widget_says(server: Any, images: dict[str, str], bundled_scorer: Any) -> None:
    choices = {"o": ("model's own", None), "c": ("center", "center"), "t": ("tiles", "tiles"), "f": ("full", "full")}
    nodes = {key: rali("RALI_Score", images=["l", 0], coverage=widget) for key, (widget, _) in choices.items()}
    run = server.run({"l": plain("LoadImage", image=images["wide"]), **nodes}).check()
    file = server.folder / "input" / images["wide"]
    for key, (_, coverage) in choices.items():
        expected = bundled_scorer.score([file], coverage=coverage).scores.tolist()
        assert run.scores(key) == pytest.approx(expected, abs=1e-4)
    assert run.scores("c") != run.scores("t")


def test_a_scored_batch_costs_nothing_again_and_a_new_threshold_scores_nothing(
    server: Any, images: dict[str, str]
) -> None:
    prompt = {**collected(eight(images)), "s": rali("RALI_Score", images=["c", 1], threshold=0.111)}
    first = server.run(prompt).check()
    prompt["s"]["inputs"]["threshold"] = 0.222
    second = server.run(prompt).check()
    assert "s" in second.executed
    assert second.scores("s") == first.scores("s")
    # Scoring reports its progress; looking up does not.
    assert not [data for kind, data in second.messages if kind == "progress" and data["node"] == "s"]
    cached = server.run(prompt).check()
    assert "s" not in cached.executed
    assert cached.scores("s") == first.scores("s")


@pytest.mark.both_versions
def test_best_of_n_finds_the_undistorted_image_among_eight(server: Any, images: dict[str, str]) -> None:
    prompt = {
        **collected(eight(images)),
        "f": plain("Test_Attachments", count=8),
        "n": plain("Test_Numbers", text="10,11,12,13,14,15,16,17"),
        "b": rali("RALI_BestOfN", images=["c", 1], latents=["f", 0], masks=["f", 1], seeds=["n", 0]),
        "p": plain("Test_Probe", **{f"value{i if i > 1 else ''}": ["b", i - 1] for i in range(1, 7)}),
        "g": plain("LoadImage", image=images["good"]),
        "q": plain("Test_Probe", value=["g", 0]),
    }
    run = server.run(prompt).check()
    seen = run.seen("p")
    assert seen["value3"] == ["5"]
    assert seen["value"] == run.seen("q")["value"]
    assert seen["value4"][0]["samples"]["mean"] == 5.0
    assert seen["value5"][0]["mean"] == pytest.approx(5 / 16)
    assert seen["value6"] == [15]


@pytest.mark.parametrize("output", [0, 1], ids=["list", "batch"])
def test_attachments_stay_with_their_images_in_any_order(server: Any, images: dict[str, str], output: int) -> None:
    prompt = {
        **collected(eight(images)),
        "f": plain("Test_Attachments", count=8),
        "n": plain("Test_Numbers", text="0.5,0.9,0.1,0.7,0.2,0.3,0.4,0.6"),
        "p2": plain("Test_Probe", value=["c", 1]),
    }
    for order, wanted in (("best first", [1, 3, 7]), ("as they came", [1, 3, 7]), ("worst first", [2, 4, 5])):
        prompt["b"] = rali(
            "RALI_BestOfN", images=["c", output], k=3, order=order, scores=["n", 1], latents=["f", 0], masks=["f", 1],
            seeds=["n", 0],
        )  # fmt: skip
        prompt["p"] = plain("Test_Probe", **{f"value{i if i > 1 else ''}": ["b", i - 1] for i in range(1, 7)})
        run = server.run(prompt).check()
        seen, all_images = run.seen("p"), run.seen("p2")["value"][0]["each"]
        assert seen["value3"] == [",".join(map(str, wanted))]
        assert seen["value"][0]["each"] == [all_images[index] for index in wanted]
        assert seen["value4"][0]["samples"]["shape"] == [3, 4, 2, 2]
        assert seen["value4"][0]["samples"]["mean"] == pytest.approx(np.mean(wanted))
        assert seen["value5"][0]["shape"] == [3, 8, 8]


def test_images_of_different_sizes_come_out_as_a_list(server: Any, images: dict[str, str]) -> None:
    prompt = {
        **collected([images["good"], images["wide"], images["bad3"]]),
        "b": rali("RALI_BestOfN", images=["c", 0], k=3, order="as they came"),
        "p": plain("Test_Probe", value=["b", 0], value2=["b", 1]),
    }
    seen = server.run(prompt).check().seen("p")
    assert [image["shape"] for image in seen["value"]] == [[1, 384, 384, 3], [1, 427, 640, 3], [1, 384, 384, 3]]
    assert len(seen["value2"]) == 3


def test_attachments_of_another_number_are_an_error_that_says_so(server: Any, images: dict[str, str]) -> None:
    prompt = {
        **collected([images["good"], images["bad1"]]),
        "n": plain("Test_Numbers", text="1,2,3"),
        "b": rali("RALI_BestOfN", images=["c", 1], seeds=["n", 0]),
        "p": plain("Test_Probe", value=["b", 0]),
    }
    run = server.run(prompt)
    assert run.ending == "execution_error"
    assert "seeds: expected one for each of the 2 images or one for all, got 3" in run.error


@pytest.mark.both_versions
def test_filter_splits_as_the_scores_say(server: Any, images: dict[str, str]) -> None:
    base = collected(eight(images))
    scores = server.run({**base, "s": rali("RALI_Score", images=["c", 1])}).check().scores("s")
    threshold = round(float(np.mean(scores)), 4)
    prompt = {
        **base,
        "f": rali("RALI_Filter", images=["c", 1], threshold=threshold),
        "p": plain(
            "Test_Probe",
            value=["f", 0],
            value2=["f", 1],
            value3=["f", 2],
            value4=["f", 3],
            value5=["f", 4],
            value6=["f", 5],
            value7=["f", 6],
        ),
        "q": plain("Test_Probe", value=["c", 1]),
    }
    run = server.run(prompt).check()
    seen, each = run.seen("p"), run.seen("q")["value"][0]["each"]
    passed = [i for i, score in enumerate(scores) if score >= threshold]
    assert 0 < len(passed) < 8
    assert seen["value"][0]["each"] == [each[i] for i in passed]
    assert seen["value2"][0]["each"] == [each[i] for i in range(8) if i not in passed]
    assert (seen["value3"], seen["value4"]) == ([len(passed)], [False])
    assert seen["value5"] == pytest.approx(scores, abs=1e-5)
    assert seen["value6"] == pytest.approx([scores[i] for i in passed], abs=1e-5)
    assert seen["value7"] == [",".join(map(str, passed))]


def test_attachments_go_through_the_filter_with_their_images(server: Any, images: dict[str, str]) -> None:
    prompt = {
        **collected(eight(images)),
        "f": plain("Test_Attachments", count=8),
        "n": plain("Test_Numbers", text="0.5,0.9,0.1,0.7,0.2,0.3,0.4,0.6"),
        "m": plain("Test_Numbers", text="20,21,22,23,24,25,26,27"),
        "b": rali("RALI_Filter", images=["c", 1], scores=["n", 1], latents=["f", 0], masks=["f", 1], seeds=["m", 0]),
        "p": plain("Test_Probe", value=["b", 0], value2=["b", 6], value3=["b", 7], value4=["b", 8], value5=["b", 9]),
        "q": plain("Test_Probe", value=["c", 1], value2=["f", 1]),
    }
    run = server.run(prompt).check()
    seen, everything, passed = run.seen("p"), run.seen("q"), [0, 1, 3, 7]
    assert seen["value2"] == ["0,1,3,7"]
    assert seen["value"][0]["each"] == [everything["value"][0]["each"][index] for index in passed]
    assert seen["value3"][0]["samples"]["mean"] == pytest.approx(np.mean(passed))
    assert seen["value4"][0]["each"] == [everything["value2"][0]["each"][index] for index in passed]
    assert seen["value5"] == [20 + index for index in passed]


@pytest.mark.parametrize(("threshold", "runs", "rests"), [(0.0, "a", "r"), (1.0, "r", "a")])
def test_nodes_on_an_empty_side_of_the_filter_do_not_run(
    server: Any, images: dict[str, str], threshold: float, runs: str, rests: str
) -> None:
    prompt = {
        **collected([images["good"], images["bad4"]]),
        "f": rali("RALI_Filter", images=["c", 1], threshold=threshold),
        "a": plain("PreviewImage", images=["f", 0]),
        "r": plain("PreviewImage", images=["f", 1]),
    }
    run = server.run(prompt).check()
    assert len(run.outputs[runs]["images"]) == 2
    assert rests not in run.outputs


@pytest.mark.both_versions
def test_a_shut_gate_leaves_upscale_and_save_unexecuted(server: Any, images: dict[str, str]) -> None:
    def prompt(threshold: float, mode: str = "block") -> dict[str, Any]:
        return {
            "l": plain("LoadImage", image=images["good"]),
            "g": rali("RALI_Gate", value=["l", 0], images=["l", 0], threshold=threshold, mode=mode),
            "u": plain("ImageScaleBy", image=["g", 0], upscale_method="bilinear", scale_by=2.0 + threshold),
            "p": plain("Test_Probe", value=["u", 0]),
            "s": plain("SaveImage", images=["u", 0], filename_prefix="gate"),
        }

    shut = server.run(prompt(1.0)).check()
    assert shut.finished == {"g"}  # by the messages: neither what looks at the upscaled image nor the save ran
    assert not {"p", "s"} & set(shut.outputs)
    assert not list((server.folder / "output").glob("gate*"))
    opened = server.run(prompt(0.0)).check()
    assert opened.finished == {"g", "p", "s"}
    assert opened.seen("p")["value"][0]["shape"] == [1, 768, 768, 3]
    assert len(opened.outputs["s"]["images"]) == 1
    raised = server.run(prompt(1.0, "raise"))
    assert raised.ending == "execution_error"
    assert "the score is too low" in raised.error


@pytest.mark.both_versions
def test_nodes_before_a_shut_gate_are_not_computed_and_switch_takes_the_other_input(
    server: Any, images: dict[str, str]
) -> None:
    def prompt(threshold: float, mode: str) -> dict[str, Any]:
        return {
            "l": plain("LoadImage", image=images["bad2"]),
            "v": plain("ImageScaleBy", image=["l", 0], upscale_method="bilinear", scale_by=1.5 + threshold),
            "o": plain("ImageInvert", image=["l", 0]),
            "g": rali("RALI_Gate", value=["v", 0], otherwise=["o", 0], images=["l", 0], threshold=threshold, mode=mode),
            "p": plain("Test_Probe", value=["g", 0]),
        }

    blocked = server.run(prompt(1.0, "block")).check()
    assert not {"v", "o"} & blocked.executed
    assert "p" not in blocked.outputs
    other = server.run(prompt(1.0, "either-or")).check()
    assert {"v", "o"} & other.executed == {"o"}
    assert other.seen("p")["value"][0]["shape"] == [1, 384, 384, 3]
    through = server.run(prompt(0.0, "either-or")).check()
    assert "v" in through.executed
    assert through.seen("p")["value"][0]["shape"] == [1, 576, 576, 3]


def test_a_gate_judges_by_a_score_too(server: Any) -> None:
    prompt = {
        "n": plain("Test_Numbers", text="0.2,0.8"),
        "g": rali("RALI_Gate", value=["n", 0], score=["n", 1], threshold=0.5, aggregation="maximum"),
        "p": plain("Test_Probe", value=["g", 0], value2=["g", 1], value3=["g", 2]),
    }
    assert server.run(prompt).check().seen("p") == {"value": [0, 0], "value2": [True], "value3": [0.8]}


def sampler(judge: str, **inputs: Any) -> dict[str, Any]:
    return {
        "d": plain("Test_TinyDiffusion"),
        "r": plain("RALI_LoadModel", model=judge, dtype="auto", device="auto"),
        "e": plain("EmptyLatentImage", width=64, height=64, batch_size=1),
        "b": rali(
            "RALI_BestOfNSampler", model=["d", 0], positive=["d", 1], negative=["d", 1], latent_image=["e", 0],
            vae=["d", 2], rali_model=["r", 0], **inputs,
        ),
        "p": plain("Test_Probe", value=["b", 0], value2=["b", 1], value3=["b", 2], value4=["b", 3], value5=["b", 4]),
    }  # fmt: skip


@pytest.mark.both_versions
@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_winning_seed_makes_the_same_image_in_ksampler(server: Any, judge: str, name: str) -> None:
    run = server.run(sampler(judge, sampler_name=name, n=3, keep=2)).check()
    seen = run.seen("p")
    assert seen["value4"] == sorted(seen["value4"], reverse=True)
    assert len(run.scores("b")) == 3
    for place, seed in enumerate(seen["value3"]):
        again = {
            "d": plain("Test_TinyDiffusion"),
            "e": plain("EmptyLatentImage", width=64, height=64, batch_size=1),
            "k": plain(
                "KSampler", model=["d", 0], positive=["d", 1], negative=["d", 1], latent_image=["e", 0], seed=seed,
                steps=3, cfg=2.0, sampler_name=name, scheduler="normal", denoise=1.0,
            ),
            "v": plain("VAEDecode", samples=["k", 0], vae=["d", 2]),
            "p": plain("Test_Probe", value=["v", 0], value2=["k", 0]),
        }  # fmt: skip
        same = server.run(again).check().seen("p")
        assert same["value"][0]["each"][0] == seen["value"][0]["each"][place]
        assert same["value2"][0]["samples"]["each"][0] == seen["value2"][0]["samples"]["each"][place]


@pytest.mark.both_versions
def test_the_sampler_stops_early_and_its_progress_spans_all_tries(server: Any, judge: str) -> None:
    everything = server.run(sampler(judge, n=4, seed=100)).check()
    assert everything.seen("p")["value5"][0].startswith("all 4 seeds tried")
    progress = [data for kind, data in everything.messages if kind == "progress" and data["node"] == "b"]
    assert {data["max"] for data in progress} >= {12}
    early = server.run(sampler(judge, n=4, seed=100, threshold=0.0)).check()
    assert early.seen("p")["value5"][0].startswith("stopped early: 1 reached 0 after 1 of 4 seeds")
    assert early.seen("p")["value3"] == [100]
    ending = early.seen("p")["value5"][0].splitlines()[0]
    assert early.outputs["b"]["rali"][0]["note"] == f"best: seed 100; {ending}"


def test_the_samplers_memory_grows_with_keep_and_not_with_n(server: Any, judge: str) -> None:
    most = {}
    for n, keep in ((3, 1), (7, 1), (7, 4)):
        prompt = sampler(judge, n=n, keep=keep, steps=1, seed=500)
        prompt["e"]["inputs"] |= {"width": 72, "height": 88}  # a size that no other test leaves in the server's cache
        prompt["c"] = plain("Test_CountingVae", vae=["d", 2], run=f"{n} {keep}")
        prompt["b"]["inputs"]["vae"] = ["c", 0]
        prompt["k"] = plain("Test_Counts", after=["b", 0], run=f"{n} {keep}")
        most[n, keep] = max(server.run(prompt).check().outputs["k"]["counts"])
    assert most[7, 1] == most[3, 1]
    assert most[7, 4] == most[7, 1] + 3
    assert most[7, 1] <= 3  # the best so far and the last try, while the next one is decoded


def test_batches_of_tries_find_what_single_tries_find(server: Any, judge: str) -> None:
    single = server.run(sampler(judge, n=4, seed=7, keep=4)).check().seen("p")
    batched = server.run(sampler(judge, n=4, seed=7, keep=4, batch_per_try=3)).check().seen("p")
    by_seed = dict(zip(single["value3"], single["value4"], strict=True))
    assert {seed: pytest.approx(by_seed[seed], abs=1e-3) for seed in by_seed} == dict(
        zip(batched["value3"], batched["value4"], strict=True)
    )


@pytest.mark.both_versions
def test_an_interrupted_sampler_outputs_the_best_so_far(server: Any, judge: str) -> None:
    interrupted = []

    def interrupt(host: Any, kind: str, data: dict[str, Any]) -> None:
        # After the second of the tries has begun.
        if kind == "progress" and data["node"] == "b" and data["value"] > 45 and not interrupted:
            interrupted.append(host.post("/interrupt", {}))

    run = server.run(sampler(judge, n=200, seed=300, steps=40), on_message=interrupt).check()
    assert interrupted
    report = run.seen("p")["value5"][0]
    assert report.startswith("interrupted after ")
    assert report.splitlines()[0].endswith("of 200 seeds; the best so far")
    assert run.seen("p")["value"][0]["shape"] == [1, 64, 64, 3]


@pytest.mark.parametrize(("fault", "batch"), [("nan", 2), ("black", 1), ("memory", 2)])
def test_a_try_that_fails_costs_the_sampler_no_other(server: Any, judge: str, fault: str, batch: int) -> None:
    prompt = sampler(judge, n=6, keep=4, seed=700, steps=1, batch_per_try=batch, threshold=0.0)
    prompt["c"] = plain("Test_FaultyVae", vae=["d", 2], fault=fault, at="2,4", run=f"{fault} {batch}")
    prompt["b"]["inputs"]["vae"] = ["c", 0]
    run = server.run(prompt).check()
    seen, shown = run.seen("p"), run.outputs["b"]["rali"][0]
    lines = seen["value5"][0].splitlines()
    failed = [2, 4] if batch == 1 or fault != "memory" else [2, 3, 4, 5]
    good = [index for index in range(6) if index not in failed]
    seeds = [700 + 1_000_000 * index for index in range(6)]
    assert set(seen["value3"][: len(good)]) == {seeds[index] for index in good}
    said = {"nan": "no score, .*NaN", "black": "0.0200, no content", "memory": "no score, out of memory"}[fault]
    for index in failed:
        assert re.fullmatch(f"seed {seeds[index]}: .*{said}.*", lines[1 + index])
    assert shown["note"].count("no content" if fault == "black" else "no score") == 1
    if fault != "black":
        assert len(seen["value3"]) == len(good)
        assert seen["value"][0]["shape"] == [len(good), 64, 64, 3]


def test_a_sampler_without_any_usable_image_says_why(server: Any, judge: str) -> None:
    prompt = sampler(judge, n=2, seed=800, steps=1)
    prompt["c"] = plain("Test_FaultyVae", vae=["d", 2], fault="nan", at="0,1", run="all")
    prompt["b"]["inputs"]["vae"] = ["c", 0]
    run = server.run(prompt)
    assert run.ending == "execution_error"
    assert re.search("none of the 2 seeds gave an image that can be scored; seed 800: .*NaN", run.error), run.error


def test_an_interrupted_scoring_stops_and_the_server_keeps_running(server: Any, images: dict[str, str]) -> None:
    sent = []

    def interrupt(host: Any, kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == "s" and not sent:
            sent.append(host.post("/interrupt", {}))

    prompt = {"o": plain("Test_Odd", kind="noise", count=400, seed=9), "s": rali("RALI_Score", images=["o", 0])}
    assert server.run(prompt, on_message=interrupt).ending == "execution_interrupted"
    # What was scored until then is remembered: only the rest is left to do.
    prompt["o"]["inputs"]["count"] = 16
    kept = server.run(prompt).check()
    left = [data["max"] for kind, data in kept.messages if kind == "progress" and data["node"] == "s"]
    assert max(left, default=0) < 16
    server.run({**collected([images["good"]]), "s": rali("RALI_Score", images=["c", 1])}).check()


@pytest.mark.both_versions
def test_progress_moves_image_by_image(server: Any) -> None:
    prompt = {"o": plain("Test_Odd", kind="noise", count=5, seed=77), "s": rali("RALI_Score", images=["o", 0])}
    run = server.run(prompt).check()
    progress = [data for kind, data in run.messages if kind == "progress" and data["node"] == "s"]
    assert {(data["value"], data["max"]) for data in progress} >= {(done, 5) for done in range(1, 6)}


@pytest.mark.both_versions
@pytest.mark.parametrize("kind", ["RALI_Score", "RALI_QualityMap", "RALI_ScoreFolder", "RALI_ScoreVideo"])
def test_an_interrupt_takes_less_than_a_second(server: Any, kind: str) -> None:
    folder = server.folder / "input" / "interrupted"
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng()  # new in each run: nothing of it was scored before
    for number in range(40 if kind == "RALI_ScoreFolder" else 0):
        Image.fromarray(noise.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    inputs = {
        "RALI_Score": {"images": ["o", 0], "coverage": "full"},
        "RALI_QualityMap": {"images": ["o", 0], "mode": "full"},
        "RALI_ScoreFolder": {"folder": str(folder), "coverage": "full"},
        "RALI_ScoreVideo": {"images": ["o", 0], "sample_fps": 0.0, "coverage": "full"},
    }[kind]
    took = []
    for _ in range(2):  # the machine may be busy with something else for a moment
        moments: list[float] = []  # the node begins, its first progress, and the end

        def interrupt(host: Any, event: str, data: dict[str, Any], moments: list[float] = moments) -> None:
            awaited = ("executing", "progress", "execution_interrupted")[len(moments)]
            if event == awaited and data.get("node", "s") == "s":
                moments.append(time.monotonic())
                if event == "progress":
                    host.post("/interrupt", {})

        prompt = {
            "o": plain("Test_Odd", kind="noise", count=200, seed=int(noise.integers(1 << 30))),
            "s": rali(kind, **inputs),
            "p": plain("Test_Probe", value=["s", 0]),
        }
        assert server.run(prompt, on_message=interrupt).ending == "execution_interrupted"
        begun, first, end = moments
        took.append((end - first) / max(1.0, first - begun))  # more only where the first images took longer
    assert min(took) < 1.0, took


def test_an_interrupted_quality_map_stops_between_its_tiles(server: Any, images: dict[str, str]) -> None:
    sent = []

    def interrupt(host: Any, kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data["node"] == "m" and not sent:
            sent.append(host.post("/interrupt", {}))
            assert data["value"] < data["max"]

    prompt = {
        "l": plain("LoadImage", image=images["wide"]),
        "m": rali("RALI_QualityMap", images=["l", 0], tile_size=32),
        "p": plain("Test_Probe", value=["m", 0]),
    }
    assert server.run(prompt, on_message=interrupt).ending == "execution_interrupted"
    assert sent


@pytest.mark.both_versions
@pytest.mark.parametrize("mode", ["tiles", "patch tokens"])
def test_a_quality_map_marks_the_spoiled_half(
    server: Any, photographs: dict[str, Image.Image], tools: dict[str, Any], mode: str
) -> None:
    half = photographs["astronaut"].copy()
    half.paste(tools["degrade"](half, 6).crop((0, 0, 256, 512)), (0, 0))
    prompt = {
        "l": plain("LoadImage", image=server.upload("half.png", half)),
        "m": rali("RALI_QualityMap", images=["l", 0], mode=mode),
        "p": plain("Test_Probe", value=["m", 0], value2=["m", 1], value3=["m", 2], value4=["m", 3], value5=["m", 4]),
        "i": plain("MaskToImage", mask=["m", 2]),
        "s": plain("SaveImage", images=["i", 0], filename_prefix=f"mask-{mode[:5]}"),
    }
    run = server.run(prompt).check()
    seen = run.seen("p")
    assert [seen[key][0]["shape"] for key in ("value", "value2", "value3")] == [[1, 512, 512, 3]] * 2 + [[1, 512, 512]]
    assert 0 < seen["value3"][0]["mean"] <= 0.5
    regions = len(seen["value4"])
    assert regions == 16 if mode == "tiles" else regions > 16  # how many patches there are is the encoder's affair
    mask = np.asarray(Image.open(server.folder / "output" / run.outputs["s"]["images"][0]["filename"]).convert("L"))
    assert mask[:, :256].mean() > mask[:, 256:].mean()


@pytest.mark.parametrize("mode", ["tiles", "patch tokens"])
def test_a_spoiled_image_costs_no_other_its_quality_map(server: Any, mode: str) -> None:
    maps = {"mode": mode, "tile_size": 32, "weak_mode": "below score", "weak_limit": 0.0}
    prompt = {
        "o": plain("Test_Odd", kind="nan", count=3, seed=8),  # the last one holds NaN
        "m": rali("RALI_QualityMap", images=["o", 0], **maps),
        "p": plain("Test_Probe", value=["m", 0], value2=["m", 2], value3=["m", 3], value4=["m", 4]),
    }
    run = server.run(prompt).check()
    seen = run.seen("p")
    assert [math.isnan(score) for score in seen["value3"]] == [False] * (len(seen["value3"]) - 1) + [True]
    assert len(set(seen["value"][0]["each"])) == 3
    assert seen["value2"][0]["mean"] == pytest.approx(1 / 3), "the spoiled one is white, of the others nothing is weak"
    assert re.search(r"image 1: 0\.\d+ to 0.*image 2: no score: .*NaN", seen["value4"][0], re.DOTALL)
    assert "no score: image 2" in run.outputs["m"]["rali"][0]["note"]
    assert "NaN" in server.run({**prompt, "o": plain("Test_Odd", kind="all nan", count=2, seed=8)}).error
    blank = server.run({**prompt, "o": plain("Test_Odd", kind="black", count=1, seed=0)}).check()
    assert blank.outputs["m"]["rali"][0]["note"].endswith("no content: image 0")


@pytest.mark.both_versions
def test_a_contact_sheet_holds_all_images(server: Any, images: dict[str, str]) -> None:
    prompt = {
        **collected([*eight(images)[:7], images["wide"]]),
        "s": rali("RALI_ContactSheet", images=["c", 0]),
        "p": plain("Test_Probe", value=["s", 0]),
    }
    shape = server.run(prompt).check().seen("p")["value"][0]["shape"]
    assert shape[0] == 1
    assert shape[2] == 3 * (128 + 12) + 12


@pytest.mark.both_versions
def test_scores_are_combined(server: Any) -> None:
    prompt = {
        "a": plain("Test_Numbers", text="0.2,0.8,0.5"),
        "b": plain("Test_Numbers", text="0.9,0.1,0.5"),
        "c": rali("RALI_CombineScores", scores_a=["a", 1], scores_b=["b", 1], weight_b=3.0),
        "p": plain("Test_Probe", value=["c", 0], value2=["c", 1]),
    }
    assert server.run(prompt).check().seen("p") == {"value": pytest.approx([0.725, 0.275, 0.5]), "value2": ["0,2,1"]}


@pytest.mark.both_versions
@pytest.mark.parametrize("file_format", ["png", "webp", "jpeg"])
def test_saved_files_carry_score_and_workflow(server: Any, images: dict[str, str], file_format: str) -> None:
    prompt = {
        **collected([images["bad6"], images["good"]]),
        "n": plain("Test_Numbers", text="41,42"),
        "v": rali(
            "RALI_SaveImage", images=["c", 1], seeds=["n", 0], format=file_format,
            filename_prefix=file_format + "/{rank}_{score}_{seed}",
        ),
    }  # fmt: skip
    extra = {"extra_pnginfo": {"workflow": {"nodes": [], "made by": "the test"}}}
    run = server.run(prompt, extra=extra).check()
    folder, scores = server.folder / "output" / file_format, run.scores("v")
    ranks = [1 if score == max(scores) else 2 for score in scores]
    records = [json.loads(line) for line in (folder / "rali_scores.jsonl").read_text().splitlines()]
    for index, shown in enumerate(run.outputs["v"]["images"]):
        assert shown["filename"].startswith(f"{ranks[index]}_{scores[index]:.3f}_{41 + index}_00001_")
        with Image.open(folder / shown["filename"]) as image:
            image.load()
            if file_format == "png":
                texts = image.text
            else:
                texts = dict(str(value).split(":", 1) for value in image.getexif().values() if ":" in str(value))
        assert float(texts["rali_score"]) == pytest.approx(scores[index], abs=1e-4)
        assert float(texts["aesthetic_score"]) == pytest.approx(10 * scores[index], abs=1e-3)
        assert json.loads(texts["workflow"])["made by"] == "the test"
        assert json.loads(texts["prompt"])["v"]["class_type"] == "RALI_SaveImage"
        assert records[index]["file"] == shown["filename"]
        assert records[index]["rali_score"] == pytest.approx(scores[index], abs=1e-5)
        assert records[index]["aesthetic_score"] == pytest.approx(10 * scores[index], abs=1e-4)


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("names/%date:yyyy-MM-dd%_a", r"names/\d{4}-\d\d-\d\d_a"),
        ("names/%date:yy/M/d hh:mm:ss%", r"names/\d\d/\d+/\d+ \d\d_\d\d_\d\d"),
        ("names/%Load Image.image%_b", r"names/go_od\.png_b"),
        ("names/%LoadImage.image%_c", r"names/go_od\.png_c"),
        ("names/%My title.threshold%_d", r"names/0\.25_d"),
        ("names/%Nobody.image%_%nothing%", r"names/%Nobody\.image%_%nothing%"),
        ("names/%year%-%width%x%height%", r"names/\d{4}-64x48"),
        ('names/what? a*b: <c> |"d"', "names/what_ a_b_ _c_ __d_"),
        ("C:\\names\\x", "C_/names/x"),
        ("names/con/e. /f", r"names/_con/e/f"),
        ("names/{score:.2f}_{rank:03}_{{g}}", r"names/0\.51_001_{g}"),
        ("names/" + "long" * 100, "names/" + "long" * 45),
    ],
)
def test_names_are_filled_in_as_by_the_hosts_own_node_and_are_valid_on_windows(
    server: Any, photographs: dict[str, Image.Image], template: str, pattern: str
) -> None:
    (server.folder / "input" / "go").mkdir(exist_ok=True)
    prompt = {
        "l": plain("LoadImage", image=server.upload("go/od.png", photographs["coffee"].resize((64, 48)))),
        "s": {**rali("RALI_Score", images=["l", 0], threshold=0.25), "_meta": {"title": "My title"}},
        "n": plain("Test_Numbers", text="0.512"),
        "v": rali("RALI_SaveImage", images=["l", 0], scores=["n", 1], filename_prefix=template),
    }
    (shown,) = server.run(prompt).check().outputs["v"]["images"]
    assert re.fullmatch(pattern + r"_\d{5}_\.png", f"{shown['subfolder']}/{shown['filename']}"), shown
    assert (server.folder / "output" / shown["subfolder"] / shown["filename"]).is_file()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{nope}", "there is no {nope}; it may hold {score}, {rank}, {seed}"),
        ("{score!r}", "there is no {score!r}"),
        ("{score:abc}", "Invalid format specifier"),
        ("{score", "expected '}' before end of string"),
    ],
)
def test_an_invalid_file_name_template_is_refused_before_the_work(
    server: Any, images: dict[str, str], template: str, message: str
) -> None:
    prompt = {
        **collected([images["good"]]),
        "v": rali("RALI_SaveImage", images=["c", 1], filename_prefix=template),
    }
    run = server.run(prompt)
    assert run.status == 400
    assert message in run.error
    prompt["v"]["inputs"]["filename_prefix"] = "{seed}"
    assert "wire seeds, or take {seed} out" in server.run(prompt).error


@pytest.mark.parametrize(("file_format", "side"), [("webp", 16384), ("jpeg", 65501)])
def test_an_image_too_long_for_its_format_is_saved_as_png(server: Any, file_format: str, side: int) -> None:
    prompt = {
        "o": plain("Test_Odd", kind="long", count=side, seed=0),
        "n": plain("Test_Numbers", text="0.5"),
        "v": rali(
            "RALI_SaveImage",
            images=["o", 0],
            scores=["n", 1],
            format=file_format,
            filename_prefix=f"long/{file_format}",
        ),
    }
    (shown,) = server.run(prompt).check().outputs["v"]["images"]
    with Image.open(server.folder / "output" / "long" / shown["filename"]) as image:
        assert (image.format, image.size) == ("PNG", (side, 8))
        assert image.text["aesthetic_score"] == "5.0000"
    assert f"this image has {side} x 8: saved as png" in server.text()


@pytest.mark.parametrize("file_format", ["png", "webp", "jpeg"])
def test_metadata_never_hold_nan_and_an_image_without_a_score_is_saved_too(server: Any, file_format: str) -> None:
    prompt = {
        "o": plain("Test_Odd", kind="nan", count=2, seed=77),
        "v": rali("RALI_SaveImage", images=["o", 0], format=file_format, filename_prefix=f"nan/{file_format}"),
    }
    extra = {"extra_pnginfo": {"workflow": {"values": [float("nan"), 1.5, {"deep": float("-inf")}]}}}
    shown = server.run(prompt, extra=extra).check().outputs["v"]["images"]
    assert len(shown) == 2
    for index, entry in enumerate(shown):
        with Image.open(server.folder / "output" / "nan" / entry["filename"]) as image:
            image.load()
            known = image.text if file_format == "png" else None
            texts = known or dict(str(value).split(":", 1) for value in image.getexif().values() if ":" in str(value))
        assert json.loads(texts["workflow"], parse_constant=pytest.fail) == {"values": [None, 1.5, {"deep": None}]}
        assert ("rali_score" in texts) == ("aesthetic_score" in texts) == (index == 0)
    lines = (server.folder / "output" / "nan" / "rali_scores.jsonl").read_text().splitlines()
    assert json.loads(lines[-1], parse_constant=pytest.fail)["rali_score"] is None


def test_a_noise_mask_shorter_than_its_latents_is_repeated(server: Any, images: dict[str, str]) -> None:
    prompt = {
        **collected(eight(images)),
        "f": plain("Test_Attachments", count=8, masks=3),
        "n": plain("Test_Numbers", text="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"),
        "b": rali("RALI_BestOfN", images=["c", 1], k=4, scores=["n", 1], latents=["f", 0]),
        "p": plain("Test_Probe", value=["b", 3], value2=["b", 2]),
    }
    seen = server.run(prompt).check().seen("p")
    assert seen["value2"] == ["7,6,5,4"]
    mask = seen["value"][0]["noise_mask"]
    assert mask["shape"] == [4, 1, 8, 8]
    assert mask["mean"] == pytest.approx(np.mean([index % 3 for index in (7, 6, 5, 4)]) / 3)


def test_a_spoiled_image_costs_the_others_nothing(server: Any) -> None:
    prompt = {
        "o": plain("Test_Odd", kind="nan", count=16, seed=21),  # the last one holds NaN
        "s": rali("RALI_Score", images=["o", 0]),
        "f": rali("RALI_Filter", images=["o", 0], threshold=0.0),
        "b": rali("RALI_BestOfN", images=["o", 0], k=16),
        "p": plain("Test_Probe", value=["s", 4], value2=["s", 5], value3=["f", 2], value4=["b", 2], value5=["s", 1]),
    }
    run = server.run(prompt).check()
    scores, seen = run.scores("s"), run.seen("p")
    assert scores[15] is None
    assert all(0 < score < 1 for score in scores[:15])
    assert seen["value"][0].split(",")[-1] == "15"  # ranked worst
    assert "image 15: no score" in seen["value2"][0].splitlines()[15]
    assert "NaN" in seen["value2"][0].splitlines()[15]
    assert seen["value3"] == [15]
    assert sorted(map(int, seen["value4"][0].split(","))) == list(range(15))
    assert seen["value5"] == pytest.approx([sum(scores[:15]) / 16], abs=1e-5)
    for name in "sfb":
        assert "no score: image 15" in run.outputs[name]["rali"][0]["note"]
    # All fifteen are remembered: without the bad one nothing is computed again.
    again = server.run({**prompt, "s": rali("RALI_Score", images=["o", 0], threshold=0.123)}).check()
    assert max(data["max"] for kind, data in again.messages if kind == "progress" and data["node"] == "s") == 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("kind", "message"), [("all nan", "NaN"), ("wild", "got values from .* divide by 255")])
def test_where_no_image_can_be_scored_it_is_an_error_that_says_so(
    server: Any, kind: str, count: int, message: str
) -> None:
    for node in ("RALI_Score", "RALI_BestOfN", "RALI_Filter"):
        prompt = {"o": plain("Test_Odd", kind=kind, count=count, seed=0), "s": rali(node, images=["o", 0])}
        prompt["p"] = plain("Test_Probe", value=["s", 0])
        run = server.run(prompt)
        assert run.ending == "execution_error"
        assert re.search(f"of {count}, counted from 0. cannot be scored: .*{message}", run.error), run.error


@pytest.mark.both_versions
@pytest.mark.parametrize("source", ["empty batch", "empty list"])
def test_an_empty_list_blocks_its_branch_and_the_others_run(server: Any, images: dict[str, str], source: str) -> None:
    inputs: dict[str, dict[str, Any]] = {
        "RALI_Score": {}, "RALI_BestOfN": {}, "RALI_Filter": {}, "RALI_Gate": {"value": ["l", 0]},
        "RALI_ContactSheet": {}, "RALI_QualityMap": {}, "RALI_SaveImage": {},
    }  # fmt: skip
    prompt = {"l": plain("LoadImage", image=images["good"])}
    prompt["e"] = (
        plain("Test_Odd", kind="empty", count=2, seed=0) if source == "empty batch" else plain("Test_NoImages")
    )
    for kind, more in inputs.items():
        prompt[kind] = rali(kind, images=["e", 0], **more)
        prompt["after " + kind] = plain("Test_Probe", value=[kind, 0])
    prompt["s"] = rali("RALI_Score", images=["l", 0])
    run = server.run(prompt).check()
    assert len(run.scores("s")) == 1
    assert not [name for name in run.outputs if name.startswith("after")]
    for kind in inputs:
        assert "no images" in run.outputs[kind]["rali"][0]["note"], kind


@pytest.mark.parametrize("kind", ["black", "white", "pixel"])
def test_images_without_content_are_named_and_never_chosen_while_there_is_another(server: Any, kind: str) -> None:
    prompt = {
        "o": plain("Test_Odd", kind=kind, count=3, seed=0),
        "g": plain("Test_Odd", kind="noise", count=1, seed=4),
        "c": plain("Test_Collect", image1=["o", 0], image2=["g", 0]),
        "n": plain("Test_Numbers", text="0.9,0.8,0.7,0.1"),  # of a scorer that knows nothing of content
        "s": rali("RALI_Score", images=["c", 0]),
        "b": rali("RALI_BestOfN", images=["c", 0], k=2),
        "w": rali("RALI_BestOfN", images=["c", 0], scores=["n", 1]),
        "f": rali("RALI_Filter", images=["c", 0], threshold=0.0),
        "p": plain("Test_Probe", value=["s", 5], value2=["b", 2], value3=["w", 2], value4=["f", 6], value5=["s", 4]),
    }
    run = server.run(prompt).check()
    seen = run.seen("p")
    assert run.scores("s")[:3] == [0.02] * 3
    assert [line.split(",")[0] for line in seen["value"][0].splitlines()[1:4]] == [
        f"{place}. image {place - 2}: 0.0200 no content" for place in (2, 3, 4)
    ]
    assert (seen["value2"], seen["value3"], seen["value4"], seen["value5"]) == (["3,0"], ["3"], ["3"], ["3,0,1,2"])
    for name in "sbwf":
        shown = run.outputs[name]["rali"][0]
        assert "no content: image 0, 1, 2" in shown["note"]
        assert shown["reasons"] == ["no content"] * 3 + [None]
    assert run.outputs["f"]["rali"][0]["passed"] == [False, False, False, True]


def test_where_no_image_has_content_the_nodes_still_choose(server: Any) -> None:
    prompt = {
        "o": plain("Test_Odd", kind="black", count=2, seed=0),
        "b": rali("RALI_BestOfN", images=["o", 0]),
        "f": rali("RALI_Filter", images=["o", 0], threshold=0.0),
        "g": rali("RALI_Gate", value=["o", 0], images=["o", 0], threshold=0.1),
        "p": plain("Test_Probe", value=["b", 2], value2=["f", 6], value3=["g", 1], value4=["g", 2]),
        "q": plain("Test_Probe", value=["g", 0]),
    }
    run = server.run(prompt).check()
    assert run.seen("p") == {"value": ["0"], "value2": ["0,1"], "value3": [False], "value4": [pytest.approx(0.02)]}
    assert "q" not in run.outputs
    assert "no content: image 0, 1" in run.outputs["g"]["rali"][0]["note"]


@pytest.mark.parametrize("kind", ["rgba", "grey", "overshoot"])
def test_odd_but_sound_images_have_a_score(server: Any, kind: str) -> None:
    prompt = {"o": plain("Test_Odd", kind=kind, count=2, seed=0), "s": rali("RALI_Score", images=["o", 0])}
    run = server.run(prompt).check()
    assert all(0 < score < 1 for score in run.scores("s"))
    assert run.outputs["s"]["rali"][0]["reasons"] == [None, None]


def test_the_kind_of_images_can_be_told(server: Any, images: dict[str, str]) -> None:
    prompt = {
        **collected([images["good"]]),
        "m": plain("RALI_LoadModel", model="rali-small (bundled)", dtype="float32", device="cpu"),
        "s": rali("RALI_Score", images=["c", 1], model=["m", 0]),
    }
    found = []
    for domain in (None, "auto", "photographs", "generated images"):
        if domain is not None:
            prompt["m"]["inputs"]["domain"] = domain
        found.append(server.run(prompt).check().scores("s")[0])
    assert found[0] == found[1]
    assert len(set(found)) == 3, "each domain has another score of it"
    scorer = RaliScorer.from_pretrained(device="cpu", domain="generated")
    assert found[3] == pytest.approx(scorer.score(server.folder / "input" / images["good"]).scores[0], abs=1e-5)


@pytest.mark.both_versions
def test_models_in_the_folder_are_offered_and_a_deleted_or_broken_one_says_what_to_do(
    server: Any, tiny_file: Path, images: dict[str, str]
) -> None:
    folder = server.folder / "models" / "rali"
    folder.mkdir(exist_ok=True)
    (folder / "mine.safetensors").write_bytes(tiny_file.read_bytes())
    (folder / "notes.ckpt").write_bytes(b"no")

    def choices() -> list[str]:
        found = server.get("/object_info/RALI_LoadModel")["RALI_LoadModel"]["input"]["required"]["model"]
        return list(found[1]["options"] if isinstance(found[0], str) else found[0])

    assert choices() == ["rali-small (bundled)", "mine.safetensors"]
    official = server.folder / "hf" / "rali" / "rali-official.safetensors"
    official.parent.mkdir(parents=True, exist_ok=True)
    official.write_bytes(tiny_file.read_bytes())
    assert choices() == ["rali-small (bundled)", "official (downloaded)", "mine.safetensors"]
    prompt = {
        **collected([images["good"]]),
        "m": plain("RALI_LoadModel", model="mine.safetensors", dtype="auto", device="auto"),
        "s": rali("RALI_Score", images=["c", 1], model=["m", 0]),
    }
    scored = server.run(prompt).check().scores("s")
    bundled = server.run({**collected([images["good"]]), "s": rali("RALI_Score", images=["c", 1])}).check()
    assert scored != bundled.scores("s")
    prompt["m"]["inputs"]["model"] = "official (downloaded)"
    assert server.run(prompt).check().scores("s") == scored
    official.unlink()
    assert "run `rali download official`" in server.run(prompt).error
    prompt["m"]["inputs"]["model"] = "mine.safetensors"
    (folder / "mine.safetensors").unlink()
    assert "put it back, or choose 'rali-small (bundled)'" in server.run(prompt).error
    time.sleep(0.01)
    (folder / "mine.safetensors").write_bytes(tiny_file.read_bytes()[:5000])
    broken = server.run(prompt)
    assert broken.ending == "execution_error"
    assert "it may be damaged or incompletely downloaded" in broken.error
    (folder / "mine.safetensors").write_bytes(tiny_file.read_bytes())
    assert server.run(prompt).check().scores("s") == scored
    assert server.get("/system_stats")
