"""Shows where an image is good and where it is weak: scores of regions, as a map of the image.

Not part of the paper. Two ways: `score_tiles` cuts the image into squares and scores each like a separate image;
`score_patches` scores the encoder's patch tokens (see `patch_tokens`), finer and quicker, but not calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .content import NO_CONTENT, NO_CONTENT_SCORE, has_content
from .devices import without_gradient
from .images import read_pixels, to_pixels
from .patch_tokens import embed_patches
from .preprocess import MAX_ASPECT_RATIO, resized_shape, tile_offsets
from .scorer import ProgressCallback, RaliScorer

WeakMode = Literal["below score", "weakest share"]

COLOUR_STOPS = ((0.55, 0.10, 0.16), (0.85, 0.42, 0.18), (0.96, 0.85, 0.45), (0.45, 0.70, 0.35), (0.10, 0.42, 0.28))
"""RGB of scores 0, 0.25, 0.5, 0.75 and 1: the contact sheet's colours from bad to excellent."""


@dataclass(frozen=True)
class QualityMap:
    """Scores of an image's regions.

    Attributes:
        regions: (rows, columns) float32 scores, higher is better.
        pixels: (H, W) float32, the same for each pixel of the image.
        reason: "no content" if the whole image is blank (see `content`); all scores are `NO_CONTENT_SCORE` then.
    """

    regions: Tensor
    pixels: Tensor
    reason: str | None = None


def score_tiles(
    scorer: RaliScorer, image: Tensor, *, tile: int | None = 256, progress: ProgressCallback | None = None
) -> QualityMap | None:
    """Score squares of an image, evenly spread so that they cover it.

    A square without content in an image that has some (a plain sky, a page's margin) is not a weak one: it gets the
    mean of the others, or the image's own score if there are none.

    Args:
        scorer: The scorer.
        image: (C, H, W) as `RaliScorer.score` takes it.
        tile: Side of a square in pixels, at least 16; at most the image's shorter side. None takes the encoder's input
            size: a larger image is not resized, as in the crops of `coverage="full"`.
        progress: As for `RaliScorer.score`.

    Returns:
        The map; a pixel in several squares has their mean. None if `progress` stopped it.

    Raises:
        ValueError: `tile` is less than 16.
        ImageError: The image cannot be used.
    """
    tile = scorer.model.preprocess_config.image_size if tile is None else tile
    if tile < 16:
        raise ValueError(f"tile must be at least 16 pixels, got {tile}")
    pixels = to_pixels(image)
    height, width = pixels.shape[-2:]
    side = min(tile, height, width)
    tops, lefts = _offsets(height, side), _offsets(width, side)
    boxes = [(top, left) for top in tops for left in lefts]
    if not has_content(pixels):
        return _without_content(len(tops), len(lefts), height, width)
    # A list would hold all the tiles at once; views of one image cost nothing.
    result = scorer.score([pixels[:, top : top + side, left : left + side] for top, left in boxes], progress=progress)
    if len(result) < len(boxes):
        return None
    scores = torch.from_numpy(result.scores)
    plain = torch.tensor([reason is not None for reason in result.reasons])
    if plain.any():
        scores[plain] = float(scorer.score(pixels).scores[0]) if plain.all() else scores[~plain].mean()
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    for (top, left), score in zip(boxes, scores.tolist(), strict=True):
        total[top : top + side, left : left + side] += score
        count[top : top + side, left : left + side] += 1
    return QualityMap(scores.view(len(tops), len(lefts)), total / count)


def score_patches(scorer: RaliScorer, image: Tensor) -> QualityMap:
    """Score the encoder's patch tokens; several crops cover all of an image that is not square.

    Args:
        scorer: The scorer.
        image: (C, H, W) as `RaliScorer.score` takes it; at most 32 times as long as wide.

    Raises:
        ValueError: The encoder has no class token, or the image is longer than 32:1.
        ImageError: The image cannot be used.
    """
    pixels = read_pixels(image, limits=scorer.limits)
    height, width = pixels.shape[-2:]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"expected an image of at most {MAX_ASPECT_RATIO}:1, got {width} x {height}: use tiles")
    model, size = scorer.model, scorer.model.preprocess_config.image_size
    blank = not has_content(pixels)
    with without_gradient(scorer.device):
        crops = model.preprocess(pixels.unsqueeze(0), coverage="tiles")[0].to(scorer.device)
        crops = crops.to(next(model.encoder.parameters()).dtype)
        tokens = torch.cat([embed_patches(model.encoder, part) for part in crops.split(scorer.batch_size)])
        scores = model.head(tokens.flatten(0, 2)).view(tokens.shape[:3]).cpu().float()
    patch = size // scores.shape[-1]
    tall, wide = resized_shape(height, width, size)
    total, count = torch.zeros(tall, wide), torch.zeros(tall, wide)
    drawn = scores.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)
    covered = drawn.shape[-1]
    for crop, offset in zip(drawn, tile_offsets(max(tall, wide), size), strict=True):
        top, left = (offset, 0) if tall >= wide else (0, offset)
        total[top : top + covered, left : left + covered] += crop
        count[top : top + covered, left : left + covered] += 1
    # If more than MAX_TILES crops would be needed, the gaps between them have no score: the mean fills them.
    known = count > 0
    drawn_back = torch.where(known, total / count.clamp_min(1), total.sum() / count.sum())
    rows, columns = max(tall // patch, 1), max(wide // patch, 1)
    if blank:
        return _without_content(rows, columns, height, width)
    regions = functional.adaptive_avg_pool2d(drawn_back[None, None], (rows, columns))[0, 0]
    smooth = functional.interpolate(regions[None, None], (height, width), mode="bilinear", align_corners=False)
    return QualityMap(regions.clone(), smooth[0, 0].clone())


def _without_content(rows: int, columns: int, height: int, width: int) -> QualityMap:
    return QualityMap(
        torch.full((rows, columns), NO_CONTENT_SCORE), torch.full((height, width), NO_CONTENT_SCORE), NO_CONTENT
    )


def weak_regions(pixels: Tensor, limit: float, mode: WeakMode = "below score") -> Tensor:
    """Mark the weak pixels of a map.

    Args:
        pixels: (H, W) scores.
        limit: A score for `"below score"`; a fraction in [0, 1] of the pixels for `"weakest share"`.
        mode: Whether `limit` is absolute or relative to this image.

    Returns:
        (H, W) float32, 1 where the image is weak. An image that scores the same everywhere has no weakest part.

    Raises:
        ValueError: `mode` is unknown, or a fraction outside [0, 1].
    """
    if mode not in get_args(WeakMode):
        raise ValueError(f"mode must be one of {', '.join(get_args(WeakMode))}, got {mode!r}")
    if mode == "below score":
        return (pixels < limit).float()
    if not 0.0 <= limit <= 1.0:
        raise ValueError(f"a fraction must lie in 0..1, got {limit:g}")
    count = int(limit * pixels.numel())
    if count == 0:
        return torch.zeros_like(pixels)
    edge = pixels.flatten().kthvalue(count).values
    return ((pixels <= edge) & (pixels < pixels.max())).float()


def colour_scores(pixels: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw scores in colour, from dark red (`low`) over yellow to green (`high`).

    Args:
        pixels: (H, W) scores.
        low: Score of the first colour.
        high: Score of the last colour, above `low`.

    Returns:
        (3, H, W) RGB in [0, 1].

    Raises:
        ValueError: `high` is not above `low`.
    """
    if not high > low:
        raise ValueError(f"expected low < high, got {low:g} and {high:g}")
    stops = torch.tensor(COLOUR_STOPS)
    place = ((pixels - low) / (high - low)).clamp(0.0, 1.0) * (len(stops) - 1)
    lower = place.floor().long().clamp_max(len(stops) - 2)
    share = (place - lower).unsqueeze(-1)
    return (stops[lower] * (1 - share) + stops[lower + 1] * share).permute(2, 0, 1)


def _offsets(length: int, size: int) -> list[int]:
    count = -(-length // size)
    return [round(i * (length - size) / max(count - 1, 1)) for i in range(count)]
