"""What surrounds the encoder in an exported graph, written in onnxscript: pixels to crops, crops' scores to one score.

The functions here are never called: onnxscript reads their source and makes ONNX of it, so they keep to the part of
Python that it knows. Each does what its namesake in `preprocess` or `content` does, for images of any size.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper
from onnxscript import BOOL, DOUBLE, FLOAT, INT64, UINT8, script
from onnxscript import opset18 as op
from onnxscript.optimizer import optimize

from . import content, preprocess
from .constants import Coverage
from .preprocess import PreprocessConfig

OPSET = 18
"""The first whose Resize is antialiased."""

DOUBLE_TYPE, FLOAT_TYPE, INT_TYPE = TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.INT64


def _double(value: float) -> Any:
    return helper.make_tensor("value", DOUBLE_TYPE, [], [value])


GOLDEN, ZERO, ONE, TWO = _double(content.GOLDEN_RATIO), _double(0.0), _double(1.0), _double(2.0)
FULL_SIZE_GROWTH = preprocess.FULL_SIZE_GROWTH
BORDER, MAX_ROWS, MAX_COLUMNS, BLOCK = content.BORDER, content.MAX_ROWS, content.MAX_COLUMNS, content.BLOCK
MIN_SIDE, WEAK, WEAK_SHARE = content.MIN_SIDE, content.WEAK, content.WEAK_SHARE
STRONG, STRONG_COUNT = content.STRONG, content.STRONG_COUNT - 0.5
WEAK_SUM = WEAK * BLOCK
NO_CONTENT_SCORE = content.NO_CONTENT_SCORE
LONGEST, MAX_TILES = preprocess.MAX_ASPECT_RATIO, preprocess.MAX_TILES
QUADRATIC = helper.make_tensor("value", FLOAT_TYPE, [3, 3], [1, 1, 1, 1, 1, 0, 1, 0, 0])
"""Which products of powers of y and x are in a quadratic surface."""


@script(default_opset=op)
def orthogonal(of: DOUBLE[...], at: DOUBLE[...]) -> FLOAT[...]:
    """(3, N) values at N points of the polynomials of degree 0 to 2 that are orthonormal over the points `of`."""
    count = op.Cast(op.Size(of), to=DOUBLE_TYPE)
    mean = op.ReduceMean(of)
    line = of - mean
    length = op.Sqrt(op.ReduceSum(line * line))
    line = line / length
    parabola = line * line
    constant = op.ReduceMean(parabola)
    slope = op.ReduceSum(parabola * line)
    parabola = parabola - constant - slope * line
    height = op.Sqrt(op.ReduceSum(parabola * parabola))
    t = (at - mean) / length
    rows = op.Concat(
        op.Expand(op.Unsqueeze(op.Constant(value=ONE) / op.Sqrt(count), [0]), op.Shape(at)),
        t,
        (t * t - constant - slope * t) / height,
        axis=0,
    )
    return op.Cast(op.Reshape(rows, [3, -1]), to=FLOAT_TYPE)


@script(default_opset=op)
def block_means(positions: INT64[...], block: INT64[...]) -> DOUBLE[...]:
    """(N,) positions to the (N / block,) means of runs of them."""
    count = op.Size(positions) / block
    whole = op.Slice(op.Cast(positions, to=DOUBLE_TYPE), [0], op.Unsqueeze(count * block, [0]))
    shape = op.Concat(op.Unsqueeze(count, [0]), op.Unsqueeze(block, [0]), axis=0)
    return op.ReduceMean(op.Reshape(whole, shape), [1], keepdims=0)


@script(default_opset=op)
def have_content(pixels: UINT8[...], true_height: INT64[...], true_width: INT64[...]) -> BOOL[...]:
    """(B, H, W, 3) to (B,): is there more than a quadratic surface and faint noise?"""
    large_enough = op.Min(true_height, true_width) >= MIN_SIDE
    height = op.Max(true_height, MIN_SIDE)  # so that there is something to compute, whose outcome does not count then
    width = op.Max(true_width, MIN_SIDE)
    # Which pixels are read.
    top = height / BORDER
    inside = height - 2 * top
    count = op.Min(inside, MAX_ROWS)
    numbers = op.Cast(op.Range(0, count, 1), to=DOUBLE_TYPE)
    turns = numbers * op.Constant(value=GOLDEN)
    shifts = turns - op.Floor(turns)
    spacing = op.Cast(inside, to=DOUBLE_TYPE) / op.Cast(count, to=DOUBLE_TYPE)
    rows = top + op.Cast(op.Floor(numbers * spacing + shifts * (spacing - op.Constant(value=ONE))), to=INT_TYPE)
    left = width / BORDER
    step = (width - 2 * left + MAX_COLUMNS - 1) / MAX_COLUMNS
    columns = left + step * op.Range(0, (width - 2 * left) / step, 1)
    starts = op.Cast(op.Floor(shifts * op.Cast(step, to=DOUBLE_TYPE)), to=INT_TYPE)
    places = op.Unsqueeze(rows * width + starts, [1]) + op.Unsqueeze(columns, [0])
    places = op.Min(places, true_height * true_width - 1)
    read = op.Transpose(op.Gather(op.Reshape(pixels, [0, -1, 3]), places, axis=1), perm=[0, 3, 1, 2])
    values = op.Cast(read, to=FLOAT_TYPE) / 255.0
    # Their means over blocks, and the quadratic surface that fits these best.
    fewest = op.Min(op.Size(rows), op.Size(columns))
    block = op.Where(fewest >= 8 * BLOCK, BLOCK, 2)
    side = op.Unsqueeze(block, [0])
    down = op.Unsqueeze(op.Size(rows) / block, [0])
    across = op.Unsqueeze(op.Size(columns) / block, [0])
    whole = op.Slice(values, [0, 0], op.Concat(down * side, across * side, axis=0), [2, 3])
    shape = op.Concat([0, 0], down, side, across, side, axis=0)
    blocks = op.ReduceMean(op.Reshape(whole, shape), [3, 5], keepdims=0)
    block_rows = block_means(rows, block)
    block_columns = block_means(columns, block)
    of_y = orthogonal(block_rows, block_rows)
    of_x = orthogonal(block_columns, block_columns)
    surface = op.MatMul(op.MatMul(of_y, blocks), op.Transpose(of_x)) * op.Constant(value=QUADRATIC)
    # Faint structure in many blocks, or a few pixels that stand out.
    faint = op.Abs(blocks - op.MatMul(op.MatMul(op.Transpose(of_y), surface), of_x))
    limit = WEAK_SUM / op.Cast(block, to=FLOAT_TYPE)
    share = op.ReduceMean(op.Cast(op.ReduceMax(faint, [1], keepdims=0) > limit, to=FLOAT_TYPE), [1, 2], keepdims=0)
    all_y = orthogonal(block_rows, op.Cast(rows, to=DOUBLE_TYPE))
    all_x = orthogonal(block_columns, op.Cast(columns, to=DOUBLE_TYPE))
    clear = op.Abs(values - op.MatMul(op.MatMul(op.Transpose(all_y), surface), all_x))
    outliers = op.ReduceSum(op.Cast(op.ReduceMax(clear, [1], keepdims=0) > STRONG, to=FLOAT_TYPE), [1, 2], keepdims=0)
    spread = op.ReduceMax(values, [2, 3], keepdims=0) - op.ReduceMin(values, [2, 3], keepdims=0)
    varied = op.ReduceMax(spread, [1], keepdims=0) > WEAK
    return op.And(large_enough, op.And(varied, op.Or(share > WEAK_SHARE, outliers > STRONG_COUNT)))


@script(default_opset=op)
def cut_to_ratio(pixels: UINT8[...]) -> UINT8[...]:
    """(B, H, W, 3); longer images are cut around their centre."""
    size = op.Shape(pixels, start=1, end=3)
    kept = op.Min(size, LONGEST * op.ReduceMin(size))
    start = (size - kept) / 2
    return op.Slice(pixels, start, start + kept, [1, 2])


@script(default_opset=op)
def resize_float(image: UINT8[...], height: INT64[...], width: INT64[...]) -> FLOAT[...]:
    """Along x, then along y, clipped after each."""
    pixels = op.Cast(image, to=FLOAT_TYPE) / 255.0
    wide = op.Resize(
        pixels, None, None, width, axes=[3], mode="cubic", cubic_coeff_a=-0.5, antialias=1, exclude_outside=1
    )
    wide = op.Clip(wide, 0.0, 1.0)
    resized = op.Resize(
        wide, None, None, height, axes=[2], mode="cubic", cubic_coeff_a=-0.5, antialias=1, exclude_outside=1
    )
    return op.Clip(resized, 0.0, 1.0)


@script(default_opset=op)
def resize_levels(image: UINT8[...], height: INT64[...], width: INT64[...]) -> FLOAT[...]:
    """The same in 8 bits, rounded after each pass, as Pillow does it."""
    wide = op.Resize(
        image, None, None, width, axes=[3], mode="cubic", cubic_coeff_a=-0.5, antialias=1, exclude_outside=1
    )
    resized = op.Resize(
        wide, None, None, height, axes=[2], mode="cubic", cubic_coeff_a=-0.5, antialias=1, exclude_outside=1
    )
    return op.Cast(resized, to=FLOAT_TYPE) / 255.0


@script(default_opset=op)
def center_offset(length: INT64[...], size: INT64[...]) -> INT64[...]:
    """Where the centre crop starts: () to (1,)."""
    return op.Reshape((length - size) / 2, [1])


@script(default_opset=op)
def tile_offsets(length: INT64[...], size: INT64[...]) -> INT64[...]:
    """Starts of evenly spread windows: () to (T,), T from 1 up."""
    count = op.Min((length + size - 1) / size, MAX_TILES)
    spare = op.Range(0, count, 1) * (length - size)
    gaps = op.Max(count - 1, 1)
    return op.Cast(op.Round(op.Cast(spare, to=DOUBLE_TYPE) / op.Cast(gaps, to=DOUBLE_TYPE)), to=INT_TYPE)


@script(default_opset=op)
def cut_windows(
    image: FLOAT[...], batch: INT64[...], tops: INT64[...], lefts: INT64[...], size: INT64[...]
) -> FLOAT[...]:
    """(B, 3, h, w) to (B, R * C, 3, size, size): the windows that start at R rows and C columns."""
    inside = op.Unsqueeze(op.Range(0, size, 1), [0])
    bands = op.Gather(image, op.Unsqueeze(tops, [1]) + inside, axis=2)
    windows = op.Transpose(op.Gather(bands, op.Unsqueeze(lefts, [1]) + inside, axis=4), perm=[0, 2, 4, 1, 3, 5])
    count = op.Reshape(op.Size(tops) * op.Size(lefts), [1])
    side = op.Reshape(size, [1])
    return op.Reshape(windows, op.Concat(batch, count, [3], side, side, axis=0), allowzero=1)


@script(default_opset=op)
def is_large(height: INT64[...], width: INT64[...], least: DOUBLE[...]) -> BOOL[...]:
    """Whether an image is seen at its own size too: the shorter side has at least so many pixels."""
    return op.Cast(op.Min(height, width), to=DOUBLE_TYPE) >= least


@script(default_opset=op)
def choose_grid(
    height: INT64[...], width: INT64[...], size: INT64[...], rows: INT64[...], columns: INT64[...]
) -> INT64[...]:
    """Which of the grids of `rows` by `columns` cells: the one of most cells, of these the squarest; () to (1,)."""
    fits = op.And(rows <= (height + size - 1) / size, columns <= (width + size - 1) / size)
    cells = op.Where(fits, rows * columns, 0)
    most = op.Equal(cells, op.ReduceMax(cells))
    ratio = (op.Cast(height, to=DOUBLE_TYPE) / op.Cast(rows, to=DOUBLE_TYPE)) / (
        op.Cast(width, to=DOUBLE_TYPE) / op.Cast(columns, to=DOUBLE_TYPE)
    )
    square = op.Where(most, op.Min(ratio, op.Constant(value=ONE) / ratio), op.Constant(value=ZERO))
    squarest = op.Equal(square, op.ReduceMax(square))
    return op.ArgMax(op.Where(squarest, 0 - op.Abs(rows - columns), -1000), axis=0)


@script(default_opset=op)
def centred(length: INT64[...], count: INT64[...], size: INT64[...]) -> INT64[...]:
    """Starts of windows in the centres of `count` equal parts: () to (count,)."""
    numbers = op.Range(0, count, 1)
    mirrored = count - 1 - numbers
    nearer = op.Min(numbers, mirrored)
    middle = op.Cast((2 * nearer + 1) * length, to=DOUBLE_TYPE) / op.Cast(2 * count, to=DOUBLE_TYPE)
    exact = middle - op.Cast(size, to=DOUBLE_TYPE) / op.Constant(value=TWO)
    start = op.Max(op.Cast(exact, to=INT_TYPE), 0)
    start = op.Where(op.Equal(numbers, mirrored), (length - size) / 2, start)
    return op.Where(numbers > mirrored, length - size - start, start)


@script(default_opset=op)
def combine(crop_scores: FLOAT[...], shares: FLOAT[...], found: BOOL[...]) -> FLOAT[...]:
    """(B * T,) scores of crops, (T,) what each counts for, and (B,) whether there was content: (B,) scores."""
    shape = op.Concat([-1], op.Shape(shares), axis=0)
    mean = op.ReduceSum(op.Reshape(crop_scores, shape) * shares, [1], keepdims=0)
    score = op.Where(found, mean, NO_CONTENT_SCORE)
    return score


@script(default_opset=op)
def cut_full_size(
    image: UINT8[...], batch: INT64[...], height: INT64[...], width: INT64[...], size: INT64[...],
    rows: INT64[...], columns: INT64[...], least: DOUBLE[...],
) -> FLOAT[...]:  # fmt: skip
    """(B, 3, H, W) to (B, T, 3, size, size): crops at the image's own size; T is 0 where it is not large."""
    grid = choose_grid(height, width, size, rows, columns)
    any_crops = op.Cast(is_large(height, width, least), to=INT_TYPE)
    down = op.Squeeze(op.Gather(rows, grid)) * any_crops
    across = op.Squeeze(op.Gather(columns, grid)) * any_crops
    cut = cut_windows(image, batch, centred(height, down, size), centred(width, across, size), size)
    return op.Cast(cut, to=FLOAT_TYPE) / 255.0


@script(default_opset=op)
def weigh_views(
    whole: INT64[...], crops: INT64[...], height: INT64[...], width: INT64[...], size: INT64[...], most: DOUBLE[...]
) -> FLOAT[...]:
    """What each view counts for: from the numbers of those of the whole image and of those at its own size."""
    ratio = op.Cast(op.Min(height, width), to=FLOAT_TYPE) / op.Cast(size, to=FLOAT_TYPE)
    grown = op.Min(FULL_SIZE_GROWTH * (ratio - 1.0), op.Cast(most, to=FLOAT_TYPE))
    share = grown * op.Cast(op.Min(crops, 1), to=FLOAT_TYPE)
    of_whole = op.Expand((1.0 - share) / op.Cast(whole, to=FLOAT_TYPE), whole)
    of_crops = op.Expand(share / op.Cast(op.Max(crops, 1), to=FLOAT_TYPE), crops)
    return op.Concat(of_whole, of_crops, axis=0)


def make_preparation(config: PreprocessConfig, coverage: Coverage) -> onnx.ModelProto:
    """A graph from `pixels`, (B, H, W, 3) uint8, to `crops` (B * T, 3, S, S), `shares` (T,) and `found` (B,)."""
    size = config.image_size
    resize = resize_levels if config.eight_bit else resize_float
    offsets = center_offset if coverage == "center" else tile_offsets
    shape_of_crops = helper.make_tensor("value", INT_TYPE, [4], [-1, 3, size, size])
    mean, std = (helper.make_tensor("value", FLOAT_TYPE, [3, 1, 1], values) for values in (config.mean, config.std))
    most, least = config.full_size_crops, _double(preprocess.FULL_SIZE_FROM.get(coverage, 0.0) * size)
    share = _double(preprocess.FULL_SIZE_SHARE.get(coverage, 0.0))
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    grid_rows, grid_columns = (
        helper.make_tensor("value", INT_TYPE, [len(grids)], side) for side in zip(*grids, strict=True)
    )

    @script(default_opset=op)
    def resize_and_cut(pixels: UINT8[...], batch: INT64[...]) -> FLOAT[...]:
        cut = cut_to_ratio(pixels)
        rows = op.Shape(cut, start=1, end=2)
        columns = op.Shape(cut, start=2, end=3)
        short = op.Min(rows, columns)
        side = op.Constant(value_int=size)
        height = side * rows / short
        width = side * columns / short
        # One image of all channels: ONNX Runtime 1.30 moves a Transpose behind a Resize, and confuses the axes then.
        channels = op.Reshape(op.Transpose(cut, perm=[0, 3, 1, 2]), op.Concat([1, -1], rows, columns, axis=0))
        resized = op.Reshape(resize(channels, height, width), op.Concat(batch, [3], height, width, axis=0))
        tops = offsets(op.Squeeze(height), side)
        lefts = offsets(op.Squeeze(width), side)
        return cut_windows(resized, batch, tops, lefts, side)

    @script(default_opset=op)
    def normalise(views: FLOAT[...]) -> FLOAT[...]:
        crops = op.Reshape(views, op.Constant(value=shape_of_crops))
        return (crops - op.Constant(value=mean)) / op.Constant(value=std)

    @script(default_opset=op)
    def prepare(pixels: UINT8[...]):
        views = resize_and_cut(pixels, op.Shape(pixels, start=0, end=1))
        crops = normalise(views)
        count = op.Shape(views, start=1, end=2)
        height = op.Squeeze(op.Shape(pixels, start=1, end=2))
        width = op.Squeeze(op.Shape(pixels, start=2, end=3))
        shares = weigh_views(count, count * 0, height, width, op.Constant(value_int=size), op.Constant(value=share))
        found = have_content(pixels, height, width)
        return crops, shares, found

    @script(default_opset=op)
    def prepare_full(pixels: UINT8[...]):
        batch = op.Shape(pixels, start=0, end=1)
        height = op.Squeeze(op.Shape(pixels, start=1, end=2))
        width = op.Squeeze(op.Shape(pixels, start=2, end=3))
        whole = resize_and_cut(pixels, batch)
        own = cut_full_size(
            op.Transpose(pixels, perm=[0, 3, 1, 2]), batch, height, width, op.Constant(value_int=size),
            op.Constant(value=grid_rows), op.Constant(value=grid_columns), op.Constant(value=least),
        )  # fmt: skip
        crops = normalise(op.Concat(whole, own, axis=1))
        shares = weigh_views(
            op.Shape(whole, start=1, end=2), op.Shape(own, start=1, end=2), height, width, op.Constant(value_int=size),
            op.Constant(value=share),
        )  # fmt: skip
        found = have_content(pixels, height, width)
        return crops, shares, found

    chosen = prepare_full if coverage in preprocess.FULL_SIZE_FROM else prepare
    return _simplified(
        chosen.to_model_proto(
            input_types=[UINT8["B", "H", "W", 3]], output_types=[FLOAT["N", 3, size, size], FLOAT["T"], BOOL["B"]]
        )
    )


def make_combination() -> onnx.ModelProto:
    """A graph from `crop_scores` (B * T,), `shares` (T,) and `found` (B,) to `score` (B,)."""
    return _simplified(
        combine.to_model_proto(input_types=[FLOAT["N"], FLOAT["T"], BOOL["B"]], output_types=[FLOAT["B"]])
    )


def _simplified(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Without functions and with constants folded, or ONNX Runtime warns of each that it cannot fold itself."""
    simple: onnx.ModelProto = optimize(graph)
    return simple
