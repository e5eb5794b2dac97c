from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.checkpoint import ModelInfo
from rali_core.images import ImageError
from rali_core.model import RaliModel
from rali_core.score_cache import ScoreCache
from rali_core.scorer import RaliScorer


def random_images(count: int, *, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [
        random.integers(0, 256, (*random.integers(8, 90, size=2), 3), dtype=np.uint8) for _ in range(count)
    ]  # fmt: skip


def test_an_image_scores_the_same_alone_in_any_batch_and_in_any_order(
    tiny_model: RaliModel, tiny_info: ModelInfo
) -> None:
    images = random_images(11)
    alone = [float(RaliScorer(tiny_model, tiny_info, device="cpu").score(image).scores[0]) for image in images]
    assert np.ptp(alone) > 0.01, "a model that scores everything alike would pass below"
    for batch_size in (1, 3, 16):
        scorer = RaliScorer(tiny_model, tiny_info, device="cpu", batch_size=batch_size, coverage="full")
        together = scorer.score(images).scores
        backwards = scorer.score(images[::-1]).scores[::-1]
        full_alone = [float(scorer.score(image).scores[0]) for image in images]
        assert np.abs(together - backwards).max() <= 1e-5
        assert np.abs(together - full_alone).max() <= 1e-5
        centre = RaliScorer(tiny_model, tiny_info, device="cpu", batch_size=batch_size).score(images).scores
        assert np.abs(centre - alone).max() <= 1e-5


def test_one_image_of_each_kind_and_batches_of_them_are_taken(tiny_scorer: RaliScorer, tmp_path: Path) -> None:
    array = random_images(1)[0]
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = tiny_scorer.score(array).scores[0]
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), tensor, tensor / 255):
        result = tiny_scorer.score(image)
        assert len(result) == 1
        assert result.scores[0] == pytest.approx(expected, abs=1e-6)
    for batch in (
        np.stack([array, array]),
        torch.stack([tensor, tensor]),
        [array, tensor],
        (i for i in (array, array)),
    ):
        assert tiny_scorer.score(batch).scores == pytest.approx([expected] * 2, abs=1e-6)
    assert len(tiny_scorer.score([])) == 0


def test_the_result_says_what_the_scores_mean(tiny_scorer: RaliScorer) -> None:
    result = tiny_scorer.score(random_images(6))
    assert result.scores.shape == result.percentiles.shape == (6,)
    assert result.scores.dtype == np.float32
    assert result.ranking() == np.argsort(-result.scores, kind="stable").tolist()
    calibration = tiny_scorer.info.calibration
    assert calibration is not None
    assert result.bands == calibration.bands(result.scores)
    assert result.percentiles == pytest.approx(calibration.percentiles(result.scores))
    assert result.errors == (None,) * 6
    assert not result.stopped
    with pytest.raises(AttributeError):
        result.stopped = True  # type: ignore[misc]


def test_without_calibration_there_are_no_bands_and_percentiles_but_scores(tiny_model: RaliModel) -> None:
    result = RaliScorer(tiny_model, ModelInfo("bare", "MIT"), device="cpu").score(random_images(2))
    assert np.isfinite(result.scores).all()
    assert result.bands == ("", "")
    assert np.isnan(result.percentiles).all()


def test_the_first_unusable_image_raises_and_is_named(tiny_scorer: RaliScorer, tmp_path: Path) -> None:
    good = random_images(1)[0]
    with pytest.raises(ImageError, match=r"image 1: expected a numpy array of shape"):
        tiny_scorer.score([good, np.zeros((3, 3, 3, 3, 3))])
    with pytest.raises(FileNotFoundError, match=r"image 0: no such file: .*gone.png"):
        tiny_scorer.score([tmp_path / "gone.png", good])
    with pytest.raises(TypeError, match="image 0: expected a path, PIL image"):
        tiny_scorer.score([3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"expected an image .* or an iterable of images, got int"):
        tiny_scorer.score(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'record', got 'ignore'"):
        tiny_scorer.score([good], on_error="ignore")  # type: ignore[arg-type]


def test_recorded_errors_leave_the_other_scores_as_they_are(tiny_scorer: RaliScorer, tmp_path: Path) -> None:
    images = random_images(9)
    clean = tiny_scorer.score(images).scores
    mixed = [*images[:4], tmp_path / "gone.png", *images[4:], np.full((4, 4, 3), np.nan)]
    result = tiny_scorer.score(mixed, on_error="record")
    assert np.isnan(result.scores[[4, 10]]).all()
    assert "no such file" in str(result.errors[4])
    assert "NaN" in str(result.errors[10])
    assert np.delete(result.scores, [4, 10]) == pytest.approx(clean, abs=1e-5)
    assert 4 not in result.ranking()
    assert result.bands[4] == ""


def test_a_progress_callback_is_called_for_every_batch_and_can_stop(
    tiny_model: RaliModel, tiny_info: ModelInfo
) -> None:
    scorer = RaliScorer(tiny_model, tiny_info, device="cpu", batch_size=4)
    calls: list[tuple[int, int | None]] = []

    def note(done: int, total: int | None) -> bool:
        calls.append((done, total))
        return done < 8

    images = random_images(10)
    result = scorer.score(images, progress=note)
    assert calls == [(4, 10), (8, 10)]
    assert result.stopped
    assert len(result) == 8
    assert result.scores == pytest.approx(scorer.score(images[:8]).scores, abs=1e-6)
    calls.clear()
    scorer.score((image for image in images[:2]), progress=note)
    assert calls == [(2, None)]


def test_a_generator_is_read_lazily_and_its_images_are_freed(tiny_scorer: RaliScorer) -> None:
    read = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(60):
            read += 1
            yield np.zeros((500, 500, 3), dtype=np.uint8)  # 0.75 MB each

    stream = tiny_scorer.stream(images())
    next(stream)
    assert read == tiny_scorer.batch_size
    tracemalloc.start()
    rest = sum(1 for _ in stream)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (read, rest) == (60, 59)
    assert peak < 0.75e6 * 2 * tiny_scorer.batch_size, "60 images would be 45 MB"


def test_the_explained_parts_add_up_to_the_score(tiny_scorer: RaliScorer) -> None:
    image = random_images(1, seed=5)[0]
    score = float(tiny_scorer.score(image).scores[0])
    shares = tiny_scorer.explain(image, top=3)
    assert len(shares) == 4
    assert shares[-1].prototype == -1
    assert sum(share.contribution for share in shares) == pytest.approx(score, abs=1e-6)
    assert sum(share.weight for share in shares) == pytest.approx(1, abs=1e-6)
    assert all(share.contribution == pytest.approx(share.weight * share.score) for share in shares)
    assert [share.weight for share in shares[:3]] == sorted((share.weight for share in shares[:3]), reverse=True)
    everything = tiny_scorer.explain(image, top=500)
    assert [share.prototype for share in everything if share.prototype < 0] == []
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        tiny_scorer.explain(image, top=0)


def test_the_explained_parts_of_a_tiled_image_add_up_too(tiny_model: RaliModel, tiny_info: ModelInfo) -> None:
    scorer = RaliScorer(tiny_model, tiny_info, device="cpu", coverage="tiles")
    wide = np.random.default_rng(3).integers(0, 256, (32, 150, 3), dtype=np.uint8)
    parts = sum(share.contribution for share in scorer.explain(wide))
    assert parts == pytest.approx(float(scorer.score(wide).scores[0]), abs=1e-6)


def test_reduced_precision_stays_close(tiny_model: RaliModel, tiny_info: ModelInfo) -> None:
    images = random_images(8)
    exact = RaliScorer(tiny_model, tiny_info, device="cpu").score(images).scores
    rounded = RaliScorer(tiny_model, tiny_info, device="cpu", dtype="bfloat16").score(images).scores
    assert not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "toaster"}, "unknown device 'toaster'; examples: cpu, cuda"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available"),
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, auto, got 'int4'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"coverage": "all"}, "coverage must be one of center, tiles, adaptive, full, got 'all'"),
    ],
)
def test_unknown_options_are_refused(tiny_file: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaliScorer.from_pretrained(tiny_file, **options)  # type: ignore[arg-type]


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="no model 'rali-huge': expected 'rali-small' or the path"):
        RaliScorer.from_pretrained("rali-huge")


def test_scoring_neither_draws_nor_sets_global_state(tiny_scorer: RaliScorer) -> None:
    before = (torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    tiny_scorer.score(random_images(3))
    after = (torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_a_domain_that_is_told_changes_scores_and_cache_keys(telling_file: Path) -> None:
    cache, images = ScoreCache(), random_images(4)
    told = {
        domain: RaliScorer.from_pretrained(telling_file, device="cpu", cache=cache, domain=domain)
        for domain in (None, "photographs", "generated")
    }
    scores = {domain: scorer.score(images).scores for domain, scorer in told.items()}
    assert np.abs(scores[None] - scores["photographs"]).max() > 1e-3
    assert np.abs(scores["generated"] - scores["photographs"]).max() > 1e-3
    assert all((scorer.score(images).scores == scores[domain]).all() for domain, scorer in told.items()), "its own"
    whole = RaliScorer.from_pretrained(telling_file, device="cpu", domain="generated images")
    assert whole.score(images).scores == pytest.approx(scores["generated"], abs=1e-6)
    assert whole.cache_namespace() == told["generated"].cache_namespace()
    assert sum(part.contribution for part in whole.explain(images[0])) == pytest.approx(
        scores["generated"][0], abs=1e-5
    )
    with pytest.raises(ValueError, match="unknown domain 'drawings'; this model knows 'photographs', 'generated"):
        RaliScorer.from_pretrained(telling_file, device="cpu", domain="drawings")


def test_coverage_can_be_chosen_per_call_and_is_part_of_the_cache(tiny_model: RaliModel, tiny_info: ModelInfo) -> None:
    wide = np.random.default_rng(3).integers(0, 256, (32, 150, 3), dtype=np.uint8)
    scorer = RaliScorer(tiny_model, tiny_info, device="cpu", cache=ScoreCache())
    tiles = RaliScorer(tiny_model, tiny_info, device="cpu", coverage="tiles").score(wide).scores[0]
    centre = scorer.score(wide).scores[0]
    assert scorer.score(wide, coverage="tiles").scores[0] == pytest.approx(tiles, abs=1e-6)
    assert next(scorer.stream(wide, coverage="tiles")).score == pytest.approx(tiles, abs=1e-6)
    assert scorer.score(wide).scores[0] == centre != pytest.approx(tiles, abs=1e-4)
    assert scorer.coverage == "center"
    with pytest.raises(ValueError, match="coverage must be one of center, tiles, adaptive, full, got 'all'"):
        scorer.score(wide, coverage="all")  # type: ignore[arg-type]


def test_full_coverage_scores_the_whole_image_and_crops_of_its_own_pixels(
    tiny_model: RaliModel, tiny_info: ModelInfo
) -> None:
    image = torch.rand(3, 70, 150, generator=torch.Generator().manual_seed(4))
    scorer = RaliScorer(tiny_model, tiny_info, device="cpu", coverage="full", full_size_crops=2)
    views = scorer.score_views(image)
    whole, own = [part for part in views if not part.view.full_size], [part for part in views if part.view.full_size]
    assert len(own) == 2
    score = float(scorer.score(image).scores[0])
    of_whole = float(scorer.score(image, coverage="tiles").scores[0])
    share = 0.5 * (70 / 32 - 1) / 3  # of the crops; the image's shorter side is 70 pixels, the encoder's 32
    assert sum(part.share for part in own) == pytest.approx(share, abs=1e-6)
    assert sum(part.share * part.score for part in whole) == pytest.approx(of_whole * (1 - share), abs=1e-6)
    for part in own:
        size, view = tiny_model.preprocess_config.image_size, part.view
        crop = image[:, view.top : view.top + size, view.left : view.left + size]
        assert part.score == pytest.approx(float(scorer.score(crop, coverage="center").scores[0]), abs=1e-5)
    assert sum(part.share * part.score for part in views) == pytest.approx(score, abs=1e-6)
    assert tiny_model(image[None], coverage="full").item() == pytest.approx(score, abs=1e-6)
    assert sum(share.contribution for share in scorer.explain(image)) == pytest.approx(score, abs=1e-6)


class ShortOfMemory(torch.nn.Module):
    """An encoder on a device where only so many crops fit."""

    def __init__(self, encoder: torch.nn.Module, fits: int, error: Exception) -> None:
        super().__init__()
        self.encoder, self.fits, self.error = encoder, fits, error

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > self.fits:
            raise self.error
        result: torch.Tensor = self.encoder(inputs)
        return result


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("fits", [0, 1, 2, 5])
def test_a_batch_that_does_not_fit_is_retried_in_halves(tiny_file: Path, error: Exception, fits: int) -> None:
    images = random_images(7)
    scorer = RaliScorer.from_pretrained(tiny_file, device="cpu", batch_size=7, coverage="tiles")
    expected = scorer.score(images).scores
    scorer.model.encoder = ShortOfMemory(scorer.model.encoder, fits, error)
    result = scorer.score(images, on_error="record")
    if fits:
        assert result.scores == pytest.approx(expected, abs=1e-5)
        assert result.errors == (None,) * 7
    else:
        assert result.errors == ("not enough memory on cpu to score the image",) * 7
        with pytest.raises(ImageError, match="image 0: not enough memory on cpu"):
            scorer.score(images)


def test_other_errors_of_the_model_are_not_mistaken_for_out_of_memory(tiny_file: Path) -> None:
    scorer = RaliScorer.from_pretrained(tiny_file, device="cpu")
    scorer.model.encoder = ShortOfMemory(scorer.model.encoder, 0, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        scorer.score(random_images(2), on_error="record")


def test_a_score_that_is_not_finite_is_an_error_of_that_image(tiny_file: Path) -> None:
    scorer = RaliScorer.from_pretrained(tiny_file, device="cpu", cache=ScoreCache())
    with torch.no_grad():
        scorer.model.head.scores.fill_(float("nan"))
    result = scorer.score([*random_images(2), np.zeros((40, 40, 3))], on_error="record")
    assert result.errors == ("the model gave no finite score in float32",) * 2 + (None,)
    assert len(scorer.cache or ()) == 1


def test_results_before_an_error_are_yielded_and_cached(tiny_model: RaliModel, tiny_info: ModelInfo) -> None:
    good = random_images(6)
    scorer = RaliScorer(tiny_model, tiny_info, device="cpu", batch_size=4, cache=ScoreCache())
    done: list[int] = []
    stream = scorer.stream([*good[:5], np.full((30, 30, 3), np.nan), good[5]])
    with pytest.raises(ImageError, match="image 5: .*NaN"):
        done.extend(result.index for result in stream)
    assert done == [0, 1, 2, 3, 4]
    assert len(scorer.cache or ()) == 6

    def interrupted() -> Iterator[np.ndarray]:
        yield from random_images(4, seed=9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer.score(interrupted())
    assert len(scorer.cache or ()) == 10


def test_a_url_is_read_like_a_file_and_a_bad_one_is_one_images_error(
    tiny_scorer: RaliScorer, photographs: dict[str, Image.Image]
) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://scorer/coffee.png", "wb") as file:
        photographs["coffee"].save(file, "PNG")
    urls = ["memory://scorer/coffee.png", "memory://scorer/missing.png", "nope://a.png"]
    result = tiny_scorer.score([*urls, photographs["coffee"]], on_error="record")
    assert result.scores[0] == pytest.approx(result.scores[3], abs=1e-6)
    assert np.isnan(result.scores[1:3]).all()
    for url, error in zip(urls[1:], result.errors[1:3], strict=True):
        assert error is not None
        assert error.startswith(f"{url} cannot be read: ")
    assert tiny_scorer.score(urls[0]).scores[0] == pytest.approx(result.scores[0], abs=1e-6)
