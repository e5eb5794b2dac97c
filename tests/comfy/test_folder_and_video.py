"""Folders, videos, saved and drawn scores in a real ComfyUI, through /prompt."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rali_core.training.distortions import distort

pytestmark = [pytest.mark.slow, pytest.mark.both_versions]

VIDEO = {
    "fps": 10.0, "sample_fps": 2.0, "max_frames": 600, "aggregation": "mean", "passage_seconds": 1.0,
    "coverage": "center",
}  # fmt: skip
FOLDER = {
    "folder": "ranked", "recursive": True, "include": "", "exclude": "", "k": 2, "order": "best first",
    "coverage": "center",
}  # fmt: skip


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def probe(source: str, count: int) -> dict[str, Any]:
    return node("Test_Probe", **{f"value{i if i > 1 else ''}": [source, i - 1] for i in range(1, count + 1)})


@pytest.fixture(scope="module")
def clip(server: Any, photographs: dict[str, Image.Image], write_clip: Callable[..., Path]) -> Path:
    """Five seconds at ten frames a second; from 3.2 to 4.2 out of focus and noisy."""
    frames = []
    for number in range(50):
        view = photographs["rocket"].crop((4 * number, 20, 4 * number + 256, 212))
        damaged = 32 <= number < 42
        frames.append(np.asarray(distort(distort(view, "blur", 4), "noise", 3) if damaged else view))
    return write_clip(server.folder / "input" / "clip.mp4", frames)


def test_a_video_has_its_damaged_second_found(server: Any, clip: Path) -> None:
    prompt = {
        "l": node("LoadVideo", file=clip.name),
        "s": node("RALI_ScoreVideo", video=["l", 0], **VIDEO),
        "p": probe("s", 8),
        "i": node("PreviewAny", source=["s", 8]),
    }
    run = server.run(prompt).check()
    seen = run.seen("p")
    assert (seen["value5"], seen["value6"]) == ([3.5], [4.5])
    assert seen["value8"] == [0.5 * i for i in range(10)]
    assert seen["value"] == [pytest.approx(np.mean(seen["value7"]), abs=1e-5)]
    assert int(np.argmin(seen["value7"])) in (7, 8)
    assert [image["shape"] for image in seen["value2"] + seen["value3"]] == [[1, 192, 256, 3]] * 2
    assert seen["value4"][0]["shape"] == [1, 320, 960, 3]
    assert run.scores("s") == pytest.approx(seen["value7"], abs=1e-5)
    assert "worst passage 3.5 s to 4.5 s" in run.outputs["i"]["text"][0]


def test_a_trimmed_video_and_one_made_of_images_are_scored(server: Any, clip: Path) -> None:
    trimmed = {
        "l": node("LoadVideo", file=clip.name),
        "t": node("Video Slice", video=["l", 0], start_time=3.0, duration=1.5, strict_duration=False),
        "s": node("RALI_ScoreVideo", video=["t", 0], **VIDEO),
        "p": probe("s", 8),
    }
    known = server.get("/object_info")
    if trimmed["t"]["class_type"] in known:
        seen = server.run(trimmed).check().seen("p")
        assert seen["value8"] == [0.0, 0.5, 1.0]
        assert seen["value5"] == [0.5]
    made = {
        "o": node("Test_Odd", kind="noise", count=20, seed=3),
        "c": node("CreateVideo", images=["o", 0], fps=10.0),
        "s": node("RALI_ScoreVideo", video=["c", 0], **VIDEO),
        "p": probe("s", 8),
        "s2": node("RALI_ScoreVideo", images=["o", 0], **VIDEO),
        "p2": probe("s2", 8),
    }
    run = server.run(made).check()
    seen, same = run.seen("p"), run.seen("p2")
    assert seen["value8"] == same["value8"] == [0.0, 0.5, 1.0, 1.5]
    assert seen["value7"] == pytest.approx(same["value7"], abs=1e-5)
    assert seen["value2"] == same["value2"]
    for wired, message in (
        ({}, "neither is connected"),
        ({"video": ["c", 0], "images": ["o", 0]}, "both are connected"),
    ):
        failed = server.run({**made, "s": node("RALI_ScoreVideo", **wired, **VIDEO)})
        assert f"connect either video or images: {message}" in failed.error


def test_an_animation_is_a_video_and_a_folders_image(server: Any, photographs: dict[str, Image.Image]) -> None:
    """A GIF of two seconds whose frames from 0.8 s to 1.2 s are damaged."""
    root = server.folder / "input" / "animated"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    frames = [photographs["rocket"].crop((8 * number, 20, 8 * number + 256, 212)) for number in range(10)]
    frames[4:6] = [distort(distort(frame, "blur", 4), "noise", 3) for frame in frames[4:6]]
    frames[0].save(root / "walk.gif", save_all=True, append_images=frames[1:], duration=200)
    every = {**VIDEO, "sample_fps": 0.0, "passage_seconds": 0.4}
    prompt = {
        "l": node("LoadVideo", file="animated/walk.gif"),
        "s": node("RALI_ScoreVideo", video=["l", 0], **every),
        "p": probe("s", 8),
        "f": node("RALI_ScoreFolder", **{**FOLDER, "folder": "animated"}),
        "q": probe("f", 3),
    }
    run = server.run(prompt).check()
    seen = run.seen("p")
    assert seen["value8"] == pytest.approx([0.2 * place for place in range(10)])
    assert (seen["value5"], seen["value6"]) == ([pytest.approx(0.8)], [pytest.approx(1.2)])
    assert int(np.argmin(seen["value7"])) in (4, 5)
    assert run.seen("q")["value"][0]["shape"][-3:] == [192, 256, 3]
    assert run.seen("q")["value3"] == pytest.approx(seen["value7"][:1], abs=1e-4)


def test_a_folder_is_ranked_and_its_best_saved_read_and_drawn(server: Any, photographs: dict[str, Image.Image]) -> None:
    root = server.folder / "input" / "ranked"
    shutil.rmtree(root, ignore_errors=True)
    (root / "inner").mkdir(parents=True)
    photographs["cat"].resize((300, 200)).save(root / "inner" / "good2.png")
    for level in (2, 5):
        distort(photographs["cat"].resize((300, 200)), "blur", level).save(root / f"blurred{level}.jpg")
    (root / "broken10.png").write_bytes(b"broken")
    prompt = {
        "f": node("RALI_ScoreFolder", **FOLDER),
        "p": probe("f", 7),
        "w": node(
            "RALI_SaveImage", images=["f", 0], scores=["f", 2], filename_prefix="ranked/{rank}", format="webp",
            quality=100, sidecar=True,
        ),
        "r": node("RALI_LoadScore", file=["w", 1], score_if_missing=False),
        "q": probe("r", 4),
        "d": node("RALI_DrawScore", images=["f", 0], scores=["f", 2], labels=["f", 1], position="below", height=24),
        "c": node(
            "RALI_ContactSheet", images=["f", 0], scores=["f", 2], labels=["f", 1], columns=2, cell=128, ranked=False,
            coverage="center",
        ),
        "e": probe("d", 1),
        "g": probe("c", 1),
    }  # fmt: skip
    run = server.run(prompt).check()
    seen, saved = run.seen("p"), run.seen("q")
    table = list(csv.DictReader(seen["value5"][0].splitlines()))
    names = [Path(row["file"]).name for row in table]
    assert (names[0], names[3], sorted(names[1:3])) == ("good2.png", "broken10.png", ["blurred2.jpg", "blurred5.jpg"])
    assert [Path(name).name for name in seen["value2"]] == names[:2]
    assert seen["value3"] == sorted(seen["value3"], reverse=True)
    assert [image["shape"][-3:] for image in seen["value"]] == [[200, 300, 3]] * 2
    assert "not an image" in table[-1]["reason"]
    assert seen["value7"][:2] == seen["value3"]
    assert saved["value"] == pytest.approx(seen["value3"], abs=6e-5)
    assert saved["value3"] == ["metadata"] * 2
    assert {tuple(image["shape"]) for image in run.seen("e")["value"]} == {(2, 224, 300, 3)}
    assert run.seen("g")["value"][0]["shape"][2] == 2 * 128 + 36
    assert "f" not in server.run(prompt).check().executed
    (root / "broken10.png").unlink()
    assert "f" in server.run(prompt).check().executed


def test_missing_inputs_are_reported_before_the_work(server: Any) -> None:
    for folder in ("input", "output"):
        Image.effect_noise((60, 40), 60).convert("RGB").save(server.folder / folder / "plain.png")
    for prompt, message in (
        (node("RALI_ScoreFolder", **{**FOLDER, "folder": "nowhere"}), "there is no such folder"),
        (node("RALI_ScoreFolder", **{**FOLDER, "include": "*.xyz", "folder": ""}), "include and exclude leave none"),
        (node("RALI_LoadScore", file="nothing.png", score_if_missing=False), "there is no such file"),
        (node("RALI_LoadScore", file="plain.png", score_if_missing=False), "no score was saved with"),
    ):
        assert message in server.run({"n": prompt}).error
    now = {"n": node("RALI_LoadScore", file="plain.png", score_if_missing=True), "p": probe("n", 4)}
    assert server.run(now).check().seen("p")["value3"] == ["scored now"]
