"""Frames of videos and animations, as a viewer sees them at each point in time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rali_core.frames import FrameReader, FrameSampling, VideoError, is_animation, sample_batch
from rali_core.images import ReadLimits


def grey(level: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), level, dtype=np.uint8)


def levels(count: int) -> Iterator[np.ndarray]:
    """Frame i is grey of level 10 i."""
    return (grey(10 * number) for number in range(count))


def seen(reader: FrameReader, sampling: FrameSampling) -> list[tuple[float, int]]:
    """Point in time and level of each frame, in tens."""
    return [
        (round(time, 3), round(float(frame.pixels.float().mean()) / 10))
        for frame in reader.frames(sampling)
        for time in frame.times
    ]


def test_frames_are_those_shown_at_the_points_in_time(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    reader = FrameReader(write_clip(tmp_path / "a.mp4", levels(20)))
    assert seen(reader, FrameSampling(4)) == [(0.25 * i, int(2.5 * i)) for i in range(8)]
    assert (reader.duration, reader.end, reader.expected, reader.problem) == (2.0, pytest.approx(2.0), 8, None)
    assert seen(reader, FrameSampling(0)) == [(round(0.1 * i, 3), i) for i in range(20)]
    assert seen(reader, FrameSampling(50)) == [(round(0.02 * i, 3), i // 5) for i in range(100)]
    for fps in (0, 50):  # spread over all of it
        assert seen(reader, FrameSampling(fps, max_frames=5)) == [(round(0.4 * i, 3), 4 * i) for i in range(5)]
    assert [frame.times[0] for frame in reader.frames(FrameSampling(4), skip=6)] == [1.5, 1.75]
    for seconds, level in ((0.0, 0), (0.35, 3), (1.99, 19), (99.0, 19)):
        assert float(reader.at(seconds).float().mean()) == pytest.approx(10 * level, abs=3)
    window = FrameReader(tmp_path / "a.mp4", start=0.5, length=1.0)
    assert seen(window, FrameSampling(4)) == [(0.0, 5), (0.25, 7), (0.5, 10), (0.75, 12)]
    assert float(window.at(0.5).float().mean()) == pytest.approx(100, abs=3)


def test_a_frame_counts_as_long_as_it_is_shown(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    path = write_clip(tmp_path / "variable.mkv", levels(4), times=[0, 100, 2500, 2600])
    frames = list(FrameReader(path).frames(FrameSampling(2)))
    assert [frame.times for frame in frames] == [(0.0,), (0.5, 1.0, 1.5, 2.0), (2.5,)]


def test_eight_hours_are_sampled_from_start_to_end(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    minutes = write_clip(
        tmp_path / "long.mkv", (grey(minute // 2) for minute in range(480)),
        times=[60_000 * minute for minute in range(480)], g="10",
    )  # fmt: skip
    reader = FrameReader(minutes)
    found = [(frame.times[0], float(frame.pixels.float().mean())) for frame in reader.frames(FrameSampling(2, 24))]
    assert [time for time, _ in found] == pytest.approx([reader.duration / 24 * i for i in range(24)])
    assert [level for _, level in found] == pytest.approx([time // 60 // 2 for time, _ in found], abs=2.5)
    assert reader.duration > 8 * 3600 - 120


def test_rotation_alpha_and_one_frame(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    left = grey(0)
    left[:, :32] = 255
    path = write_clip(tmp_path / "turned.mp4", [left])
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # version 0: type, flags, two times, id, reserved, length, reserved, layer ...
    data[matrix : matrix + 36] = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30], ">i4").tobytes()
    (frame,) = FrameReader(bytes(data), name="turned.mp4").frames(FrameSampling())
    assert frame.pixels.shape == (3, 64, 48)
    assert frame.pixels[0, :30].min() > 240 > 15 > frame.pixels[0, 34:].max()
    (clear,) = FrameReader(
        write_clip(tmp_path / "alpha.mov", [grey(0)], codec="png", pixel_format="rgba")
    ).frames(FrameSampling())  # fmt: skip
    assert clear.pixels.shape == (3, 48, 64)


@pytest.mark.parametrize("hlg", [False, True])
def test_hdr_is_what_its_sdr_version_looks_like(tmp_path: Path, write_clip: Callable[..., Path], hlg: bool) -> None:
    ramp = np.repeat(np.linspace(0, 255, 96).round()[None, :, None], 48, axis=0).repeat(3, axis=2)
    light = np.where(ramp / 255 <= 0.04045, ramp / 255 / 12.92, ((ramp / 255 + 0.055) / 1.055) ** 2.4)
    if hlg:  # 203 of 1,000 cd/m2, the display's gamma of 1.2 undone
        scene = (light * 0.203) ** (1 / 1.2)
        code = np.where(
            scene <= 1 / 12,
            np.sqrt(3 * scene),
            0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
        )
    else:
        power = (light * 203 / 10_000) ** 0.1593017578125
        code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    path = write_clip(
        tmp_path / "hdr.mkv", [(code * 65535).round().astype(np.uint16)], codec="ffv1", pixel_format="yuv420p10le",
        settings={"color_trc": 18 if hlg else 16, "color_primaries": 9, "colorspace": 9},
    )  # fmt: skip
    (frame,) = FrameReader(path).frames(FrameSampling())
    got = frame.pixels.permute(1, 2, 0).numpy().astype(float)
    below = ramp < 220  # above the knee
    assert np.abs(got - ramp)[below].max() < 4
    assert (np.diff(got[20, :, 0]) >= 0).all()
    assert got.max() < 245


@pytest.mark.parametrize("form", ["gif", "webp", "png"])
def test_animations_keep_their_own_time(tmp_path: Path, form: str) -> None:
    images = [Image.fromarray(array) for array in levels(4)]
    path = tmp_path / f"a.{form}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 600, 200, 100], lossless=True)
    reader = FrameReader(path)
    assert seen(reader, FrameSampling(4)) == [(0.0, 0), (0.25, 1), (0.5, 1), (0.75, 2)]
    assert (reader.end, reader.problem) == (1.0, None)
    assert seen(reader, FrameSampling(0)) == [(0.0, 0), (0.1, 1), (0.7, 2), (0.9, 3)]
    assert seen(reader, FrameSampling(0, max_frames=2)) == [(0.0, 0), (0.5, 1)]
    assert is_animation(path)
    images[0].save(tmp_path / f"still.{form}")
    assert not is_animation(tmp_path / f"still.{form}")
    assert seen(FrameReader(tmp_path / f"still.{form}"), FrameSampling()) == [(0.0, 0)]


def test_a_cut_file_is_scored_as_far_as_it_goes(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    random = np.random.default_rng(0)
    noise = (random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(60))
    whole = write_clip(tmp_path / "whole.mkv", noise, g="5").read_bytes()
    reader = FrameReader(whole[: len(whole) // 2], name="half.mkv")
    found = list(reader.frames(FrameSampling(0)))
    assert 20 < len(found) < 40
    assert reader.problem is not None
    assert "of 6.0 seconds could be read" in reader.problem
    images = [Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(4)]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=100)
    damaged = FrameReader(buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3], name="a.gif")
    assert 0 < len(list(damaged.frames(FrameSampling(0)))) < 4


def test_a_file_that_is_not_a_video_is_a_one_sentence_error(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    head = write_clip(tmp_path / "a.mp4", levels(3)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(head[: len(head) // 2])  # its index comes last
    for name, message in (
        ("sound", "it holds no video, only sound"), ("empty", "the file is empty"), ("text", "not a video that FFmpeg can"),
        ("cut", "damaged"),
    ):  # fmt: skip
        with pytest.raises(VideoError, match=message) as raised:
            list(FrameReader(tmp_path / f"{name}.mp4").frames(FrameSampling()))
        assert f"{name}.mp4" in str(raised.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        FrameReader(tmp_path / "nothing.mp4")
    with pytest.raises(VideoError, match="more than the limit of 100"):
        list(FrameReader(tmp_path / "a.mp4", limits=ReadLimits(max_pixels=100)).frames(FrameSampling()))
    for options in ({"fps": -1}, {"fps": float("nan")}, {"max_frames": 0}):
        with pytest.raises(ValueError, match="must be"):
            FrameSampling(**options)  # type: ignore[arg-type]


def test_a_batch_is_sampled_as_a_file_is() -> None:
    assert sample_batch(20, 10.0, FrameSampling(4)) == [(int(2.5 * i), (0.25 * i,)) for i in range(8)]
    assert sample_batch(2, 1.0, FrameSampling(2)) == [(0, (0.0, 0.5)), (1, (1.0, 1.5))]
    with pytest.raises(ValueError, match="more than 0 frames per second"):
        sample_batch(2, 0.0, FrameSampling())


def test_a_window_of_an_animation_is_that_part_of_it(tmp_path: Path) -> None:
    images = [Image.fromarray(array) for array in levels(6)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=200)
    window = FrameReader(tmp_path / "a.gif", start=0.5, length=0.5)
    assert seen(window, FrameSampling(0)) == [(0.0, 2), (0.1, 3), (0.3, 4)]
    assert (window.duration, window.end) == (0.5, 0.5)
    assert seen(window, FrameSampling(0, max_frames=2)) == [(0.0, 2), (0.25, 3)]
    assert float(window.at(0.35).float().mean()) == pytest.approx(40, abs=3)
    rest = FrameReader(tmp_path / "a.gif", start=0.9)
    assert seen(rest, FrameSampling(5)) == [(0.0, 4), (0.2, 5)]


def test_streams_without_a_container_and_late_starts_are_read(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    import av

    with av.open(str(write_clip(tmp_path / "a.mp4", levels(10)))) as container, open(tmp_path / "a.h264", "wb") as raw:
        annex_b = av.BitStreamFilterContext("h264_mp4toannexb", container.streams.video[0])
        for packet in container.demux(video=0):
            for part in annex_b.filter(packet):
                raw.write(bytes(part))
    found = [level for _, level in seen(FrameReader(tmp_path / "a.h264"), FrameSampling(0))]
    assert found == list(range(10))
    late = FrameReader(write_clip(tmp_path / "late.mkv", levels(4), times=[5000, 5100, 5200, 5300]))
    assert seen(late, FrameSampling(0)) == [(0.0, 0), (0.1, 1), (0.2, 2), (0.3, 3)]
    assert (late.duration, late.problem) == (pytest.approx(0.4, abs=0.11), None)


def test_one_frame_of_a_long_video_is_its_first(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    reader = FrameReader(write_clip(tmp_path / "a.mp4", levels(10)))
    for sampling in (FrameSampling(1e-9), FrameSampling(0, max_frames=1)):
        assert seen(reader, sampling) == [(0.0, 0)]


def test_a_video_without_frames_and_one_that_names_others_are_errors(
    tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    data = write_clip(tmp_path / "a.mkv", levels(3)).read_bytes()
    header = data[: data.index(b"\x1f\x43\xb6\x75")]  # up to the first cluster
    (tmp_path / "other.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'a.mkv'}\n")
    for source, name in ((header, "header.mkv"), (tmp_path / "other.mp4", None)):
        with pytest.raises(VideoError) as raised:
            list(FrameReader(source, name=name).frames(FrameSampling()))
        assert "permission" not in str(raised.value)
