"""Lists of other packs and scores of other scorers, in a real ComfyUI."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

BEST = {"k": 2, "order": "best first", "scores_weight": 1.0, "coverage": "model's own"}
FILTER = {"threshold": 5.4, "coverage": "model's own"}
GATE = {"mode": "block", "aggregation": "minimum", "coverage": "model's own"}


def plain(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def base(numbers: str, count: int = 4) -> dict[str, Any]:
    """Images o, another scorer's numbers n, and a bundle u of what belongs to the images."""
    return {
        "o": plain("Test_Odd", kind="noise", count=count, seed=31),
        "n": plain("Test_Numbers", text=numbers),
        "u": plain("Test_Bundle", count=count),
    }


def probe(*links: list[Any]) -> dict[str, Any]:
    return plain("Test_Probe", **{f"value{place if place > 1 else ''}": link for place, link in enumerate(links, 1)})


@pytest.mark.both_versions
@pytest.mark.parametrize("kind", ["RALI_BestOfN", "RALI_Filter"])
def test_anything_follows_the_selection_in_the_form_in_which_it_came(server: Any, kind: str) -> None:
    settings = BEST if kind == "RALI_BestOfN" else FILTER
    first = {"RALI_BestOfN": 6, "RALI_Filter": 10}[kind]
    seen: dict[str, Any] = {}
    for wires in (("captions", "list", "segs"), ("conditioning", "one", "captions")):
        outputs = {"captions": 0, "list": 1, "segs": 2, "conditioning": 3, "one": 4}
        attached = {f"attachment_{place}": ["u", outputs[name]] for place, name in enumerate(wires, 1)}
        prompt = {
            **base("4.5,6.5,5,5.5"),
            "b": plain(kind, images=["o", 0], scores=["n", 1], **settings, **attached),
            "p": probe(*(["b", first + place] for place in range(4))),
        }
        run = server.run(prompt).check().seen("p")
        seen |= dict(zip(wires, (run[key] for key in ("value", "value2", "value3")), strict=True))
        assert run["value4"] == [1, 3]  # the indexes as numbers
    assert seen["captions"] == ["caption 1", "caption 3"]
    assert seen["list"] == [[0.1, 0.3]]
    assert seen["segs"] == [[[64, 64], ["region 1", "region 3"]]]
    assert seen["one"] == ["one for all"]
    (((tensor, more),),) = seen["conditioning"]
    assert (tensor["shape"], tensor["mean"], more["pooled_output"]["mean"]) == ([2, 1, 1], 2.0, 4.0)


@pytest.mark.both_versions
def test_a_float_that_carries_a_list_is_taken_as_scores_and_one_latent_serves_all(server: Any) -> None:
    prompt = {
        **base("0"),
        "e": plain("EmptyLatentImage", width=64, height=64, batch_size=1),
        "b": plain("RALI_BestOfN", images=["o", 0], scores=["u", 1], latents=["e", 0], seeds=["n", 0], **BEST),
        "p": probe(["b", 1], ["b", 2], ["b", 3], ["b", 5]),
    }
    seen = server.run(prompt).check().seen("p")
    assert (seen["value"], seen["value2"], seen["value4"]) == ([0.3, 0.2], ["3,2"], [0])
    assert [latent["samples"]["shape"] for latent in seen["value3"]] == [[1, 4, 8, 8]]


@pytest.mark.both_versions
def test_filter_and_gate_take_thresholds_of_other_scorers_in_both_directions(server: Any) -> None:
    scale = {"scores_direction": "lower is better", "scores_high": 100.0}
    prompt = {
        **base("4.5,6.5,50,5.5"),
        "f": plain("RALI_Filter", images=["o", 0], scores=["n", 1], **FILTER),
        "l": plain("RALI_Filter", images=["o", 0], scores=["n", 1], **{**FILTER, "threshold": 6.5}, **scale),
        "g": plain("RALI_Gate", value=["n", 0], score=["n", 1], threshold=50.0, **GATE, **scale),
        "b": plain("RALI_BestOfN", images=["o", 0], scores=["n", 1], **BEST, **scale),
        "p": probe(["f", 6], ["l", 6], ["g", 1], ["g", 2], ["b", 2]),
    }
    run = server.run(prompt).check()
    assert run.seen("p") == {
        "value": ["1,2,3"], "value2": ["0,1,3"], "value3": [True], "value4": [50.0], "value5": ["0,3"],
    }  # fmt: skip
    shown = run.outputs["l"]["rali"][0]
    assert (shown["passed"], shown["range"], shown["lower_is_better"]) == (
        [True, True, False, True],
        [0.0, 100.0],
        True,
    )
    prompt["g"]["inputs"] |= {"threshold": 49.0, "mode": "raise"}
    assert "the score is too high, 50.000 > 49.000" in server.run(prompt).error


def test_scores_of_different_scales_are_not_averaged_as_they_are(server: Any) -> None:
    mixed = {**BEST, "scores_weight": 0.5}
    prompt = {**base("4,6,5,5"), "b": plain("RALI_BestOfN", images=["o", 0], scores=["n", 1], **mixed)}
    prompt["p"] = probe(["b", 2])
    assert "scores: 4 lies outside 0 to 1" in server.run(prompt).error
    prompt["b"]["inputs"] |= {"scores_low": 0.0, "scores_high": 10.0}
    assert server.run(prompt).check().seen("p")["value"][0].split(",")[0] == "1"
    weights = {f"weight_{letter}": 1.0 for letter in "abcd"}
    combine = {"scores_a": ["u", 1], "scores_b": ["n", 1], **weights, "combination": "mean"}
    prompt = {
        **base("4,6,5,5"),
        "c": plain("RALI_CombineScores", normalisation="none", **combine),
        "p": probe(["c", 1]),
    }
    assert "the lists have different scales (scores_a 0 to 0.3, scores_b 4 to 6)" in server.run(prompt).error
    prompt["c"]["inputs"] |= {"normalisation": "rank", "lower_is_better": "b"}
    assert server.run(prompt).check().seen("p")["value"] == ["3,2,0,1"]


def test_a_threshold_for_another_scorer_needs_its_scores(server: Any) -> None:
    for kind, more in (("RALI_Filter", FILTER), ("RALI_Gate", {**GATE, "threshold": 5.4, "value": ["n", 0]})):
        prompt = {**base("1"), "f": plain(kind, images=["o", 0], **more), "p": probe(["f", 0])}
        assert "threshold: RALI's scores lie between 0 and 1, got 5.4" in server.run(prompt).error


@pytest.mark.parametrize(("name", "key"), [("pickscore", "pickscore"), ("", "score")])
def test_another_scorers_scores_are_saved_under_their_own_key(server: Any, name: str, key: str) -> None:
    prompt = {
        **base("21.5,19.25", 2),
        "v": plain(
            "RALI_SaveImage", images=["o", 0], scores=["n", 1], format="png", quality=90, sidecar=True,
            filename_prefix=f"other{name}/{{rank}}", scores_name=name, scores_direction="lower is better",
            scores_low=0.0, scores_high=100.0,
        ),
    }  # fmt: skip
    outputs = server.run(prompt).check().outputs["v"]
    shown, panel = outputs["images"], outputs["rali"][0]
    assert (panel["range"], panel["lower_is_better"], panel["order"]) == ([0.0, 100.0], True, [1, 0])
    folder = server.folder / "output" / f"other{name}"
    assert [image["filename"][0] for image in shown] == ["2", "1"]
    with Image.open(folder / shown[0]["filename"]) as image:
        assert image.text[key] == "21.5000"
        assert "rali_score" not in image.text
    record = json.loads((folder / "rali_scores.jsonl").read_text().splitlines()[-1])
    assert (record[key], record["rank"], "aesthetic_score" in record) == (19.25, 1, False)


def test_a_name_that_cannot_be_a_key_is_refused(server: Any) -> None:
    settings = {"format": "png", "quality": 90, "sidecar": True, "filename_prefix": "x"}
    for name in ("prompt", "my score", "rali_score"):
        prompt = {
            **base("1", 1),
            "v": plain("RALI_SaveImage", images=["o", 0], scores=["n", 1], scores_name=name, **settings),
        }
        assert "scores_name: expected letters" in server.run(prompt).error
