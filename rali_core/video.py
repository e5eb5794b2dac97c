"""Videos and animations to scores over time, and to one score: mean, worst tenth or minimum.

Each frame that `frames.FrameSampling` selects is scored as an image, in batches; memory does not grow with the
length. Scores say nothing of motion: flicker and stutter are not seen.
Frames without content (`content.NO_CONTENT`) count with the score that such images have; `VideoScore.blank`
counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .attributes import ImageAttributes
from .content import NO_CONTENT
from .frames import EPSILON, Frame, FrameReader, FrameSampling, VideoError
from .images import ReadLimits
from .results import ImageScore

if TYPE_CHECKING:
    from .constants import Coverage
    from .frames import Source
    from .scorer import RaliScorer

Aggregate = Literal["mean", "worst tenth", "minimum"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)

PASSAGE_SECONDS = 1.0
"""Default length of `VideoScore.worst_passage` in seconds."""

DEFAULT_SAMPLING = FrameSampling()

VideoProgress = Callable[[int, "int | None"], "bool | None"]
"""Called as progress(sampling times done, approximate total; None: not known). Returning False stops the run."""


@dataclass(frozen=True)
class Passage:
    """A part of a video.

    Attributes:
        start: Seconds.
        end: Seconds.
        score: Mean over its sampling times.
    """

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class VideoScore:
    """The scores at a video's sampling times.

    Attributes:
        times: (N,) float64, seconds from the start, ascending.
        scores: (N,) float32 in the model's range, by default 0..1, higher is better; NaN for a frame that could not be
            scored.
        reasons: N texts; "no content" for a blank frame, why there is no score, or None.
        duration: Seconds; 0 for a still image.
        problem: What is wrong with the file, such as that it ends early; None if nothing is.
        stopped: The progress callback ended the run; N then counts only what was done.
        attributes: What is wrong with each frame, if it was asked for, else empty; None for a frame without a score of
            the model's.
    """

    times: NDArray[np.float64]
    scores: NDArray[np.float32]
    reasons: tuple[str | None, ...]
    duration: float
    problem: str | None = None
    stopped: bool = False
    attributes: tuple[ImageAttributes | None, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(np.mean(self._known()))

    @property
    def worst_tenth(self) -> float:
        """Mean of the lowest tenth of the scores, at least one of them."""
        known = np.sort(self._known())
        return float(np.mean(known[: ceil(len(known) / 10)]))

    @property
    def minimum(self) -> float:
        """The lowest score."""
        return float(np.min(self._known()))

    @property
    def blank(self) -> int:
        """How many of the sampling times show a frame without content."""
        return sum(reason == NO_CONTENT for reason in self.reasons)

    @property
    def best(self) -> int:
        """0-based index of the highest score, the first among equals; one with content if there is one."""
        return max(self._scored(), key=lambda index: (self.reasons[index] is None, float(self.scores[index])))

    @property
    def worst(self) -> int:
        """0-based index of the lowest score, the first among equals."""
        return min(self._scored(), key=lambda index: float(self.scores[index]))

    def aggregate(self, how: Aggregate = "mean") -> float:
        """One number for the video.

        Raises:
            ValueError: `how` is none of `AGGREGATES`.
        """
        if how not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}, got {how!r}")
        return {"mean": self.mean, "worst tenth": self.worst_tenth, "minimum": self.minimum}[how]

    def worst_passage(self, seconds: float = PASSAGE_SECONDS) -> Passage:
        """The passage of that length with the lowest mean score; the whole video if it is shorter.

        Args:
            seconds: Its length, more than 0; if the sampling times are further apart, one of them.

        Raises:
            ValueError: `seconds` is not more than 0.
        """
        if not seconds > 0:
            raise ValueError(f"expected a passage of more than 0 seconds, got {seconds}")
        times, scores = self.times, self.scores.astype(np.float64)
        known = np.where(np.isnan(scores), 0.0, scores)
        sums = np.concatenate([[0.0], np.cumsum(known)])
        counts = np.concatenate([[0], np.cumsum(~np.isnan(scores))])
        ends = np.searchsorted(times, times + seconds - EPSILON)
        starts = np.arange(len(times))
        found = counts[ends] - counts[starts]
        whole = (times + seconds <= self.duration + EPSILON) | (starts == 0)
        means = np.where(whole & (found > 0), (sums[ends] - sums[starts]) / np.maximum(found, 1), np.inf)
        place = int(np.argmin(means))
        if not np.isfinite(means[place]):  # the only scored frames are in the last, shorter part
            place = self.worst
            return Passage(float(times[place]), max(self.duration, float(times[place])), float(scores[place]))
        return Passage(float(times[place]), min(float(times[place]) + seconds, self.duration), float(means[place]))

    def worst_words(self, passage: float = PASSAGE_SECONDS) -> tuple[str, ...]:
        """What is wrong with the worst passage: the words of at least half of its frames, the most frequent first."""
        worst = self.worst_passage(passage)
        inside = (self.times >= worst.start - EPSILON) & (self.times < max(worst.end, worst.start + EPSILON))
        told = [each for each, here in zip(self.attributes, inside, strict=False) if here and each is not None]
        counts = Counter(word for each in told for word in each.words)
        return tuple(word for word, count in counts.most_common() if 2 * count >= len(told))

    def figures(self, *, passage: float = PASSAGE_SECONDS) -> dict[str, int | float | str | None]:
        """The figures by their names in tables: number of frames, times in seconds, scores, and the problem."""
        worst = self.worst_passage(passage)
        return {
            "duration": self.duration,
            "frames": len(self),
            "mean": self.mean,
            "worst_tenth": self.worst_tenth,
            "minimum": self.minimum,
            "best_time": float(self.times[self.best]),
            "worst_start": worst.start,
            "worst_end": worst.end,
            "problem": self.problem,
        }

    def describe(self, *, passage: float = PASSAGE_SECONDS) -> str:
        """The figures in a line or two."""
        worst = self.worst_passage(passage)
        best = self.best
        words = self.worst_words(passage)
        wrong = f" ({', '.join(words)})" if words else ""
        lines = [
            f"mean {self.mean:.3f}, worst tenth {self.worst_tenth:.3f}, minimum {self.minimum:.3f} "
            f"({len(self)} frames of {clock_text(self.duration)})",
            f"worst passage {clock_text(worst.start)} to {clock_text(worst.end)}: {worst.score:.3f}{wrong}; "
            f"best frame at {clock_text(float(self.times[best]))}: {self.scores[best]:.3f}",
        ]
        if self.blank:
            lines.append(f"no content: {self.blank} of {len(self)} frames")
        if self.problem:
            lines.append(self.problem)
        return "\n".join(lines)

    def _scored(self) -> list[int]:
        return [int(index) for index in np.flatnonzero(~np.isnan(self.scores))]

    def _known(self) -> NDArray[np.float64]:
        return self.scores[~np.isnan(self.scores)].astype(np.float64)


@dataclass(frozen=True)
class ClipScore(ImageScore):
    """A video's result in the form of an image's.

    Attributes:
        video: Its scores over time; None with an error.
    """

    video: VideoScore | None = None


def score_video(
    scorer: RaliScorer,
    source: Source,
    *,
    sampling: FrameSampling = DEFAULT_SAMPLING,
    coverage: Coverage | None = None,
    name: str | None = None,
    start: float = 0.0,
    length: float | None = None,
    limits: ReadLimits | None = None,
    attributes: bool | None = None,
    progress: VideoProgress | None = None,
) -> VideoScore:
    """Score a video or an animation over time.

    Args:
        scorer: The scorer; its cache, if it has one, identifies frames by their pixels.
        source: A path, the bytes of a file, or an open binary file: what PyAV reads, or a GIF, WebP, APNG or AVIF.
        sampling: Which frames.
        coverage: As for `RaliScorer.score`.
        name: Its name in errors.
        start: Seconds of a video that are left out; times count from there.
        length: Seconds that are scored; by default all.
        limits: Limits for a frame; by default the scorer's.
        attributes: Whether to tell what is wrong with each frame; by default as the scorer does.
        progress: Called after each frame with (done, approximate total); returning False stops.

    Raises:
        FileNotFoundError: There is no such file.
        VideoError: It is not a video, is damaged, has no frames or only sound, or no frame could be scored.
        ImageError: It is an animation that is damaged.
        ModuleNotFoundError: It is a video, and PyAV is not installed.

    Example:
        >>> result = score_video(scorer, "clip.mp4")  # doctest: +SKIP
        >>> result.mean, result.worst_passage()  # doctest: +SKIP
        (0.61, Passage(start=12.0, end=13.0, score=0.18))
    """
    reader = FrameReader(source, name=name, limits=limits or scorer.limits, start=start, length=length)
    done = score_frames(
        scorer,
        reader.frames(sampling),
        coverage=coverage,
        attributes=attributes,
        progress=None if progress is None else lambda count, _: progress(count, reader.expected),
    )
    if not len(done.scores) or np.isnan(done.scores).all():
        raise VideoError(f"{reader.name}: no frame could be scored{f': {done.reasons[0]}' if done.reasons else ''}")
    last = float(done.times[-1])
    return replace(done, duration=max(reader.end or reader.duration, last), problem=reader.problem)


def score_frames(
    scorer: RaliScorer,
    frames: Iterable[Frame],
    *,
    coverage: Coverage | None = None,
    attributes: bool | None = None,
    progress: VideoProgress | None = None,
) -> VideoScore:
    """Score frames as they come; the duration is the last one's time.

    Args:
        scorer: The scorer.
        frames: Each with its pixels and its sampling times; held a batch at a time.
        coverage: As for `RaliScorer.score`.
        attributes: Whether to tell what is wrong with each frame; by default as the scorer does.
        progress: Called after each frame with (sampling times done, None); returning False stops.
    """
    pending: list[tuple[float, ...]] = []

    def pixels() -> Iterator[Tensor]:
        for frame in frames:
            pending.append(frame.times)
            yield frame.pixels

    times: list[float] = []
    scores: list[float] = []
    reasons: list[str | None] = []
    told: list[ImageAttributes | None] = []
    stopped = False
    stream = scorer.stream(pixels(), coverage=coverage, on_error="record", attributes=attributes)
    with closing(stream) as results:  # type: ignore[type-var]
        for result in results:
            at = pending[result.index]
            times += at
            scores += [result.score] * len(at)
            reasons += [result.error or result.reason] * len(at)
            told += [result.attributes] * len(at)
            if progress is not None and progress(len(times), None) is False:
                stopped = True
                break
    return VideoScore(
        np.array(times), np.array(scores, dtype=np.float32), tuple(reasons), max(times, default=0.0), stopped=stopped,
        attributes=tuple(told) if any(told) else (),
    )  # fmt: skip


def as_image_score(video: VideoScore, scorer: RaliScorer, how: Aggregate = "mean", *, index: int = 0) -> ClipScore:
    """A video's result in the form of an image's: the aggregate with its band and percentile, and the mean attributes.

    Args:
        video: Its scores.
        scorer: Its calibration gives band and percentile.
        how: Which of its figures is the score.
        index: 0-based position in the input.
    """
    score = video.aggregate(how)
    calibration = scorer.info.calibration
    return ClipScore(
        index,
        score,
        calibration.bands([score])[0] if calibration else "",
        float(calibration.percentiles([score])[0]) if calibration else float("nan"),
        reason=NO_CONTENT if video.blank == len(video) else None,
        attributes=_mean_attributes(video, scorer),
        video=video,
    )


def _mean_attributes(video: VideoScore, scorer: RaliScorer) -> ImageAttributes | None:
    """The mean severities over the frames, and the words for these."""
    told = [list(each.values.values()) for each in video.attributes if each is not None]
    if not told or scorer.model.probes is None:
        return None
    return scorer.model.probes.describe(np.mean(told, axis=0).tolist())


def clock_text(seconds: float) -> str:
    """Seconds as people write them: "4.5 s", "2:03.5", "1:02:03"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{int(minutes)}:{rest:04.1f}"
    return f"{int(minutes // 60)}:{int(minutes % 60):02d}:{int(rest):02d}"
