"""Plots a video's scores over time, drawn with Pillow alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .constants import BAND_THRESHOLDS
from .sheet import BACKGROUND, FAINT, TEXT, TRACK, band_colour, shorten
from .video import PASSAGE_SECONDS, VideoScore, clock_text

if TYPE_CHECKING:
    from collections.abc import Sequence

LINE = (59, 110, 165)
WORST = (250, 222, 220)
OVERSAMPLING = 2
"""Supersampling factor, for smooth lines."""

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
MOST_TICKS = 8
MIN_WIDTH, MIN_HEIGHT = 240, 120


def draw_time_plot(
    video: VideoScore,
    *,
    title: str = "",
    width: int = 960,
    height: int = 320,
    passage: float = PASSAGE_SECONDS,
    band_thresholds: Sequence[float] = BAND_THRESHOLDS,
) -> Image.Image:
    """Draw scores over time, with the mean, the worst passage and the best frame.

    Args:
        video: The scores; frames that could not be scored are gaps.
        title: Title above the plot; shortened if it is too long.
        width: Pixels, at least `MIN_WIDTH`.
        height: Pixels, at least `MIN_HEIGHT`.
        passage: Seconds of the worst passage.
        band_thresholds: Scores of the bands' lines.

    Returns:
        An RGB image. The scale goes from 0 to 1, or further if scores exceed it.

    Raises:
        ValueError: A size is too small.
    """
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        raise ValueError(f"expected at least {MIN_WIDTH} x {MIN_HEIGHT} pixels, got {width} x {height}")
    scale = OVERSAMPLING
    size = 13 * scale
    font, bold = ImageFont.load_default(size=size), ImageFont.load_default(size=size * 1.15)
    canvas = Image.new("RGB", (width * scale, height * scale), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = 3.2 * size, 2.6 * size, canvas.width - 1.2 * size, canvas.height - 2.2 * size
    scores = video.scores.astype(np.float64)
    low, high = min(0.0, float(np.nanmin(scores))), max(1.0, float(np.nanmax(scores)))
    length = max(video.duration, float(video.times[-1]), 1e-9)

    def x(seconds: float) -> float:
        return left + (right - left) * seconds / length

    def y(score: float) -> float:
        return bottom - (bottom - top) * (score - low) / (high - low)

    worst = video.worst_passage(passage)
    draw.rectangle((x(worst.start), top, max(x(worst.end), x(worst.start) + 2 * scale), bottom), fill=WORST)
    for value in (low, *band_thresholds, high):
        draw.line((left, y(value), right, y(value)), fill=TRACK, width=scale)
        draw.text((left - 0.5 * size, y(value)), f"{value:.1f}", fill=FAINT, font=font, anchor="rm")
    step = next((tick for tick in TICKS if length / tick <= MOST_TICKS), TICKS[-1])
    for number in range(int(length / step + 1e-9) + 1):
        at = x(number * step)
        draw.line((at, bottom, at, bottom + 4 * scale), fill=FAINT, width=scale)
        draw.text((at, bottom + 0.5 * size), _tick_text(number * step, step), fill=FAINT, font=font, anchor="ma")
    for offset in range(int(left), int(right), 10 * scale):
        draw.line((offset, y(video.mean), offset + 5 * scale, y(video.mean)), fill=TEXT, width=scale)
    points = [(x(time), y(score)) for time, score in zip(video.times.tolist(), scores.tolist(), strict=True)]
    for before, after in pairwise(points):
        if not np.isnan([before[1], after[1]]).any():
            draw.line((*before, *after), fill=LINE, width=2 * scale)
    radius = (3 if len(points) <= width / 8 else 1) * scale
    for (across, up), score in zip(points, scores.tolist(), strict=True):
        if not np.isnan(score):
            box = (across - radius, up - radius, across + radius, up + radius)
            draw.ellipse(box, fill=band_colour(score, band_thresholds))
    across, up = points[video.best]
    draw.ellipse((across - 6 * scale, up - 6 * scale, across + 6 * scale, up + 6 * scale), outline=TEXT, width=scale)
    figures = (
        f"mean {video.mean:.3f}   worst tenth {video.worst_tenth:.3f}   "
        f"worst {clock_text(worst.start)} to {clock_text(worst.end)}: {worst.score:.3f}"
    )
    draw.text((right, 0.8 * size), figures, fill=TEXT, font=font, anchor="ra")
    room = int(right - left - font.getlength(figures) - size)
    draw.text((left, 0.7 * size), shorten(title, bold, room) if room > 0 else "", fill=TEXT, font=bold)
    return canvas.resize((width, height), Image.Resampling.LANCZOS)


def draw_time_plots(videos: Sequence[tuple[str, VideoScore]], **options: Any) -> Image.Image:
    """Several videos' plots in a column; titles and scores in order, options as for `draw_time_plot`.

    Raises:
        ValueError: There is none.
    """
    if not videos:
        raise ValueError("there is no video to draw")
    plots = [draw_time_plot(video, title=title, **options) for title, video in videos]
    canvas = Image.new("RGB", (plots[0].width, sum(plot.height for plot in plots)), BACKGROUND)
    for number, plot in enumerate(plots):
        canvas.paste(plot, (0, number * plot.height))
    return canvas


def _tick_text(seconds: float, step: float) -> str:
    if step < 1:
        return f"{seconds:.1f} s"
    if seconds < 60 and step < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if step >= 3600 or whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"
