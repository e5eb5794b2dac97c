"""Scores of videos over time: figures, the worst passage, the plot, and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core import RaliScorer
from rali_core.attributes import ImageAttributes
from rali_core.cli import main
from rali_core.content import NO_CONTENT
from rali_core.frames import FrameReader, FrameSampling
from rali_core.plot import LINE, WORST, draw_time_plot, draw_time_plots
from rali_core.training.distortions import distort
from rali_core.video import AGGREGATES, VideoScore, as_image_score, clock_text, score_video


def pan(photograph: Image.Image, count: int, damaged: range = range(0)) -> Iterator[np.ndarray]:
    """A camera's way over a photograph, some frames of it out of focus and noisy."""
    for number in range(count):
        view = photograph.crop((4 * number, 20, 4 * number + 288, 236))
        if number in damaged:
            view = distort(distort(view, "blur", 4), "noise", 3)
        yield np.asarray(view)


def scores_over_time(*scores: float, step: float = 0.5) -> VideoScore:
    values = np.array(scores, dtype=np.float32)
    return VideoScore(np.arange(len(values)) * step, values, (None,) * len(values), len(values) * step)


def test_the_damaged_second_of_a_clip_is_found(
    bundled_scorer: RaliScorer, photographs: dict[str, Image.Image], tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    fine, damaged = 50, range(32, 42)  # seconds 3.2 to 4.2
    path = write_clip(tmp_path / "clip.mp4", pan(photographs["rocket"], fine, damaged))
    calls: list[tuple[int, int | None]] = []
    result = score_video(
        bundled_scorer, path, coverage="center", progress=lambda done, total: calls.append((done, total))
    )
    assert result.times.tolist() == [0.5 * i for i in range(10)]
    assert calls == [(i, 10) for i in range(1, 11)]
    assert 3.2 <= result.times[result.worst] < 4.2
    worst = result.worst_passage()
    assert (worst.start, worst.end) == (3.5, 4.5)
    assert worst.score < result.worst_tenth + 0.1 < result.mean
    assert result.minimum < 0.6 * result.scores[result.best]
    assert not 3.2 <= result.times[result.best] < 4.2


def test_figures_are_what_their_names_say() -> None:
    video = scores_over_time(*([0.5] * 15), 0.1, 0.3, *([0.7] * 3))
    assert video.mean == pytest.approx(0.5, abs=1e-6)
    assert (video.worst_tenth, video.minimum) == (pytest.approx(0.2), pytest.approx(0.1))
    assert [video.aggregate(how) for how in AGGREGATES] == [video.mean, video.worst_tenth, video.minimum]
    assert (video.best, video.worst) == (17, 15)
    passage = video.worst_passage(1.0)
    assert (passage.start, passage.end, passage.score) == (7.5, 8.5, pytest.approx(0.2))
    assert video.worst_passage(0.1).score == pytest.approx(0.1)
    assert video.worst_passage(60).end == 10.0
    holed = scores_over_time(0.5, float("nan"), 0.1, 0.6)
    assert (holed.mean, holed.worst_passage(1.0).start) == (pytest.approx(0.4), 0.5)
    for call in (lambda: video.worst_passage(0), lambda: video.aggregate("best")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="more than 0 seconds|aggregate must be one of"):
            call()
    assert [clock_text(seconds) for seconds in (4.55, 123.5, 3723)] == ["4.5 s", "2:03.5", "1:02:03"]


def test_frames_without_content_count_and_are_reported(
    tiny_scorer: RaliScorer, photographs: dict[str, Image.Image], tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    frames = list(pan(photographs["rocket"], 20))
    frames[:5] = [np.zeros_like(frames[0])] * 5
    result = score_video(tiny_scorer, write_clip(tmp_path / "fade.mp4", frames))
    assert result.reasons == (NO_CONTENT, None, None, None)
    assert result.blank == 1
    assert result.minimum == pytest.approx(0.02)
    assert "no content: 1 of 4 frames" in result.describe()
    assert as_image_score(result, tiny_scorer, "mean").reason is None
    black = score_video(tiny_scorer, write_clip(tmp_path / "black.mp4", frames[:5]))
    assert as_image_score(black, tiny_scorer).reason == NO_CONTENT


def test_reasons_are_those_of_the_frames(
    probing_file: Path, photographs: dict[str, Image.Image], tmp_path: Path, write_clip: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = write_clip(tmp_path / "clip.mp4", pan(photographs["rocket"], 30, range(15, 25)))
    scorer = RaliScorer.from_pretrained(probing_file, device="cpu", attributes=True)
    result = score_video(scorer, path)
    frames = [frame.pixels for frame in FrameReader(path).frames(FrameSampling())]
    assert result.attributes == scorer.score(frames).attributes
    severities = [each.values for each in result.attributes if each is not None]
    told = as_image_score(result, scorer).attributes
    assert told is not None
    assert told.values == pytest.approx({key: np.mean([each[key] for each in severities]) for key in severities[0]})
    place = result.worst
    worst = result.attributes[place]
    assert worst is not None
    assert set(result.worst_words(0.5)) == set(worst.words)
    assert score_video(scorer, path, attributes=False).attributes == ()
    assert main(["score", str(path), "--model", str(probing_file), "--device", "cpu", "--reasons", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["attributes"] == pytest.approx(told.values, abs=1e-4)
    assert record["words"] == list(told.words)


def test_the_worst_passage_has_the_words_of_most_of_its_frames() -> None:
    video = scores_over_time(0.5, 0.1, 0.1, 0.1, 0.1, 0.5)
    words = [("noisy",), ("blurred", "noisy"), ("blurred",), ("blurred", "dark"), (), ("noisy",)]
    told = replace(video, attributes=tuple(ImageAttributes({}, each) for each in words))
    assert told.worst_words(2.0) == ("blurred",)
    assert told.worst_words(1.0) == ("blurred", "noisy")
    assert "worst passage 0.5 s to 2.5 s: 0.100 (blurred); " in told.describe(passage=2.0)
    assert "(blurred" not in video.describe(passage=2.0)


def test_memory_does_not_grow_with_the_length_and_a_run_can_be_stopped(
    tiny_scorer: RaliScorer, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    import gc

    random = np.random.default_rng(0)
    noise = (random.integers(0, 256, (48, 80, 3), dtype=np.uint8) for _ in range(120))
    path = write_clip(tmp_path / "long.mp4", noise)
    alive: list[int] = []

    def count(done: int, _total: int | None) -> bool:
        alive.append(sum(type(x) is torch.Tensor and tuple(x.shape) == (3, 48, 80) for x in gc.get_objects()))
        return done < 100

    result = score_video(tiny_scorer, path, sampling=FrameSampling(0), progress=count)
    assert (len(result), result.stopped) == (100, True)
    assert max(alive[20:]) <= tiny_scorer.batch_size + 2


def test_the_plot_shows_the_worst_passage_where_it_is() -> None:
    video = scores_over_time(0.8, 0.7, 0.8, 0.2, 0.1, 0.8, 0.75, 0.8)
    plot = draw_time_plot(video, title="clip.mp4", width=800, height=240)
    assert plot.size == (800, 240)
    pixels = np.asarray(plot).astype(int)
    marked = np.flatnonzero((np.abs(pixels - WORST).max(axis=2) < 4).any(axis=0))
    line = np.flatnonzero((np.abs(pixels - LINE).max(axis=2) < 30).any(axis=0))
    left, right = line.min(), line.max()  # 0 to 3.5 of 4 seconds
    second = (right - left) / 3.5
    assert marked.min() == pytest.approx(left + 1.5 * second, abs=4)
    assert marked.max() == pytest.approx(left + 2.5 * second, abs=4)
    assert draw_time_plots([("a", video), ("b", video)], height=200).size == (960, 400)
    draw_time_plot(scores_over_time(0.5))
    for options in ({"width": 100}, {"height": 10}):
        with pytest.raises(ValueError, match="expected at least"):
            draw_time_plot(video, **options)
    with pytest.raises(ValueError, match="no video to draw"):
        draw_time_plots([])


def test_the_command_scores_videos_among_images(
    tiny_file: Path, photographs: dict[str, Image.Image], tmp_path: Path, write_clip: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "mixed"
    folder.mkdir()
    photographs["cat"].save(folder / "cat.png")
    clip = write_clip(folder / "clip.mp4", pan(photographs["rocket"], 20))
    (folder / "broken.mp4").write_text("no video")
    base = ["score", str(folder), "--model", str(tiny_file)]
    assert main([*base]) == 0  # of images only
    captured = capsys.readouterr()
    assert "clip.mp4" not in captured.out
    assert "2 .mp4" in captured.err
    outputs = ["--csv", str(tmp_path / "s.csv"), "--sheet", str(tmp_path / "s.png"), "--plot", str(tmp_path / "p.png")]
    assert main([*base, "--videos", "--fps", "4", *outputs]) == 1
    captured = capsys.readouterr()
    assert f"{clip}: mean " in captured.out
    assert "worst passage" in captured.out
    assert "broken.mp4: damaged, or not a video" in captured.err
    rows = (tmp_path / "s.csv").read_text().splitlines()
    assert len(rows) == 4
    assert rows[0].endswith("duration,frames,mean,worst_tenth,minimum,best_time,worst_start,worst_end,problem")
    with Image.open(tmp_path / "p.png") as plot:
        assert plot.size == (960, 320)
    assert main(["score", str(clip), "--json", "--aggregate", "minimum", "--model", str(tiny_file)]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["score"] == record["minimum"] <= record["worst_tenth"] <= record["mean"]
    assert (record["duration"], record["frames"]) == (2.0, 4)
    assert main(["best", str(folder), "--videos", "-k", "2", "--copy-to", str(tmp_path / "k"), *base[2:]]) == 1
    assert {path.name for path in (tmp_path / "k").iterdir()} == {"cat.png", "clip.mp4"}


def test_animations_are_scored_whole_where_asked(
    tiny_file: Path, photographs: dict[str, Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.fromarray(array) for array in pan(photographs["rocket"], 4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    model = ["--json", "--model", str(tiny_file)]
    assert main(["score", str(tmp_path), *model]) == 0
    assert "frames" not in json.loads(capsys.readouterr().out)[0]
    assert main(["score", str(tmp_path), "--frames", "--max-frames", "3", *model]) == 0
    assert json.loads(capsys.readouterr().out)[0]["frames"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fps=-1"], "fps must be 0"),
        (["--max-frames", "0"], "max_frames must be at least 1"),
        (["--passage", "0"], "--passage must be more than 0"),
        (["--plot", "p.png"], "--plot draws videos over time, and there is none"),
        ([], r"no images in .* \(videos: 1, scored with --videos\)"),
    ],
)
def test_wrong_requests_are_reported_before_the_work(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    name = "a.png" if options else "a.mp4"
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    assert main(["score", str(tmp_path), *options]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_without_pyav_a_video_is_one_sentence_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_text("a video")
    assert main(["score", str(tmp_path / "a.mp4")]) == 1
    assert 'pip install "rali-score[video]"' in capsys.readouterr().err
