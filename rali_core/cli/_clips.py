"""Videos and animations among the inputs: their options, scoring one of them, and what is reported about it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..files import is_image_name, is_video_name
from ._console import show_progress, shown
from ._inputs import Input

if TYPE_CHECKING:
    from pathlib import Path

    from ..frames import FrameSampling
    from ..scorer import ImageScore, RaliScorer
    from ..video import Aggregate, VideoScore

AGGREGATES = {"mean": "mean", "worst-tenth": "worst tenth", "minimum": "minimum"}

CLIP_COLUMNS = (
    "duration", "frames", "mean", "worst_tenth", "minimum", "best_time", "worst_start", "worst_end", "problem"
)  # fmt: skip
"""Of CSV and JSON."""

SCORE_COLUMNS = ("mean", "worst_tenth", "minimum")


@dataclass(frozen=True)
class ClipOptions:
    """The options for videos.

    Attributes:
        animations: GIF, WebP, APNG and AVIF are scored frame by frame.
        sampling: Which frames.
        aggregate: Which figure is a video's score.
        passage: Seconds of the worst passage.
    """

    animations: bool
    sampling: FrameSampling
    aggregate: Aggregate
    passage: float

    def takes(self, file: Input) -> bool:
        """Whether a file is scored frame by frame."""
        if _is_video(file):
            return True
        if not self.animations or isinstance(file, str):
            return False
        from ..frames import is_animation

        return is_image_name(file) and is_animation(file)


def _is_video(file: Input) -> bool:
    """By the name; what follows the `?` of a URL is no part of it."""
    return is_video_name(file.split("?")[0] if isinstance(file, str) else file, named=True)


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """`--videos`, `--frames`, `--fps`, `--max-frames`, `--aggregate` and `--passage`."""
    group = parser.add_argument_group("videos and animations (videos need PyAV)")
    group.add_argument("--videos", action="store_true", help="score the videos in folders as well")
    add_frame_arguments(group)


def add_frame_arguments(group: Any) -> None:
    """`--frames`, `--fps`, `--max-frames` and `--aggregate`."""
    group.add_argument("--frames", action="store_true",
                       help="GIF, WebP, APNG and AVIF: score all of an animation, not its first frame")  # fmt: skip
    group.add_argument("--fps", type=float, metavar="R", help="frames scored per second; 0: all (default: 2)")
    group.add_argument("--max-frames", type=int, metavar="N",
                       help="at most N frames per video, spread evenly (default: 600)")  # fmt: skip
    group.add_argument("--aggregate", choices=tuple(AGGREGATES), default="mean",
                       help="which figure over its frames is a video's score (default: mean)")  # fmt: skip


def read_sampling(options: argparse.Namespace) -> FrameSampling:
    """Parse `--fps` and `--max-frames` of `add_frame_arguments`.

    Raises:
        ValueError: A number is out of range.
    """
    from ..frames import DEFAULT_FPS, DEFAULT_MAX_FRAMES, FrameSampling

    return FrameSampling(
        DEFAULT_FPS if options.fps is None else options.fps,
        DEFAULT_MAX_FRAMES if options.max_frames is None else options.max_frames,
    )


def read_clip_options(options: argparse.Namespace) -> ClipOptions:
    """Parse the options of `add_clip_arguments`.

    Raises:
        ValueError: A number is out of range.
    """
    from ..video import PASSAGE_SECONDS

    passage = getattr(options, "passage", None)
    passage = PASSAGE_SECONDS if passage is None else passage
    if not passage > 0:
        raise ValueError(f"--passage must be more than 0 seconds, got {passage}")
    aggregate: Any = AGGREGATES[options.aggregate]
    return ClipOptions(options.frames, read_sampling(options), aggregate, passage)


def check_clips(files: list[Input], clips: ClipOptions) -> list[Input]:
    """The files that are scored frame by frame; checked before the work that PyAV is there if it is needed.

    Raises:
        ModuleNotFoundError: There are videos, and PyAV is missing.
    """
    found = [file for file in files if clips.takes(file)]
    if any(map(_is_video, found)):
        from ..frames import check_pyav

        check_pyav()
    return found


def score_clip(scorer: RaliScorer, path: Path, clips: ClipOptions, *, stop: Callable[[], bool]) -> ImageScore | None:
    """A video's or animation's result; None where `stop` ended it."""
    from ..video import ClipScore, as_image_score, score_video

    with show_progress(shown(path.name)) as show:

        def report(done: int, total: int | None) -> bool:
            if total is not None:
                show(min(done, total), total)
            return not stop()

        try:
            video = score_video(scorer, path, sampling=clips.sampling, progress=report)
        except (OSError, ValueError) as error:
            return ClipScore(0, float("nan"), "", float("nan"), str(error))
    return None if video.stopped else as_image_score(video, scorer, clips.aggregate)


def clip_of(result: ImageScore) -> VideoScore | None:
    """The scores over time of a result; None for an image, and with an error."""
    return getattr(result, "video", None)


def clip_record(video: VideoScore, passage: float) -> dict[str, Any]:
    """A video's figures as JSON types, under `CLIP_COLUMNS`."""
    return {
        name: round(value, 6 if name in SCORE_COLUMNS else 3) if isinstance(value, float) else value
        for name, value in video.figures(passage=passage).items()
        if value is not None
    }
