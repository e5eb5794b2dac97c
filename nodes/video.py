"""RALI Score Video: scores over time of a VIDEO, or of an IMAGE batch with a frame rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..rali_core.images import to_float
from ._convert import from_core, from_pil, split_images, to_core
from ._inputs import coverage_input, model_input
from ._models import ready_model
from ._panel import Note
from ._scoring import Scores, block_without_images, chosen_coverage, progress_reporter, score_panel

if TYPE_CHECKING:
    from ..rali_core.calibration import Calibration
    from ..rali_core.video import VideoScore

AGGREGATES = ["mean", "worst tenth", "minimum"]
PLOT_SIZE = (960, 320)


class RaliScoreVideo(io.ComfyNode):
    """Scores a video over time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RALI_ScoreVideo",
            display_name="RALI Score Video",
            category="RALI",
            description=(
                "Scores a video's frames: one number for all of it, the best frame (for a thumbnail), the worst "
                "passage in seconds, and a plot over time. Files are read frame by frame, however long. Motion is "
                "not judged."
            ),
            search_aliases=["video quality", "score frames", "best frame", "thumbnail", "VQA", "animation quality"],
            is_output_node=True,
            inputs=[
                io.Video.Input("video", optional=True, tooltip="A video; its trim counts."),
                io.Image.Input("images", optional=True, tooltip="Or a batch whose images are a video's frames."),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=0.01,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames per second of images; a VIDEO knows its own.",
                ),
                io.Float.Input(
                    "sample_fps",
                    default=2.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="How many frames are scored per second; 0: all.",
                ),
                io.Int.Input(
                    "max_frames",
                    default=600,
                    min=1,
                    max=1_000_000,
                    tooltip="At most so many are scored, spread over all of the video.",
                ),
                io.Combo.Input(
                    "aggregation",
                    options=AGGREGATES,
                    default=AGGREGATES[0],
                    tooltip="Which figure is the output score: mean, mean of the worst tenth, or the worst frame.",
                ),
                io.Float.Input(
                    "passage_seconds",
                    default=1.0,
                    min=0.05,
                    max=3600.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Length of the worst passage that is looked for.",
                ),
                model_input(),
                coverage_input(),
            ],
            outputs=[
                io.Float.Output("score", tooltip="One number for the video, see aggregation."),
                io.Image.Output("best_frame", tooltip="The frame with the highest score."),
                io.Image.Output("worst_frame", tooltip="The frame with the lowest score."),
                io.Image.Output("plot", tooltip="The scores over time, with the worst passage and the best frame."),
                io.Float.Output("worst_start", tooltip="Begin of the worst passage, in seconds."),
                io.Float.Output("worst_end", tooltip="Its end, in seconds."),
                io.Float.Output("scores", is_output_list=True, tooltip="The scored frames' scores, in time."),
                io.Float.Output("times", is_output_list=True, tooltip="When they are shown, in seconds."),
                io.String.Output("report", tooltip="Mean, worst tenth, minimum, worst passage, best frame."),
            ],
        )

    @classmethod
    def execute(
        cls,
        fps: float,
        sample_fps: float,
        max_frames: int,
        aggregation: Any,
        passage_seconds: float,
        coverage: str,
        video: Any = None,
        images: Tensor | None = None,
        model: Any = None,
    ) -> io.NodeOutput:
        from ..rali_core.frames import FrameSampling

        if (video is None) == (images is None):
            which = "neither is connected" if video is None else "both are connected"
            raise ValueError(f"connect either video or images: {which}")
        if images is not None and not len(images):
            return block_without_images(cls)
        clip: _Batch | _File = _open(video) if images is None else _Batch(images, fps)
        handle = ready_model(model)
        scored = clip.score(handle.scorer, FrameSampling(sample_fps, max_frames), chosen_coverage(coverage))
        calibration = handle.scorer.info.calibration
        worst, score = scored.worst_passage(passage_seconds), scored.aggregate(aggregation)
        frames = [clip.frame(float(scored.times[index])) for index in (scored.best, scored.worst)]
        return io.NodeOutput(
            score, *frames, _plot(scored, calibration, passage_seconds), worst.start, worst.end,
            scored.scores.tolist(), scored.times.tolist(), scored.describe(passage=passage_seconds),
            ui=_panel(scored, calibration, aggregation),
        )  # fmt: skip


def _panel(scored: VideoScore, calibration: Calibration | None, how: Any) -> dict[str, Any]:
    words = tuple(each.words if each is not None else () for each in scored.attributes)
    scores = Scores(scored.scores.tolist(), list(scored.reasons), calibration, words=words)
    score = scored.aggregate(how)
    return score_panel(scores, note=Note.of("aggregate", how=how, score=score), headline=score)


def _plot(scored: VideoScore, calibration: Calibration | None, passage: float) -> Tensor:
    """The plot over time as an IMAGE."""
    from ..rali_core.plot import draw_time_plot

    limits = {"band_thresholds": calibration.band_thresholds} if calibration else {}
    width, height = PLOT_SIZE
    return from_pil(draw_time_plot(scored, width=width, height=height, passage=passage, **limits))


class _Batch:
    """An IMAGE batch as a video."""

    def __init__(self, images: Tensor, fps: float) -> None:
        self._images, self._fps = split_images([images]), fps
        self._index_at: dict[float, int] = {}

    def score(self, scorer: Any, sampling: Any, coverage: Any) -> Any:
        from dataclasses import replace

        from ..rali_core.frames import Frame, VideoError, sample_batch
        from ..rali_core.video import score_frames

        taken = sample_batch(len(self._images), self._fps, sampling)
        self._index_at = {time: index for index, times in taken for time in times}
        total = sum(len(times) for _, times in taken)
        frames = (Frame(times, to_core(self._images[index])) for index, times in taken)
        scored = score_frames(
            scorer, frames, coverage=coverage, attributes=_tells(scorer), progress=progress_reporter(total)
        )
        if bool(torch.from_numpy(scored.scores).isnan().all()):
            raise VideoError(f"images: no frame could be scored: {scored.reasons[0]}")
        return replace(scored, duration=len(self._images) / self._fps)

    def frame(self, time: float) -> Tensor:
        return self._images[self._index_at[time]]


class _File:
    """A video in a file, which is read frame by frame."""

    def __init__(self, source: Any, start: float, length: float | None) -> None:
        self._source, self._window = source, {"start": start, "length": length}

    def score(self, scorer: Any, sampling: Any, coverage: Any) -> Any:
        from ..rali_core.video import score_video

        report = None

        def progress(done: int, total: int | None) -> bool:
            nonlocal report
            report = report or progress_reporter(total or done)
            return bool(report(done, None))

        return score_video(
            scorer, self._source, sampling=sampling, coverage=coverage, attributes=_tells(scorer), progress=progress,
            **self._window,
        )  # fmt: skip

    def frame(self, time: float) -> Tensor:
        from ..rali_core.frames import FrameReader

        return from_core(to_float(FrameReader(self._source, **self._window).at(time)))


def _tells(scorer: Any) -> bool:
    return scorer.model.probes is not None


def _open(video: Any) -> _Batch | _File:
    """A VIDEO from a file as that file; one made of images as these, because a file would change them."""
    if not isinstance(video, InputImpl.VideoFromFile):
        parts = video.get_components()
        return _Batch(parts.images, float(parts.frame_rate))
    if hasattr(video, "get_active_trim_window"):
        start, length = video.get_active_trim_window()
    else:  # older versions of ComfyUI do not expose it
        start = getattr(video, "_VideoFromFile__start_time", 0) or 0
        length = getattr(video, "_VideoFromFile__duration", 0) or 0
        if start < 0:
            start = max(video._get_raw_duration() + start, 0.0)
    source = video.get_stream_source()
    return _File(source if isinstance(source, str) else source.getvalue(), float(start), float(length) or None)
