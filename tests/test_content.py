"""What counts as content, and what blank images score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from rali_core import content
from rali_core.checkpoint import ModelInfo
from rali_core.constants import BAND_THRESHOLDS
from rali_core.content import MAX_COLUMNS, MAX_ROWS, NO_CONTENT_SCORE, has_content, have_content, is_no_content
from rali_core.model import RaliModel
from rali_core.score_cache import ScoreCache
from rali_core.scorer import RaliScorer, ScoreResult

SIZES = [(64, 64), (100, 71), (512, 512), (1000, 700), (2000, 64)]


def noise(size: tuple[int, int], sigma: float, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed)) * (sigma / 255)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def from_pil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def photograph(size: int = 400) -> torch.Tensor:
    """Blobs of many sizes, as photographs have them."""
    random = np.random.default_rng(3)
    image = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((size, size))
    fine = Image.fromarray(random.integers(0, 256, (90, 90, 3), dtype=np.uint8)).resize((size, size))
    return from_pil(Image.blend(image, fine, 0.3)) / 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("colour", [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0.1, 0.2, 0.9)])
def test_one_colour_is_no_content_with_noise_hot_pixels_and_a_border_too(
    size: tuple[int, int], colour: tuple[float, float, float]
) -> None:
    plain = torch.tensor(colour).view(3, 1, 1).expand(3, *size).clone()
    assert not has_content(plain)
    assert not has_content(to_uint8(plain))
    for sigma in (0.5, 1, 2):
        assert not has_content(to_uint8(plain + noise(size, sigma)))
    hot = plain.clone()
    for number in range(4):
        hot[:, 7 + 11 * number, 9 + 9 * number] = 1 - hot[:, 0, 0]
    assert not has_content(hot)
    framed = plain.clone()
    framed[:, : size[0] // 40 + 1] = 1 - framed[:, :1, :1]
    framed[:, :, -(size[1] // 40) - 1 :] = 1 - framed[:, -1:, :1]
    assert not has_content(framed)


@pytest.mark.parametrize("size", SIZES)
def test_smooth_ramps_are_no_content(size: tuple[int, int]) -> None:
    y, x = torch.linspace(0, 1, size[0])[:, None], torch.linspace(0, 1, size[1])[None]
    red, blue = torch.tensor([0.9, 0.1, 0.0]).view(3, 1, 1), torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1)
    for share in (x.expand(size), y.expand(size), (x + y) / 2, (1 - x + y) / 2, 1 - ((x - 0.5) ** 2 + (y - 0.5) ** 2)):
        assert not has_content(to_uint8(share.expand(3, -1, -1)))
        assert not has_content(to_uint8(red * share + blue * (1 - share) + noise(size, 1)))


def test_tiny_and_broken_images_are_no_content() -> None:
    for size in ((1, 1), (2, 3), (7, 300), (1, 5000)):
        assert not has_content(torch.rand(3, *size))
    assert has_content(torch.rand(3, 8, 8))
    assert not has_content(torch.full((3, 64, 64), float("nan")))
    assert not has_content(torch.full((3, 64, 64), float("inf")))
    with pytest.raises(ValueError, match=r"expected pixels of shape \(3, H, W\), got \(64, 64, 3\)"):
        has_content(torch.zeros(64, 64, 3))


@pytest.mark.parametrize("size", [(400, 400), (1024, 1024), (2480, 3508)])
def test_few_but_clear_marks_are_content(size: tuple[int, int]) -> None:
    page = Image.new("L", size, 255)
    ImageDraw.Draw(page).text(
        (size[0] // 5, size[1] // 3), "One line of text on a page", fill=0, font_size=size[0] // 50
    )
    drawing = Image.new("L", size, 255)
    ImageDraw.Draw(drawing).ellipse((size[0] // 5, size[1] // 3, size[0] // 2, size[1] // 2), outline=0, width=1)
    sky, random = Image.new("RGB", size, (3, 4, 9)), np.random.default_rng(1)
    for x, y in random.uniform(0.05, 0.95, (200, 2)) * size:
        ImageDraw.Draw(sky).ellipse((x, y, x + size[0] // 400, y + size[0] // 400), fill=(220, 220, 200))
    for image in (page, drawing, sky):
        assert has_content(from_pil(image))


def test_faint_photographs_are_content_and_lines_between_the_samples_are_seen() -> None:
    photo = photograph()
    for faint in (photo, photo * 0.06, photo * 0.08 + 0.6, 1 - photo * 0.08, photo.mean(0, keepdim=True)):
        assert has_content(to_uint8(faint))
    blurred = from_pil(Image.fromarray(to_uint8(photo).permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(12)))
    assert has_content(blurred)
    for period in (2, 4, 5, 8, 16):
        for axis in (1, 2):
            lines = torch.zeros(3, 1024, 1024)
            lines.index_fill_(axis, torch.arange(period - 1, 1024, period), 1.0)
            assert has_content(lines), (period, axis)


def test_the_answer_does_not_depend_on_type_layout_or_company() -> None:
    photo, blank = to_uint8(photograph()), torch.full((3, 400, 400), 7, dtype=torch.uint8)
    for image, expected in ((photo, True), (blank, False)):
        layout = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        kinds = (image / 255, (image / 255).double(), (image / 255).half(), (image / 255).bfloat16(), layout)
        assert {has_content(kind) for kind in kinds} == {expected}
    assert have_content(torch.stack([photo, blank, photo])) == [True, False, True]


def test_the_cost_does_not_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    empty = np.empty

    def note(shape: tuple[int, ...], **options: object) -> np.ndarray:
        read.append(int(np.prod(shape)))
        return empty(shape, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(np, "empty", note)
    for side in (1000, 4000):
        has_content(torch.zeros(3, side, side, dtype=torch.uint8))
    assert read
    assert max(read) <= 3 * MAX_ROWS * MAX_COLUMNS


def test_blank_images_get_the_lowest_band_with_the_reason(
    tiny_model: RaliModel, tiny_info: ModelInfo, tmp_path: Path
) -> None:
    good = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.new("RGBA", (50, 50), (10, 200, 30, 0)).save(tmp_path / "clear.png")
    images = [good, np.zeros((90, 80, 3)), torch.ones(3, 40, 40), tmp_path / "clear.png", Image.new("L", (3, 3), 9)]
    scorer = RaliScorer(tiny_model, tiny_info, device="cpu", batch_size=2, cache=ScoreCache())
    for _ in ("computed", "from the cache"):
        result = scorer.score(images)
        assert result.reasons == (None, *["no content"] * 4)
        assert result.scores[1:] == pytest.approx([NO_CONTENT_SCORE] * 4)
        assert result.bands[1:] == ("bad",) * 4
        assert result.errors == (None,) * 5
        assert result.ranking()[0] == 0
        assert [item.reason for item in scorer.stream(images)] == list(result.reasons)
    assert BAND_THRESHOLDS[0] > NO_CONTENT_SCORE
    assert [is_no_content(float(score)) for score in result.scores] == [False, True, True, True, True]
    alone = RaliScorer(tiny_model, tiny_info, device="cpu").score(good).scores[0]
    assert result.scores[0] == pytest.approx(alone, abs=1e-6)


def test_images_without_content_come_after_even_worse_scores() -> None:
    scores = np.array([NO_CONTENT_SCORE, 0.001, np.nan, 0.5], dtype=np.float32)
    result = ScoreResult(scores, ("",) * 4, scores, (None,) * 4, reasons=("no content", None, None, None))
    assert result.ranking() == [3, 1, 0]


def test_crops_made_elsewhere_can_be_without_content(tiny_scorer: RaliScorer) -> None:
    crops = tiny_scorer.model.preprocess(torch.rand(1, 3, 50, 50))[0]
    model_score, blank = tiny_scorer.score_crops([crops, None])
    assert (model_score.reason, blank.reason, blank.score) == (None, "no content", NO_CONTENT_SCORE)


def test_the_first_look_never_finds_content_that_the_second_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    y, x = np.mgrid[:300, :420] / 420
    images = []
    for number in range(60):
        waves = np.sin(2 * np.pi * (x * random.uniform(0, 40) + y * random.uniform(0, 40)))
        noise = random.normal(0, random.uniform(0, 4) / 255, (3, 300, 420))
        ramp = random.uniform(0.2, 0.8) + random.uniform(-0.3, 0.3) * x
        images.append(torch.from_numpy((ramp + 10 ** random.uniform(-3, -1) * waves * (number % 2) + noise).clip(0, 1)))
    quickly = have_content(torch.stack(images))
    monkeypatch.setattr(content, "COARSE_SHARE", 2.0)
    assert have_content(torch.stack(images)) == quickly
    assert 10 < sum(quickly) < 50
