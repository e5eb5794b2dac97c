"""Load once, score anything: files, PIL images, arrays and tensors of any sizes, in batches, as a stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from .attributes import no_probes
from .checkpoint import ModelInfo, load_model
from .constants import DTYPE_NAMES, Coverage
from .constants import DtypeName as DtypeName
from .content import NO_CONTENT, NO_CONTENT_SCORE, has_content, is_no_content
from .devices import choose_device, fastest_precision, narrowest_precision, to_device, without_gradient
from .devices import is_out_of_memory as is_out_of_memory
from .explain import PrototypeShare as PrototypeShare
from .explain import ViewScore, share_score
from .hub import find_model
from .images import DEFAULT_LIMITS, ImageError, ImageInput, ReadLimits, open_if_url
from .lazy import renamed
from .model import RaliModel
from .preprocess import View, check_coverage, locate_views
from .reading import Images as Images
from .reading import (
    PixelBudget,
    count,
    digest_image,
    iterate,
    make_ahead,
    make_in_turn,
    may_read_ahead,
    read_image,
)
from .results import ImageAttributes as ImageAttributes
from .results import ImageScore as ImageScore
from .results import ScoreResult as ScoreResult

if TYPE_CHECKING:
    from .score_cache import Key, ScoreCache

OnError = Literal["raise", "record"]
ProgressCallback = Callable[[int, int | None], bool | None]
"""Called as progress(done, total); total is None if the length is not known. Returning False stops the run."""

__getattr__ = renamed(__name__, {"Progress": "ProgressCallback"})

DEFAULT_BATCH_SIZE = 8

RULES = "content-1, crops-2"
"""Part of the cache's keys: how images are read, what counts as content, and how much crops count. Change it when one
of these changes scores."""

_Made = TypeVar("_Made")


class RaliScorer:
    """Scores images with one model.

    Images without content (blank frames, ramps, a few pixels) get `content.NO_CONTENT_SCORE` and the reason "no
    content" instead of the model's score. `model` itself, which has gradients, is without this check.

    Args:
        model: A model, in evaluation mode.
        info: Its file's metadata.
        device: Where to compute; by default the GPU, if there is one (CUDA, then Apple's), else the CPU.
        dtype: Arithmetic of the image encoder; the head always computes in float32. `"auto"` takes 16 bits if this
            machine is faster in them, see `devices.fastest_precision`; scores then differ between machines by rounding.
        batch_size: Crops per forward pass.
        coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"`; by default the model's own setting.
        full_size_crops: For `"full"`: maximum number of crops at the image's own size; overrides the model's setting.
        cache: Remembers scores by content; may be shared. Each attribute takes an entry of its own.
        limits: Limits for image files: pixels, text chunks, pixels decoded at one time.
        attributes: Tell what is wrong with each image too, from the same embeddings; see `attributes.ImageAttributes`.
        domain: What kind of images these are, where it is known, and the model has such domains: `"photographs"` or
            `"generated images"` (or the beginning of one) of the bundled one, which then ranks them better. By default
            the model finds out for each image. Scores with and without are on one scale, but not the same. It is told
            to the model itself, `RaliModel.set_domain`, so that gradients see it too.

    Attributes:
        dtype: The arithmetic in use, never `"auto"`.

    Raises:
        ValueError: An unknown device, dtype, coverage or domain, a batch size or number of crops out of range, or
            attributes are asked of a model without probes.

    Examples:
        >>> scorer = RaliScorer.from_pretrained()
        >>> result = scorer.score([torch.rand(3, 48, 64), np.zeros((32, 32, 3), dtype=np.uint8)])
        >>> result.scores.shape, result.reasons
        ((2,), (None, 'no content'))
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
        full_size_crops: int | None = None,
        cache: ScoreCache | None = None,
        limits: ReadLimits = DEFAULT_LIMITS,
        attributes: bool = False,
        domain: str | None = None,
    ) -> None:
        _check_dtype(dtype)
        if coverage is not None:
            check_coverage(coverage)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if domain is not None:
            model.set_domain(domain)
        self.device = choose_device(device)
        if dtype == "auto":
            dtype = fastest_precision(model.encoder, self.device)
        self.dtype: DtypeName = dtype
        self.model = model.to(self.device)
        self.model.encoder.to(getattr(torch, dtype))
        if full_size_crops is not None:
            model.preprocess_config = replace(model.preprocess_config, full_size_crops=full_size_crops)
        self.cache = cache
        self._model_key: str | None = None
        self._probes_key: str | None = None
        self.info = info
        self.batch_size = batch_size
        self.coverage: Coverage = coverage or model.coverage
        self.limits = limits
        self._budget = PixelBudget(limits.pixels_in_flight)
        self.attributes = self._asks(attributes)

    @classmethod
    def from_pretrained(
        cls,
        name_or_file: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: DtypeName = "float32",
        batch_size: int = DEFAULT_BATCH_SIZE,
        coverage: Coverage | None = None,
        full_size_crops: int | None = None,
        cache: ScoreCache | None = None,
        limits: ReadLimits = DEFAULT_LIMITS,
        attributes: bool = False,
        domain: str | None = None,
    ) -> RaliScorer:
        """Load a model file.

        Args:
            name_or_file: None for the bundled model, or a name or `.safetensors` file, see `hub.find_model`.
            device: As for the class.
            dtype: As for the class.
            batch_size: As for the class.
            coverage: As for the class.
            full_size_crops: As for the class.
            cache: As for the class.
            limits: As for the class.
            attributes: As for the class.
            domain: As for the class.

        Raises:
            FileNotFoundError: No such model.
            CheckpointError: The file cannot be used; every problem is listed.
            ValueError: As for the class.
        """
        _check_dtype(dtype)
        path = find_model(name_or_file)
        if dtype == "auto":
            # In 16 bits first: if they win, which is usual where they are supported, memory never held more.
            chosen = choose_device(device)
            narrowest = narrowest_precision(chosen)
            loaded = load_model(path, dtype=getattr(torch, narrowest))
            dtype = fastest_precision(loaded.model.encoder, chosen)
            loaded = loaded if dtype == narrowest else load_model(path)
        else:
            loaded = load_model(path, dtype=getattr(torch, dtype))
        return cls(
            loaded.model, loaded.info,
            device=device, dtype=dtype, batch_size=batch_size, coverage=coverage, full_size_crops=full_size_crops,
            cache=cache, limits=limits, attributes=attributes, domain=domain,
        )  # fmt: skip

    def score(
        self,
        images: Images,
        *,
        coverage: Coverage | None = None,
        on_error: OnError = "raise",
        progress: ProgressCallback | None = None,
        attributes: bool | None = None,
    ) -> ScoreResult:
        """Score one or many images.

        What was scored before an error or an interrupt is in the cache, if there is one; `stream` also yields it.

        Args:
            images: One image, or any iterable of them, of mixed kinds and sizes: a path; the bytes of an image file,
                or one opened in binary mode; a PIL image; a numpy array (H, W), (H, W, 3) or (H, W, 4), uint8 or float
                in [0, 1]; a torch tensor (3, H, W), uint8 or float in [0, 1]. A numpy array (N, H, W, C) and a tensor
                (N, C, H, W) are N images; a folder is the image files in it, by name. A generator is read as it is
                scored: memory holds one batch.
            coverage: `"center"`, `"tiles"`, `"adaptive"` or `"full"` for this call; by default the scorer's.
            on_error: `"raise"` lets the first unusable image raise; `"record"` records its error and continues.
            progress: Called after each batch with (done, total or None); returning False stops.
            attributes: Whether to tell attributes in this call; by default as the scorer does.

        Returns:
            Scores in input order.

        Raises:
            TypeError, FileNotFoundError, ImageError: With `on_error="raise"`; the message names the image. ImageError
                also if a single image does not fit into memory.
            ValueError: Unknown `coverage` or `on_error`, or attributes of a model without probes.
        """
        total = count(images)
        results: list[ImageScore] = []
        stopped = False
        asked = self._asks(attributes)
        for batch in self._batches(images, coverage, on_error, asked):
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
            attributes=tuple(result.attributes for result in results) if asked else (),
        )

    def stream(
        self,
        images: Images,
        *,
        coverage: Coverage | None = None,
        on_error: OnError = "raise",
        attributes: bool | None = None,
    ) -> Iterator[ImageScore]:
        """Score images one by one, lazily; arguments and errors as for `score`.

        Yields:
            One result per image, in input order, a batch at a time.
        """
        for batch in self._batches(images, coverage, on_error, self._asks(attributes)):
            yield from batch

    def score_crops(
        self, crops: Sequence[Tensor | None], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[ImageScore]:
        """Score images that were decoded and preprocessed elsewhere, as data-set scoring does in other processes.

        Args:
            crops: N images as `model.preprocess` makes them of one image: (T, 3, S, S), any T from 1 up; None for an
                image without content, see `content.has_content`.
            sizes: (height, width) of each image in pixels, for the weights of its crops (see
                `preprocess.view_weights`); None weights all crops of an image equally.

        Returns:
            N results in input order.
        """
        prepared = []
        for index, crop in enumerate(crops):
            if crop is None:
                prepared.append(_Prepared(index, score=NO_CONTENT_SCORE))
                continue
            shares = None if sizes is None else self.model.view_weights(*sizes[index], coverage=self.coverage)
            prepared.append(_Prepared(index, to_device(crop, self.device), shares))
        return self._score_batch(prepared, self.attributes)

    def explain(self, image: ImageInput, *, top: int = 5) -> tuple[PrototypeShare, ...]:
        """Show which prototypes make an image's score.

        Args:
            image: One image, as for `score`.
            top: How many prototypes to list individually, by weight.

        Returns:
            `top` shares, heaviest first, and one with `prototype=-1` for all others; their contributions sum to the
            score.

        Raises:
            ValueError: `top` is less than 1.
            TypeError, FileNotFoundError, ImageError: As for `score`.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        with without_gradient(self.device):
            crops, shares = self._read(image, partial(self._crops, coverage=self.coverage))
            weights = (shares @ self.model.head.weights(self._embed(crops)).cpu().double()).numpy()
        scores = self.model.head.scores.detach().cpu().double().numpy()  # not every device has float64
        return share_score(weights, scores, top=top)

    def score_views(self, image: ImageInput) -> tuple[ViewScore, ...]:
        """Score the regions that an image's score is made of, with the scorer's coverage.

        Args:
            image: One image, as for `score`.

        Returns:
            Each region with its position in the image and, if the model has probes, what is wrong there; the sum of
            share * score is the score.

        Raises:
            TypeError, FileNotFoundError, ImageError: As for `score`.
        """

        def finish(pixels: Tensor) -> tuple[Tensor, Tensor, list[View]]:
            height, width = pixels.shape[-2:]
            places = locate_views(height, width, self.model.preprocess_config, coverage=self.coverage)
            return *self._crops(pixels, coverage=self.coverage), places

        with without_gradient(self.device):
            crops, shares, places = self._read(image, finish)
            embedding, probes = self._embed(crops), self.model.probes
            scores = self.model.head(embedding).cpu().tolist()
            told = [None] * len(places) if probes is None else map(probes.describe, probes(embedding).cpu().tolist())
        return tuple(map(ViewScore, places, scores, shares.tolist(), told))

    def cache_namespace(self, coverage: Coverage | None = None) -> str:
        """Everything besides the image that a score depends on: the model's contents, arithmetic, device, coverage.

        Computed once; the model's weights must not change afterwards.
        """
        if self._model_key is None:
            from .score_cache import tensors_key

            scoring = {name: value for name, value in self.model.state_dict().items() if not name.startswith("probes.")}
            self._model_key = f"{tensors_key(scoring)}|{self.model.preprocess_config}"
        told = self.model.head.domain_coordinate
        domain = "" if told is None else f"|{told}"
        return f"{RULES}|{self._model_key}{domain}|{self.dtype}|{self.device.type}|{coverage or self.coverage}"

    def cache_keys(self, digest: bytes, coverage: Coverage | None = None, *, attributes: bool = False) -> list[Key]:
        """Where an image's score stands in the cache and, where they are asked for, the values of its attributes.

        Args:
            digest: Of the image, see `score_cache.content_key`.
            coverage: As for `score`.
            attributes: Whether the attributes' keys follow, in the order of `model.attributes`.
        """
        space = self.cache_namespace(coverage)
        if not attributes or self.model.probes is None:
            return [(space, digest)]
        if self._probes_key is None:
            from .score_cache import tensors_key

            self._probes_key = tensors_key(self.model.probes.state_dict())
        names = [attribute.name for attribute in self.model.attributes]
        return [(space, digest), *((f"{space}|{self._probes_key}|{name}", digest) for name in names)]

    def find_cached(self, keys: Sequence[Key]) -> tuple[float, ImageAttributes | None] | None:
        """What the cache knows under one image's `cache_keys`; None where any of it is missing."""
        known = {} if self.cache is None else self.cache.find(keys[:1])
        if not known:
            return None
        score = known[keys[0]]
        if len(keys) == 1 or is_no_content(score) or self.cache is None or self.model.probes is None:
            return score, None
        values = self.cache.find(keys[1:])
        if len(values) < len(keys) - 1:
            return None
        return score, self.model.probes.describe([values[key] for key in keys[1:]])

    def _asks(self, attributes: bool | None) -> bool:
        if attributes and self.model.probes is None:
            raise no_probes(self.info.name)
        return self.attributes if attributes is None else attributes

    def _batches(
        self, images: Images, coverage: Coverage | None, on_error: OnError, attributes: bool
    ) -> Iterator[list[ImageScore]]:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error must be 'raise' or 'record', got {on_error!r}")
        if coverage is not None:
            check_coverage(coverage)
        prepare = partial(self._prepare, coverage=coverage or self.coverage, attributes=attributes)
        sequence = iterate(images)
        chunks = (
            make_ahead(prepare, sequence, self.batch_size, self.device)
            if may_read_ahead(images)
            else make_in_turn(prepare, sequence, self.batch_size)
        )
        for prepared in chunks:
            results = self._score_batch(prepared, attributes)  # and remembers them, whatever follows
            first = next((place for place, item in enumerate(prepared) if item.problem is not None), None)
            if on_error == "raise" and first is not None:
                if first:
                    yield results[:first]
                raise _named(prepared[first])
            yield results

    def _prepare(self, index: int, image: ImageInput, *, coverage: Coverage, attributes: bool) -> _Prepared:
        try:
            image = open_if_url(image)
            with without_gradient(self.device):
                keys: list[Key] = []
                if self.cache is not None:
                    keys = self.cache_keys(digest_image(image), coverage, attributes=attributes)
                    if known := self.find_cached(keys):
                        return _Prepared(index, score=known[0], attributes=known[1])
                views = self._read(image, partial(self._crops_with_content, coverage=coverage))
                if views is None:
                    return _Prepared(index, keys=keys, score=NO_CONTENT_SCORE)
                return _Prepared(index, *views, keys=keys)
        except (ImageError, OSError, TypeError) as error:
            return _Prepared(index, problem=error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return _Prepared(index, problem=ImageError("not enough memory to read the image"))

    def _read(self, image: ImageInput, finish: Callable[[Tensor], _Made]) -> _Made:
        return read_image(image, finish, limits=self.limits, budget=self._budget)

    def _crops_with_content(self, pixels: Tensor, *, coverage: Coverage) -> tuple[Tensor, Tensor] | None:
        return self._crops(pixels, coverage=coverage) if has_content(pixels) else None

    def _crops(self, pixels: Tensor, *, coverage: Coverage) -> tuple[Tensor, Tensor]:
        """One image's (T, 3, S, S) crops on the model's device, resized where the pixels are, and their (T,) shares."""
        crops = to_device(self.model.preprocess(pixels.unsqueeze(0), coverage=coverage)[0], self.device)
        return crops, self.model.view_weights(*pixels.shape[-2:], coverage=coverage).double()

    def _embed(self, crops: Tensor) -> Tensor:
        return torch.cat([self.model.embed(part) for part in crops.split(self.batch_size)])

    def _score_batch(self, prepared: list[_Prepared], attributes: bool) -> list[ImageScore]:
        self._compute([item for item in prepared if item.crops is not None], attributes)
        if self.cache is not None:
            self.cache.put({key: value for item in prepared for key, value in item.found()})
        scores = [item.score for item in prepared if item.score is not None]
        calibration = self.info.calibration
        bands = calibration.bands(scores) if calibration else ("",) * len(scores)
        percentiles = calibration.percentiles(scores).tolist() if calibration else [float("nan")] * len(scores)
        made = iter(zip(scores, bands, percentiles, strict=True))
        return [
            ImageScore(item.index, float("nan"), "", float("nan"), str(item.problem))
            if item.problem is not None
            else _with_reason(ImageScore(item.index, *next(made), attributes=item.attributes))
            for item in prepared
        ]

    def _compute(self, pending: list[_Prepared], attributes: bool) -> None:
        """Compute the scores; if memory runs out, with half as many at a time, down to one crop."""
        crops = [item.crops for item in pending if item.crops is not None]
        if not crops:
            return
        try:
            with without_gradient(self.device):
                judged = self._judge(torch.cat(crops), attributes).split([len(part) for part in crops])
                means = [item.average(part) for item, part in zip(pending, judged, strict=True)]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            means = None  # the error itself holds on to memory: retry after it is released
        if means is None:
            if len(pending) == 1:
                if not self._compute_by_crop(pending[0], crops[0], attributes):
                    pending[0].problem = ImageError(f"not enough memory on {self.device} to score the image")
                return
            half = len(pending) // 2
            self._compute(pending[:half], attributes)
            self._compute(pending[half:], attributes)
            return
        for item, values in zip(pending, means, strict=True):
            if np.isfinite(values[0]):
                self._note(item, values)
            else:
                hint = "" if self.dtype == "float32" else "; try float32"
                item.problem = ImageError(f"the model gave no finite score in {self.dtype}{hint}")

    def _compute_by_crop(self, item: _Prepared, crops: Tensor, attributes: bool) -> bool:
        if len(crops) == 1:
            return False
        try:
            with without_gradient(self.device):
                judged = torch.cat([self._judge(crop, attributes) for crop in crops.split(1)])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        self._note(item, item.average(judged))
        return True

    def _note(self, item: _Prepared, values: list[float]) -> None:
        item.score = values[0]
        if len(values) > 1 and self.model.probes is not None:
            item.attributes = self.model.probes.describe(values[1:])

    def _judge(self, crops: Tensor, attributes: bool) -> Tensor:
        """(T, 1 + A) scores and severities of (T, 3, S, S) crops, on the CPU; A is 0 without attributes."""
        embedding = self._embed(crops)
        scores = self.model.head(embedding).unsqueeze(1)
        probes = self.model.probes if attributes else None
        return (scores if probes is None else torch.cat([scores, probes(embedding)], dim=1)).cpu()


def _named(item: _Prepared) -> Exception:
    assert item.problem is not None
    item.problem.args = (f"image {item.index}: {item.problem}",)
    return item.problem


def _with_reason(result: ImageScore) -> ImageScore:
    """The value of a score, also of a cached one, shows that there was no content."""
    return replace(result, reason=NO_CONTENT) if is_no_content(result.score) else result


@dataclass
class _Prepared:
    """An image in progress: crops to score with their weights, or a known score, or why there is none."""

    index: int
    crops: Tensor | None = None
    shares: Tensor | None = None
    keys: Sequence[Key] = ()
    score: float | None = None
    problem: Exception | None = None
    attributes: ImageAttributes | None = None

    def found(self) -> Iterator[tuple[Key, float]]:
        """What is to be remembered of it."""
        if self.score is not None and self.keys:
            yield self.keys[0], self.score
            yield from zip(self.keys[1:], self.attributes.values.values() if self.attributes else (), strict=False)

    def average(self, values: Tensor) -> list[float]:
        """The image's score and severities from its crops' (T, 1 + A)."""
        columns = values.T.contiguous()
        return [float(each.mean() if self.shares is None else each.double() @ self.shares.double()) for each in columns]


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPE_NAMES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPE_NAMES)}, got {dtype!r}")
