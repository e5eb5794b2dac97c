"""Data sets with videos and animations among their images."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rali_core import RaliScorer
from rali_core.cli import main
from rali_core.dataset import DatasetResult
from rali_core.dataset.summary import SHEET
from rali_core.frames import FrameSampling
from rali_core.video import as_image_score, score_video

from .conftest import make_image, read_rows


@pytest.fixture
def clips(tmp_path: Path, write_clip: Callable[..., Path]) -> Path:
    """Two videos, one that is cut, an animation, sound under a video's name, and three images."""
    root = tmp_path / "clips"
    root.mkdir()
    random = np.random.default_rng(0)

    def frames(count: int) -> list[np.ndarray]:
        return [random.integers(0, 256, (48, 64, 3), dtype=np.uint8) // (1 + i % 5) for i in range(count)]

    write_clip(root / "long.mp4", frames(60))
    write_clip(root / "short.mp4", frames(3))
    whole = write_clip(root / "cut.mkv", frames(60), g="5").read_bytes()
    (root / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    images = [Image.fromarray(frame) for frame in frames(6)]
    images[0].save(root / "moving.gif", save_all=True, append_images=images[1:], duration=300)
    (root / "sound.mp4").write_bytes(b"no video")
    for number in range(3):
        make_image(number).save(root / f"{number}.png")
    return root


def test_videos_are_rows_among_those_of_images(
    score: Callable[..., DatasetResult], clips: Path, tiny_scorer: RaliScorer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"videos": True, "animations": True, "fps": 5, "max_frames": 22, "workers": 2}
    assert score(clips, **options).errors_now == 1
    rows = read_rows(tmp_path / "out")
    assert set(rows) == {path.name for path in clips.iterdir()}
    for name in ("long.mp4", "short.mp4", "cut.mkv", "moving.gif"):
        alone = score_video(tiny_scorer, clips / name, sampling=FrameSampling(5, 22))
        row, worst = rows[name], alone.worst_passage()
        assert row["score"] == row["mean"] == pytest.approx(alone.mean, abs=1e-5)
        assert (row["worst_tenth"], row["minimum"]) == pytest.approx((alone.worst_tenth, alone.minimum), abs=1e-5)
        assert (row["frames"], row["duration"]) == (len(alone), pytest.approx(alone.duration))
        assert (row["worst_start"], row["worst_end"]) == pytest.approx((worst.start, worst.end))
        assert row["best_time"] == pytest.approx(alone.times[alone.best])
        assert (row["width"], row["height"], row["problem"]) == (64, 48, alone.problem)
    assert rows["long.mp4"]["frames"] == 22  # several parts
    assert "of 6.0 seconds could be read" in rows["cut.mkv"]["problem"]
    assert "not a video that FFmpeg can read" in rows["sound.mp4"]["error"]
    assert rows["0.png"]["frames"] is None
    assert rows["0.png"]["score"] > 0
    again = score(clips, **options)
    assert (again.scored_now, again.added) == (0, 0)
    with pytest.raises(ValueError, match="--max-frames.*max_frames 22.*max_frames 600"):
        score(clips, **{**options, "max_frames": 600})


def test_without_asking_images_alone_are_rows(score: Callable[..., DatasetResult], clips: Path, tmp_path: Path) -> None:
    score(clips)
    rows = read_rows(tmp_path / "out")
    assert set(rows) == {"0.png", "1.png", "2.png", "moving.gif"}
    assert "frames" not in rows["0.png"]
    for path in clips.glob("*.[pg]*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="there are videos, which are scored with --videos"):
        score(clips, "other")


def test_videos_in_tars_and_the_command(
    clips: Path, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in ("long.mp4", "0.png"):
            data = (clips / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    command = ["dataset", "score", str(tmp_path / "set.tar"), str(tmp_path / "out"), "--model", str(tiny_file)]
    assert main([*command, "--videos", "--aggregate", "worst-tenth", "--workers", "1"]) == 0
    capsys.readouterr()
    row = read_rows(tmp_path / "out")["set.tar/long.mp4"]
    assert row["score"] == row["worst_tenth"] < row["mean"]
    assert row["frames"] == 12
    assert (tmp_path / "out" / SHEET).stat().st_size > 1000


def test_the_reasons_of_a_video_are_the_mean_of_its_frames(
    score: Callable[..., DatasetResult], clips: Path, probing_file: Path, tmp_path: Path
) -> None:
    score(clips, model=probing_file, videos=True, reasons=True)
    rows = read_rows(tmp_path / "out")
    scorer = RaliScorer.from_pretrained(probing_file, device="cpu", attributes=True)
    for name in ("long.mp4", "short.mp4"):
        told = as_image_score(score_video(scorer, clips / name), scorer).attributes
        assert told is not None
        assert {key: rows[name][key] for key in told.values} == pytest.approx(told.values, abs=1e-5)
        assert rows[name]["words"] == ", ".join(told.words)
