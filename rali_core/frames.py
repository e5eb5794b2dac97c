"""Frames of videos (PyAV, the extra `video`) and of animations (GIF, WebP, APNG, AVIF; Pillow), one at a time.

A video is sampled in time: at each multiple of an interval, the frame that is shown then. So with a variable
frame rate each frame counts for as long as a viewer sees it; a frame that is shown at several of these times is
yielded once. At most one undecoded frame is held, whatever the length; between distant times the file is seeked.

As for images, the pixels are those that a viewer sees: the rotation in the file is applied, transparency is composited
on white, and HDR (PQ and HLG) is tone-mapped to SDR: reference white (203 cd/m2) becomes white, and brighter values are
compressed into the upper quarter. Interlacing and non-square pixels are not changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .files import IMAGE_SUFFIXES, is_video_name
from .images import (
    DEFAULT_LIMITS,
    NOT_AN_IMAGE,
    ImageError,
    ReadLimits,
    decode_pil,
    open_image,
    read_pixels,
    read_stream,
    to_float,
)

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_FPS = 2.0
DEFAULT_MAX_FRAMES = 600
ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
"""Pillow's names of the formats whose frames are animations; a TIFF's are pages."""

SHORTEST = 0.01
"""Seconds; browsers show an animation's frame with a shorter duration for `UNTIMED`."""

UNTIMED = 0.1
SEEK_SECONDS = 10.0
"""Sampling times further apart than this, in seconds, are seeked; nearer ones are reached by decoding."""

CUT_SECONDS = 1.0
"""A video that ends this much earlier than it states is damaged."""

MAX_THREADS = 4
EPSILON = 1e-6
HD_HEIGHT = 720
"""From this height on a video without a named colour matrix is taken as BT.709, as in players."""

UNSPECIFIED, PQ, HLG = 2, 16, 18
"""Values of ITU-T H.273."""

REFERENCE_WHITE = 203.0
"""cd/m2 of diffuse white in HDR, ITU-R BT.2408."""

HLG_PEAK = 1000.0
KNEE = 0.75
"""Fraction of white up to which tone mapping changes nothing."""

BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
BT2020_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]


class VideoError(ImageError):
    """A video cannot be read or holds no frames; the message says which and why."""


@dataclass(frozen=True)
class FrameSampling:
    """Which frames are sampled.

    Attributes:
        fps: Frames per second of playing time; 0 means every frame.
        max_frames: At most so many sampling times, spread evenly if the video is longer.
    """

    fps: float = DEFAULT_FPS
    max_frames: int = DEFAULT_MAX_FRAMES

    def __post_init__(self) -> None:
        if not 0 <= self.fps < float("inf"):
            raise ValueError(f"fps must be 0 (every frame) or more, got {self.fps}")
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")

    def interval(self, duration: float, step: float) -> float:
        """Seconds from one sampling time to the next; 0: every frame.

        Args:
            duration: Duration of the video in seconds.
            step: Seconds from one of its frames to the next.
        """
        capped = duration / self.max_frames
        return capped if capped > (1.0 / self.fps if self.fps else step) else 1.0 / self.fps if self.fps else 0.0


class Frame(NamedTuple):
    """A frame that is shown at one or several sampling times.

    Attributes:
        times: The sampling times, in seconds from the start, ascending.
        pixels: (3, H, W), uint8, or float32 in [0, 1] if an animation has more than 8 bits.
    """

    times: tuple[float, ...]
    pixels: Tensor


class FrameReader:
    """A video, an animation or (one frame) a still image; the file is open only while frames are read.

    Args:
        source: A path, the bytes of a file, or an open binary file.
        name: Its name in errors; the ending distinguishes videos from images if the source is not a path.
        limits: Limits for a frame.
        start: Seconds of a video that are left out; times count from there.
        length: Seconds that are sampled; by default all.

    Attributes:
        duration: Its stated duration in seconds; 0 for a still image. Known from the first frame on, like `expected`.
        expected: Approximate number of sampling times; None if every frame is read.
        end: Time of the last frame's end in seconds; known after the last one.
        problem: Why frames are missing; None if none are.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str | None = None,
        limits: ReadLimits = DEFAULT_LIMITS,
        start: float = 0.0,
        length: float | None = None,
    ) -> None:
        if isinstance(source, str | os.PathLike):
            self.name = name or str(source)
            if not os.path.exists(source):
                raise FileNotFoundError(f"no such file: {self.name}")
            self.source: Path | bytes = Path(source)
        else:
            self.name = name or str(getattr(source, "name", None) or "video data")
            self.source = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else read_stream(source)
        self.limits, self.start, self.length = limits, start, length
        self.duration = self.end = 0.0
        self.expected: int | None = None
        self.problem: str | None = None

    def frames(self, sampling: FrameSampling, *, skip: int = 0) -> Generator[Frame, None, None]:
        """The frames at the sampling times.

        Args:
            sampling: Which frames.
            skip: How many sampling times to skip.

        Raises:
            VideoError: It is no video, is damaged, has no frames or only sound.
            ImageError: It is an animation that is damaged.
            ModuleNotFoundError: It is a video, and PyAV is not installed.
        """
        left = sampling.max_frames - skip

        def begin(duration: float, step: float) -> _Clock:
            self.duration = duration
            interval = sampling.interval(duration, step)
            self.expected = max(1, min(sampling.max_frames, ceil(duration / interval))) if interval else None
            return _Clock(interval, skip)

        with closing(self._read(begin)) as found:
            for frame in found:
                times = frame.times[:left]
                left -= len(times)
                yield frame._replace(times=times)
                if not left:
                    return

    def at(self, seconds: float) -> Tensor:
        """The frame that is shown at a time, or the last one: (3, H, W), as `Frame.pixels`.

        Raises:
            VideoError, ImageError, ModuleNotFoundError: As for `frames`.
        """
        for point in (seconds, None):
            point = max(self.end - 2 * EPSILON, 0.0) if point is None else point

            def begin(duration: float, step: float, point: float = point) -> _Clock:  # noqa: ARG001
                return _Clock(0.0, start=point)

            with closing(self._read(begin)) as found:
                for frame in found:
                    return frame.pixels
        raise VideoError(f"{self.name}: no frame at {seconds:.2f} seconds could be decoded")

    def _read(self, begin: Begin) -> Generator[Frame, None, None]:
        self.end, self.problem = 0.0, None
        if is_video_name(self.name) or not _is_image(self):
            return _read_video(self, begin)
        return _read_animation(self, begin)


Begin = Callable[[float, float], "_Clock"]
"""Function from a duration and the seconds between frames to the sampling times."""


def sample_batch(count: int, rate: float, sampling: FrameSampling) -> list[tuple[int, tuple[float, ...]]]:
    """Which frames of a batch are sampled, and the sampling times of each.

    Args:
        count: Number of frames.
        rate: Frames per second.
        sampling: Which frames to sample.

    Returns:
        0-based indexes with their sampling times, in seconds.

    Raises:
        ValueError: `rate` is not more than 0.
    """
    if not rate > 0:
        raise ValueError(f"expected more than 0 frames per second, got {rate}")
    clock = _Clock(sampling.interval(count / rate, 1.0 / rate))
    taken = [(index, clock.take(index / rate, (index + 1) / rate)) for index in range(count)]
    return [(index, times) for index, times in taken if times]


def is_animation(source: str | os.PathLike[str] | bytes) -> bool:
    """Whether an image file is an animation; False if it cannot be read."""
    try:
        with open_image(source) as image:
            return image.format in ANIMATED and getattr(image, "n_frames", 1) > 1
    except (OSError, ImageError):
        return False


def check_pyav() -> None:
    """Check before the work that videos can be read here.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            f'reading videos needs PyAV ({error}): pip install "rali-score[video]", or pip install av'
        ) from None


def _is_image(reader: FrameReader) -> bool:
    if os.path.splitext(reader.name)[1].lower() in IMAGE_SUFFIXES:
        return True
    try:
        with open_image(reader.source, name=reader.name, limits=reader.limits):
            return True
    except ImageError as error:
        return not str(error).startswith(NOT_AN_IMAGE)


def _read_animation(reader: FrameReader, begin: Begin) -> Generator[Frame, None, None]:
    with open_image(reader.source, name=reader.name, limits=reader.limits) as image:
        count = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        step = _frame_seconds(image)
        until = reader.length or float("inf")
        free, clock = begin(0.0, step), begin(min(step * count, until) if count > 1 else 0.0, step)
        if clock.interval != free.interval:  # it depends on the length, which is known only after all frames
            whole = sum(_walk(image, count, reader, lambda: _frame_seconds(image))) - reader.start
            clock = begin(min(max(whole, 0.0), until), step)
        end = -reader.start if count > 1 else 0.0
        for seconds, pixels in _walk(image, count, reader, lambda: (_frame_seconds(image), decode_pil(image))):
            since, end = end, round(end + seconds, 6)
            reader.end = max(min(end, until), 0.0)
            if end > EPSILON and (times := clock.take(max(since, 0.0), reader.end)):
                yield Frame(times, pixels)
            if end >= until - EPSILON:
                break
    if count == 1:
        reader.end = 0.0
    reader.duration = reader.end


def _walk(image: Image.Image, count: int, reader: FrameReader, make: Callable[[], Any]) -> Iterator[Any]:
    for index in range(count):
        try:
            image.seek(index)
            made = make()
        except Exception as error:  # Pillow's decoders raise any kind of exception for a damaged file
            if index == 0:
                raise
            reader.problem = f"damaged from frame {index} of {count} on: {error}"
            return
        yield made


def _frame_seconds(image: Image.Image) -> float:
    image.load()  # WebP states it only then
    seconds = float(image.info.get("duration", 0) or 0) / 1000.0
    return seconds if seconds > SHORTEST else UNTIMED


class _Clock:
    """The sampling times that are still to come.

    Args:
        interval: Seconds between them; 0: at the start of each frame.
        skip: How many of them are left out; without an interval, frames.
        start: Without an interval: frames that end before are left out.
    """

    def __init__(self, interval: float, skip: int = 0, start: float = 0.0) -> None:
        self.interval, self._number, self._start = interval, skip, start

    @property
    def next(self) -> float:
        """Time of the next one, as far as it is known."""
        return self._number * self.interval if self.interval else self._start

    def take(self, since: float, until: float) -> tuple[float, ...]:
        """The sampling times of a frame that is shown from `since` until `until`; earlier ones count for it too."""
        if not self.interval:
            if until <= self._start + EPSILON:
                return ()
            self._number -= 1
            return (since,) if self._number < 0 else ()
        last = max(self._number, ceil((until - EPSILON) / self.interval))  # not included: it belongs to the next frame
        times = tuple(number * self.interval for number in range(self._number, last))
        self._number = last
        return times


def _read_video(reader: FrameReader, begin: Begin) -> Generator[Frame, None, None]:
    check_pyav()
    import av

    source = reader.source
    try:
        with closing(_Video(_open(source, av), reader, av)) as video:
            found = False
            for frame in video.read(begin):
                found = True
                yield frame
            if not found and not reader.end:
                raise VideoError(f"no frame could be decoded{f': {reader.problem}' if reader.problem else ''}")
    except VideoError as error:
        raise VideoError(f"{reader.name}: {error}") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        why = getattr(error, "strerror", None) or error
        reason = f"damaged, or not a video that FFmpeg can read ({why})" if size else "the file is empty"
        # FFmpeg gives the same error for files that name others, and for what cannot be sought.
        if isinstance(error, PermissionError) and not isinstance(source, bytes) and not os.access(source, os.R_OK):
            reason = "no permission to read it"
        raise VideoError(f"{reader.name}: {reason}") from error


def _open(source: Path | bytes, av: Any) -> Any:
    """PyAV's open container. A file may name others, which are read only if they are files."""
    return av.open(
        BytesIO(source) if isinstance(source, bytes) else str(source),
        options={"protocol_whitelist": "file,crypto,data"},
        metadata_errors="replace",
    )


def _is_cover(stream: Any) -> bool:
    """Whether it is the cover image of a sound file."""
    disposition = getattr(stream, "disposition", None)
    return "attached_pic" in str(disposition).lower() if disposition is not None else False


class _Video:
    """The video stream of an open container.

    Args:
        container: PyAV's open container.
        reader: Receives the duration, the end and problems.
        av: PyAV.

    Raises:
        VideoError: There is no stream that can be decoded.
    """

    def __init__(self, container: Any, reader: FrameReader, av: Any) -> None:
        self._container, self._reader, self._av = container, reader, av
        try:
            self._choose()
        except BaseException:
            container.close()
            raise
        self._prepare()
        self._base = float(self._stream.time_base) if self._stream.time_base else 0.0
        self._zero = (self._stream.start_time or 0) * self._base + reader.start
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._step = 1.0 / float(rate) if rate else UNTIMED
        self._time = -self._step
        self._faulty = 0
        self._seekable = True
        # If only the whole file states a duration, that may be the sound's.
        self._knows_end = bool(self._stream.duration) or not container.streams.audio

    def close(self) -> None:
        """Close the container."""
        self._container.close()

    def _choose(self) -> None:
        streams = [stream for stream in self._container.streams.video if not _is_cover(stream)]
        if not streams:
            sound = self._container.streams.audio
            raise VideoError("it holds no video, only sound" if sound else "it holds no video, or is damaged")
        self._stream = streams[0]
        context, most = self._stream.codec_context, self._reader.limits.max_pixels
        if context is None:
            raise VideoError("FFmpeg has no decoder for it here")
        if context.width * context.height > most:
            raise VideoError(f"{context.width} x {context.height} pixels are more than the limit of {most}")

    def _prepare(self) -> None:
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = min(torch.get_num_threads(), MAX_THREADS)

    def _said_duration(self) -> float:
        """Duration stated in the file, else from all its packets without decoding them."""
        if self._stream.duration and self._base:
            return float(self._stream.duration) * self._base
        if self._container.duration:
            said = float(self._container.duration) / float(self._av.time_base)
            # Matroska states the end, which counts from 0.
            ends = "matroska" in self._container.format.name
            return said - max((self._stream.start_time or 0) * self._base, 0.0) if ends else said
        packets, last = 0, 0.0
        with suppress(self._av.error.FFmpegError):
            for packet in self._container.demux(self._stream):
                packets += packet.size > 0
                if packet.pts is not None:
                    last = max(last, packet.pts * self._base - self._zero)
        try:
            self._container.seek(0)
        except (self._av.error.FFmpegError, OSError):  # a raw stream without a container
            self._container.close()
            self._container = _open(self._reader.source, self._av)
            self._stream = self._container.streams[self._stream.index]
            self._prepare()
        return max(last + self._step, packets * self._step if not last else 0.0)

    def read(self, begin: Begin) -> Iterator[Frame]:
        """The frames at the sampling times of `begin`."""
        reader = self._reader
        length = max(self._said_duration() - reader.start, 0.0)
        length = min(length, reader.length or length)
        until = reader.length or float("inf")
        clock = begin(length, self._step)
        shown: tuple[float, Any] | None = None  # the frame on the screen, and its start time
        if clock.next + reader.start > SEEK_SECONDS:
            self._seek(clock.next)
        packets = self._frames()
        before: float | None = None  # where a seek started
        while (following := next(packets, None)) is not None:
            since, frame = following
            reader.end = max(reader.end, min(since, until))
            if before is not None:
                self._seekable = since > before  # else the next key frame is after the next sampling time
                before = None
            if since >= until - EPSILON:
                break
            if shown is not None and since > shown[0] and (times := clock.take(shown[0], since)):
                yield Frame(times, _pixels(shown[1], self._stream))
                if self._seekable and clock.interval and clock.next - since > SEEK_SECONDS:
                    packets.close()
                    before, self._seekable = since, self._seek(clock.next)
                    packets = self._frames()
                    if self._seekable:
                        shown = None
                        continue
            shown = (since, frame)
        if shown is not None:
            reader.end = min(max(shown[0] + self._step, 0.0), until)
            if times := clock.take(shown[0], reader.end):
                yield Frame(times, _pixels(shown[1], self._stream))
        if reader.problem is None and self._knows_end and reader.duration - reader.end > CUT_SECONDS:
            reader.problem = f"the file ends early: {reader.end:.1f} of {reader.duration:.1f} seconds could be read"
        if reader.problem is None and self._faulty:
            reader.problem = f"{self._faulty} damaged packets were left out"

    def _seek(self, seconds: float) -> bool:
        """Go to the last key frame before a time; False if the file cannot be seeked."""
        try:
            self._container.seek(int((seconds + self._zero) / self._base), stream=self._stream)
        except (self._av.error.FFmpegError, OSError, ValueError, ZeroDivisionError):
            return False
        self._time = seconds  # for frames without a timestamp
        return True

    def _frames(self) -> Generator[tuple[float, Any], None, None]:
        """Decoded frames with their start times; a damaged packet affects its own frames only."""
        FFmpegError = self._av.error.FFmpegError
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (FFmpegError, OSError) as error:
                self._reader.problem = f"it cannot be read beyond {max(self._time, 0.0):.1f} seconds: {error}"
                return
            try:
                frames = packet.decode()
            except (FFmpegError, ValueError):
                self._faulty += 1
                continue
            for frame in frames:
                known = frame.pts is not None and self._base
                self._time = frame.pts * self._base - self._zero if known else self._time + self._step
                yield self._time, frame


def _pixels(frame: Any, stream: Any) -> Tensor:
    """(3, H, W) uint8 of a decoded frame."""
    context = stream.codec_context
    matrix = getattr(frame, "colorspace", UNSPECIFIED)
    guessed = {"src_colorspace": "ITU709"} if int(matrix) == UNSPECIFIED and frame.height >= HD_HEIGHT else {}
    transfer = int(getattr(context, "color_trc", 0) or 0)
    if transfer in (PQ, HLG):
        array = hdr_to_sdr(frame.to_ndarray(format="rgb48le", **guessed), hlg=transfer == HLG)
    elif any(component.is_alpha for component in frame.format.components):
        pixels = read_pixels(frame.to_ndarray(format="rgba", **guessed))
        array = to_float(pixels).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    else:
        array = frame.to_ndarray(format="rgb24", **guessed)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if turns:
        array = np.rot90(array, turns)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def hdr_to_sdr(codes: NDArray[np.uint16], *, hlg: bool = False) -> NDArray[np.uint8]:
    """Tone-map HDR to SDR.

    Args:
        codes: (H, W, 3) full-range BT.2020 code values, 0..65535.
        hlg: The transfer function is HLG (ARIB STD-B67), else PQ (SMPTE ST 2084).

    Returns:
        (H, W, 3) sRGB; `REFERENCE_WHITE` becomes 255 but for the knee.
    """
    light = _decode_table(hlg)[codes]
    if hlg:  # from scene light to display light
        light *= (np.maximum(light @ BT2020_LUMA, 1e-6) ** 0.2)[..., None] * np.float32(HLG_PEAK / REFERENCE_WHITE)
    light = np.maximum(light @ BT2020_TO_709.T, 0.0)
    brightest = light.max(axis=-1)
    above = np.maximum(brightest - KNEE, 0.0)
    mapped = np.minimum(brightest, KNEE) + (1 - KNEE) * above / (above + (1 - KNEE))
    light *= (mapped / np.maximum(brightest, 1e-6))[..., None]
    encoded: NDArray[np.uint8] = _srgb_table()[(light * 65535.0 + 0.5).astype(np.uint16)]
    return encoded


@lru_cache(2)
def _decode_table(hlg: bool) -> NDArray[np.float32]:
    """65,536 code values to light: display light in units of reference white (PQ), scene light in 0..1 (HLG)."""
    code = np.linspace(0.0, 1.0, 65536)
    if hlg:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        light = 10000.0 / REFERENCE_WHITE * (np.maximum(power - c1, 0.0) / (c2 - c3 * power)) ** (1 / m1)
    return light.astype(np.float32)


@lru_cache(1)
def _srgb_table() -> NDArray[np.uint8]:
    light = np.linspace(0.0, 1.0, 65536)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table: NDArray[np.uint8] = np.round(curve * 255.0).astype(np.uint8)
    return table
