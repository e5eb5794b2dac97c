from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rali_core.labels import LabelledImage
from rali_core.training import distortion_triplets
from rali_core.training.distortion_triplets import (
    plan_triplets,
    render_blank,
    render_graphic,
    render_triplet,
)
from rali_core.training.distortions import DISTORTIONS, LEVELS, distort


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_every_stronger_level_is_farther_from_the_image(kind: str, photographs: dict[str, Image.Image]) -> None:
    image = photographs["coffee"]
    original = np.asarray(image, dtype=np.float64)
    errors = []
    for level in range(1, LEVELS + 1):
        changed = distort(image, kind, level, seed=1)  # type: ignore[arg-type]
        assert changed.size == image.size
        errors.append(((np.asarray(changed, dtype=np.float64) - original) ** 2).mean())
        assert np.array_equal(np.asarray(distort(image, kind, level, seed=1)), np.asarray(changed))  # type: ignore[arg-type]
    # Farther in mean squared error does not mean worse where brightness or sharpness overshoots and clips.
    assert errors == sorted(errors) or kind in {"upscaler", "checkerboard", "banding", "jpeg2000"}
    assert errors[-1] > errors[0] > 0


def test_unknown_distortions_are_refused() -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match=r"kind must be one of blur, lens_blur, .*, got 'magic'"):
        distort(image, "magic", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"level must lie in 1\.\.5, got 6"):
        distort(image, "blur", 6)


def test_triplets_use_every_type_alike_and_good_images_only(tmp_path: Path) -> None:
    rows = [LabelledImage(tmp_path / f"{n}.png", n / 10, "train", False) for n in range(10)]
    triplets = plan_triplets([tmp_path / "pristine.png"], rows, count=93, seed=0)
    assert all(sum(triplet.distortion == kind for triplet in triplets) == 3 for kind in DISTORTIONS)
    assert all(1 <= triplet.mild < triplet.severe <= LEVELS for triplet in triplets)
    used = {Path(triplet.source).name for triplet in triplets if not triplet.source.startswith("graphic:")}
    assert used == {"pristine.png", "7.png", "8.png", "9.png"}
    assert {triplet.pristine for triplet in triplets if "pristine" in triplet.source} == {True}
    assert plan_triplets([], [], count=5, seed=0)[0].source.startswith("graphic:")
    assert plan_triplets([], rows, count=5, seed=1) == plan_triplets([], rows, count=5, seed=1)


def test_a_rendered_triplet_gets_worse_from_image_to_image() -> None:
    triplets = plan_triplets([], [], count=31, seed=0)
    for triplet in triplets[:5]:
        first, mild, severe = render_triplet(triplet, 64).astype(np.float64)
        assert 0 < ((mild - first) ** 2).mean() < ((severe - first) ** 2).mean()


def test_a_triplet_is_saved_as_jpeg_as_a_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    triplets = plan_triplets([], [], count=40, seed=0)
    drawn = [render_triplet(triplet, 64) for triplet in triplets]
    monkeypatch.setattr(distortion_triplets, "RECODED_SHARE", 0.0)
    plain = [render_triplet(triplet, 64) for triplet in triplets]
    monkeypatch.setattr(distortion_triplets, "RECODED_SHARE", 1.0)
    saved = [render_triplet(triplet, 64) for triplet in triplets]
    for before, after in zip(plain, saved, strict=True):
        assert all((one != other).any() for one, other in zip(before, after, strict=True))
    as_they_are = sum(np.array_equal(one, other) for one, other in zip(drawn, plain, strict=True))
    as_jpeg = sum(np.array_equal(one, other) for one, other in zip(drawn, saved, strict=True))
    assert as_they_are + as_jpeg == 40
    assert 10 <= as_jpeg <= 30


def test_graphics_are_seeded() -> None:
    assert np.array_equal(np.asarray(render_graphic(3, size=64)), np.asarray(render_graphic(3, size=64)))
    assert not np.array_equal(np.asarray(render_graphic(3, size=64)), np.asarray(render_graphic(4, size=64)))


def test_blank_images_hold_nothing() -> None:
    assert [render_blank(seed, size=32).mean() for seed in (0, 4, 8)] == pytest.approx([0, 255, 128], abs=2)
    for seed in range(40):
        image = render_blank(seed, size=64).astype(np.float64)
        assert np.abs(np.diff(image, axis=0)).mean() < 6, "no edge and no texture but slight noise"
        assert np.array_equal(image, render_blank(seed, size=64))
