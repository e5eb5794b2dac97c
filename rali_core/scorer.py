"""Load once, score anything: files, PIL images, arrays and tensors of any sizes, in batches, as a stream."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .checkpoint import ModelInfo, load_model
from .content import NO_CONTENT, NO_CONTENT_SCORE, has_content, is_no_content
from .devices import choose_device, fastest_precision, narrowest_precision
from .hub import find_model
from .images import ImageError, ImageInput, load_image, to_pixels
from .model import RaliModel
from .preprocess import COVERAGES, Coverage
from .selection import rank

if TYPE_CHECKING:
    from .score_cache import Key, ScoreCache

DtypeName = Literal["float32", "bfloat16", "float16", "auto"]
OnError = Literal["raise", "record"]
Images = ImageInput | Iterable[ImageInput]
Progress = Callable[[int, int | None], bool | None]
"""Called as progress(done, total); total is None where the length is not known. Returning False stops the run."""

DEFAULT_BATCH_SIZE = 8

MAX_DECODERS = 8
"""More threads than this do not decode pictures faster than a GPU scores them."""


@dataclass(frozen=True)
class ImageScore:
    """One image's score.

    Attributes:
        index: 0-based position in the input.
        score: In the model's range, by default 0..1, higher is better; NaN where `error` is set.
        band: bad, poor, fair, good or excellent; empty without a score.
        percentile: Percentage of the model's reference pictures that score lower; NaN without calibration.
        error: Why the image has no score, or None.
        reason: `"no content"` where the score is not the model's because the image is blank, see `content`; else None.
    """

    index: int
    score: float
    band: str
    percentile: float
    error: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ScoreResult:
    """The scores of several images, in input order.

    Attributes:
        scores: (N,) float32 in the model's range, by default 0..1, higher is better; NaN for an image with an error.
        bands: N names: bad, poor, fair, good, excellent; empty for an image with an error.
        percentiles: (N,) float32, 0..100; NaN where the model file has no calibration.
        errors: N texts, None for each image that was scored.
        stopped: True where the progress callback ended the run; N then counts only what was done.
        reasons: N texts; `"no content"` where the score is not the model's, because the image is blank (see
            `content`), None for all others.
    """

    scores: NDArray[np.float32]
    bands: tuple[str, ...]
    percentiles: NDArray[np.float32]
    errors: tuple[str | None, ...]
    stopped: bool = False
    reasons: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def ranking(self) -> list[int]:
        """0-based indexes of the scored images, best first; images without content come after all others."""
        order = rank(self.scores)
        return sorted(order, key=lambda index: bool(self.reasons) and self.reasons[index] == NO_CONTENT)


@dataclass(frozen=True)
class PrototypeShare:
    """What one prototype adds to a score.

    Attributes:
        prototype: 0-based index of the prototype; -1 for all that are not listed one by one.
        weight: Its softmax weight; the weights of all shares sum to 1.
        score: Its own score (for -1: the weighted mean of theirs).
        part: weight * score; the parts of all shares sum to the image's score.
    """

    prototype: int
    weight: float
    score: float
    part: float


class RaliScorer:
    """Scores images with one model.

    Images without content (blank frames, ramps, a few pixels) get `content.NO_CONTENT_SCORE` and the reason "no
    content" instead of the model's guess. Only `model` itself, which has gradients, is the model alone.

    Args:
        model: A model, in evaluation mode.
        info: What its file says about it.
        device: Where to compute; by default the GPU where there is one (CUDA, then Apple's), else the CPU.
        dtype: Arithmetic of the image tower; the head always computes in float32. `"auto"` takes 16 bits where this
            machine is faster in them, see `devices.fastest_precision`, so that scores differ between machines by
            their rounding.
        batch_size: Crops per forward pass.
        coverage: `"center"` or `"tiles"`; by default the model's own setting.
        cache: Remembers scores by content; may be shared.

    Attributes:
        dtype: The arithmetic in use, never `"auto"`.

    Raises:
        ValueError: An unknown device, dtype or coverage, or a batch size under 1.

    Example:
        >>> scorer = RaliScorer.from_pretrained()
        >>> result = scorer.score([Image.new("RGB", (64, 48)), np.zeros((32, 32, 3), dtype=np.uint8)])
        >>> result.scores.shape, len(result.bands)
        ((2,), 2)
    """

    def __init__(
        self,
        model: RaliModel,
        info: ModelInfo,
        *,
        device: str | torch.device | None = None,
        dtype: DtypeName = "float32",
        batch_size: int = DEFAULT_BATCH_SIZE,
        coverage: Coverage | None = None,
        cache: ScoreCache | None = None,
    ) -> None:
        _check_dtype(dtype)
        if coverage is not None and coverage not in COVERAGES:
            raise ValueError(f"coverage must be one of {', '.join(COVERAGES)}, got {coverage!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.device = choose_device(device)
        if dtype == "auto":
            dtype = fastest_precision(model.encoder, self.device)
        self.dtype: DtypeName = dtype
        self.model = model.to(self.device)
        self.model.encoder.to(getattr(torch, dtype))
        self.cache = cache
        self._model_key: str | None = None
        self.info = info
        self.batch_size = batch_size
        self.coverage: Coverage = coverage or model.coverage

    @classmethod
    def from_pretrained(
        cls,
        name_or_file: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: DtypeName = "float32",
        batch_size: int = DEFAULT_BATCH_SIZE,
        coverage: Coverage | None = None,
        cache: ScoreCache | None = None,
    ) -> RaliScorer:
        """Load a model file.

        Args:
            name_or_file: None for the bundled model, or a name or `.safetensors` file, see `hub.find_model`.
            device: As for the class.
            dtype: As for the class.
            batch_size: As for the class.
            coverage: As for the class.
            cache: As for the class.

        Raises:
            FileNotFoundError: No such model.
            CheckpointError: The file cannot be used; every problem is listed.
            ValueError: As for the class.
        """
        _check_dtype(dtype)
        path = find_model(name_or_file)
        if dtype == "auto":
            # In 16 bits first: where they win, which is usual on machines that have them, memory never held more.
            chosen = choose_device(device)
            narrowest = narrowest_precision(chosen)
            loaded = load_model(path, dtype=getattr(torch, narrowest))
            dtype = fastest_precision(loaded.model.encoder, chosen)
            loaded = loaded if dtype == narrowest else load_model(path)
        else:
            loaded = load_model(path, dtype=getattr(torch, dtype))
        return cls(
            loaded.model, loaded.info,
            device=device, dtype=dtype, batch_size=batch_size, coverage=coverage, cache=cache,
        )  # fmt: skip

    def score(self, images: Images, *, on_error: OnError = "raise", progress: Progress | None = None) -> ScoreResult:
        """Score one or many images.

        Args:
            images: One image, or any iterable of them, of mixed kinds and sizes: a path; a PIL image; a numpy array
                (H, W), (H, W, 3) or (H, W, 4), uint8 or float in [0, 1]; a torch tensor (3, H, W), uint8 or float
                in [0, 1]. A numpy array (N, H, W, C) and a tensor (N, C, H, W) are N images. A generator is read
                as it is scored: memory holds one batch.
            on_error: `"raise"` lets the first unusable image raise; `"record"` notes its error and goes on.
            progress: Called after each batch with (done, total or None); returning False stops.

        Returns:
            Scores in input order.

        Raises:
            TypeError, FileNotFoundError, ImageError: With `on_error="raise"`; the message names the image.
        """
        sequence = _iterate(images)
        total = 1 if _is_single(images) else len(images) if isinstance(images, Sized) else None
        results: list[ImageScore] = []
        stopped = False
        for batch in self._batches(sequence, on_error, ahead=_may_read_ahead(images)):
            results += batch
            if progress is not None and progress(len(results), total) is False:
                stopped = True
                break
        return ScoreResult(
            scores=np.array([result.score for result in results], dtype=np.float32),
            bands=tuple(result.band for result in results),
            percentiles=np.array([result.percentile for result in results], dtype=np.float32),
            errors=tuple(result.error for result in results),
            stopped=stopped,
            reasons=tuple(result.reason for result in results),
        )

    def stream(self, images: Images, *, on_error: OnError = "raise") -> Iterator[ImageScore]:
        """Score images one after the other as they come; arguments and errors as for `score`.

        Yields:
            One result per image, in input order, a batch at a time.
        """
        for batch in self._batches(_iterate(images), on_error, ahead=_may_read_ahead(images)):
            yield from batch

    def score_crops(self, crops: Sequence[Tensor | None]) -> list[ImageScore]:
        """Score images that were decoded and preprocessed elsewhere, as data-set scoring does in other processes.

        Args:
            crops: N images as `model.preprocess` makes them of one image: (T, 3, S, S), any T from 1 up; None for an
                image that `content.has_content` denied.

        Returns:
            N results in input order.
        """
        return self._score_batch([
            _Prepared(index, score=NO_CONTENT_SCORE) if crop is None else _Prepared(index, crop.to(self.device))
            for index, crop in enumerate(crops)
        ])  # fmt: skip

    def explain(self, image: ImageInput, *, top: int = 5) -> tuple[PrototypeShare, ...]:
        """Show which prototypes make an image's score.

        Args:
            image: One image, as for `score`.
            top: How many prototypes to list one by one, by weight.

        Returns:
            `top` shares, heaviest first, and one with `prototype=-1` for all others; their `part`s sum to the score.

        Raises:
            ValueError: `top` is less than 1.
            TypeError, FileNotFoundError, ImageError: As for `score`.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        with torch.inference_mode():
            crops = self._crops(to_pixels(image))
            weights = self.model.head.weights(self._embed(crops)).mean(dim=0).double().cpu().numpy()
        scores = self.model.head.scores.detach().double().cpu().numpy()
        order = np.argsort(-weights, kind="stable")
        shares = [
            PrototypeShare(int(i), float(weights[i]), float(scores[i]), float(weights[i] * scores[i]))
            for i in order[:top]
        ]
        rest = order[top:]
        if len(rest):
            weight, part = float(weights[rest].sum()), float(weights[rest] @ scores[rest])
            shares.append(PrototypeShare(-1, weight, part / weight if weight > 0 else float("nan"), part))
        return tuple(shares)

    def _batches(self, images: Iterator[ImageInput], on_error: OnError, *, ahead: bool) -> Iterator[list[ImageScore]]:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error must be 'raise' or 'record', got {on_error!r}")
        chunks = self._prepare_ahead(enumerate(images), on_error) if ahead else self._prepare_in_turn(images, on_error)
        for prepared in chunks:
            yield self._score_batch(prepared)

    def _prepare_in_turn(self, images: Iterator[ImageInput], on_error: OnError) -> Iterator[list[_Prepared]]:
        numbered = enumerate(images)
        while chunk := list(islice(numbered, self.batch_size)):
            prepared = [self._prepare_one(index, image, on_error) for index, image in chunk]
            chunk.clear()  # lets go of the pixels before the tower needs its memory
            yield prepared

    def _prepare_ahead(
        self, numbered: Iterator[tuple[int, ImageInput]], on_error: OnError
    ) -> Iterator[list[_Prepared]]:
        """The next batch is decoded and resized in threads while the tower works on this one."""
        waiting: deque[Future[_Prepared]] = deque()
        pool = ThreadPoolExecutor(_decoder_count(self.device), thread_name_prefix="rali-decode")

        def fill() -> None:
            for index, image in islice(numbered, 2 * self.batch_size - len(waiting)):
                waiting.append(pool.submit(self._prepare_one, index, image, on_error))

        try:
            fill()
            while waiting:
                prepared = [waiting.popleft().result() for _ in range(min(self.batch_size, len(waiting)))]
                fill()
                yield prepared
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare_one(self, index: int, image: ImageInput, on_error: OnError) -> _Prepared:
        try:
            with torch.inference_mode():
                key = None if self.cache is None else (self.cache_namespace(), _content_key(image))
                if self.cache is not None and key is not None:
                    known = self.cache.find([key])
                    if known:
                        return _Prepared(index, score=known[key])
                pixels = to_pixels(image)
                if not has_content(pixels):
                    return _Prepared(index, score=NO_CONTENT_SCORE, key=key)
                return _Prepared(index, self._crops(pixels), key=key)
        except (ImageError, OSError, TypeError) as error:
            if on_error == "raise":
                error.args = (f"image {index}: {error}",)
                raise
            return _Prepared(index, error=str(error))

    def _crops(self, pixels: Tensor) -> Tensor:
        """One image's (T, 3, S, S) crops on the model's device."""
        return self.model.preprocess(pixels.to(self.device).unsqueeze(0), coverage=self.coverage)[0]

    def cache_namespace(self) -> str:
        """Everything besides the image that a score depends on: the model's contents, arithmetic, device, coverage.

        Computed once; the model's weights must not change afterwards.
        """
        if self._model_key is None:
            from .score_cache import tensors_key

            self._model_key = f"{tensors_key(self.model.state_dict())}|{self.model.preprocess_config}"
        return f"content-1|{self._model_key}|{self.dtype}|{self.device.type}|{self.coverage}"

    def _embed(self, crops: Tensor) -> Tensor:
        return torch.cat([self.model.embed(part) for part in crops.split(self.batch_size)])

    def _score_batch(self, prepared: list[_Prepared]) -> list[ImageScore]:
        pending = [item for item in prepared if item.crops is not None]
        crops = [item.crops for item in pending if item.crops is not None]
        if crops:
            with torch.inference_mode():
                per_crop = self.model.head(self._embed(torch.cat(crops)))
                means = [part.mean() for part in per_crop.split([len(part) for part in crops])]
                for item, score in zip(pending, torch.stack(means).cpu().tolist(), strict=True):
                    item.score = score
        if self.cache is not None:
            self.cache.put({item.key: item.score for item in prepared if item.key and item.score is not None})
        scores = [item.score for item in prepared if item.score is not None]
        calibration = self.info.calibration
        bands = calibration.bands(scores) if calibration else ("",) * len(scores)
        percentiles = calibration.percentiles(scores).tolist() if calibration else [float("nan")] * len(scores)
        made = iter(zip(scores, bands, percentiles, strict=True))
        return [
            ImageScore(item.index, float("nan"), "", float("nan"), item.error)
            if item.error is not None
            else _with_reason(ImageScore(item.index, *next(made)))
            for item in prepared
        ]


def _with_reason(result: ImageScore) -> ImageScore:
    """A score that came out of the cache, too, tells by its value that there was no content."""
    return replace(result, reason=NO_CONTENT) if is_no_content(result.score) else result


@dataclass
class _Prepared:
    """An image on its way: crops to score, or a score that is known, or why there is neither."""

    index: int
    crops: Tensor | None = None
    key: Key | None = None
    score: float | None = None
    error: str | None = None


def _content_key(image: ImageInput) -> bytes:
    from .score_cache import content_key, file_key

    if isinstance(image, str | os.PathLike):
        if not os.path.isfile(image):  # the loader says what is wrong
            load_image(image)
        return file_key(image)
    return content_key(image if isinstance(image, Tensor) else to_pixels(image))


def _decoder_count(device: torch.device) -> int:
    """Threads that decode beside the tower: on a CPU it needs the processors itself."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_DECODERS, max(1, processors // 2 if device.type == "cpu" else processors))


def _may_read_ahead(images: object) -> bool:
    """Lists of files are there before they are asked for; a generator may be waiting for what it gave to be scored."""
    return (
        isinstance(images, list | tuple)
        and len(images) > 1
        and all(isinstance(image, str | os.PathLike) for image in images)
    )


def _is_single(images: object) -> bool:
    if isinstance(images, str | os.PathLike | Image.Image):
        return True
    return isinstance(images, np.ndarray | Tensor) and images.ndim < 4


def _iterate(images: Images) -> Iterator[ImageInput]:
    if _is_single(images):
        return iter([cast(ImageInput, images)])
    if not isinstance(images, Iterable):
        raise TypeError(
            "expected an image (path, PIL image, numpy array or torch tensor) or an iterable of them, "
            f"got {type(images).__name__}"
        )
    if isinstance(images, np.ndarray | Tensor) and images.ndim > 4:
        raise ImageError(f"expected at most 4 dimensions (a batch of images), got shape {tuple(images.shape)}")
    return iter(images)


def _check_dtype(dtype: str) -> None:
    if dtype not in get_args(DtypeName):
        raise ValueError(f"dtype must be one of {', '.join(get_args(DtypeName))}, got {dtype!r}")
