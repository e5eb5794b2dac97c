"""Aligning the tower with descriptions: what it learns, how it resumes, what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rali_core.checkpoint import load_model
from rali_core.training.align import (
    AlignSettings,
    DescribedViews,
    align,
    alignment_panels,
    build_optimizer,
    make_projection,
    measure_recall,
    scale_learning_rate,
)
from rali_core.training.contrast import TextProjection
from rali_core.training.curves import draw_curves
from rali_core.training.tokens import UpperBlocks

SETTINGS = AlignSettings(
    steps=40, batch_size=24, chunk_size=8, texts_per_image=2, queue_size=16, learning_rate=1e-3, warmup_steps=5,
    projection_learning_rate=1e-2, validate_every=20, checkpoint_every=8,
)  # fmt: skip


def described(count: int, seed: int) -> DescribedViews:
    """Two views and two texts of each image; all come from the same three hidden numbers."""
    hidden = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    maps = torch.Generator().manual_seed(99)
    to_tokens, to_text = torch.randn(3, 64, generator=maps), torch.randn(3, 12, generator=maps)
    noise = torch.Generator().manual_seed(seed + 1)
    tokens = (hidden @ to_tokens)[:, None].expand(-1, 5, -1).repeat(2, 1, 1)
    tokens = tokens + 0.1 * torch.randn(tokens.shape, generator=noise)
    texts = (hidden @ to_text).repeat(2, 1) + 0.1 * torch.randn(2 * count, 12, generator=noise)
    ids = np.tile(np.arange(count), 2)
    return DescribedViews(tokens.numpy().astype(np.float16), ids, torch.nn.functional.normalize(texts, dim=-1), ids)


@pytest.fixture
def upper(tiny_timm_file: Path) -> UpperBlocks:
    return UpperBlocks(load_model(tiny_timm_file).model.encoder, 4)


def run(
    upper: UpperBlocks, folder: Path, settings: AlignSettings = SETTINGS, report: object = lambda _: None
) -> tuple[list[dict[str, float]], TextProjection]:
    projection = make_projection(64, 12, seed=0)
    unseen = described(30, seed=7)
    log = align(
        upper, projection, [described(40, seed=1), described(20, seed=2)], settings=settings, folder=folder,
        validate=lambda blocks, text: measure_recall(blocks, text, unseen), report=report,  # type: ignore[arg-type]
    )  # fmt: skip
    return log, projection


def test_alignment_raises_the_recall_on_unseen_images_and_lowers_the_loss(upper: UpperBlocks, tmp_path: Path) -> None:
    log, _ = run(upper, tmp_path)
    assert [entry["step"] for entry in log] == list(range(41))
    before, after = log[0], log[-1]
    assert before["recall@1"] < 0.15
    assert after["recall@1"] > 0.3
    assert after["recall@5"] >= after["recall@1"]
    assert np.mean([entry["loss"] for entry in log[-5:]]) < 0.7 * log[1]["loss"]
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == log
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1560, 456)


def test_an_interrupted_alignment_goes_on_to_the_same_curve_and_weights(tiny_timm_file: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_after_20(line: str) -> None:
        if line.startswith("align 20/40: loss"):
            raise Stop

    first, second, third = (UpperBlocks(load_model(tiny_timm_file).model.encoder, 4) for _ in range(3))
    whole, whole_projection = run(first, tmp_path / "whole")
    with pytest.raises(Stop):
        run(second, tmp_path / "parts", report=stop_after_20)
    lines: list[str] = []
    resumed, projection = run(third, tmp_path / "parts", report=lines.append)
    assert "align: going on after step 16" in lines
    assert resumed == whole
    assert (tmp_path / "parts" / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()
    for mine, other in ((third, first), (projection, whole_projection)):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"checkpoint\.pt belongs to a run with other settings"):
        run(third, tmp_path / "parts", replace(SETTINGS, learning_rate=1e-5))


def test_chunks_make_no_difference_but_of_rounding(tiny_timm_file: Path, tmp_path: Path) -> None:
    curves = []
    for chunk in (5, 24):
        blocks = UpperBlocks(load_model(tiny_timm_file).model.encoder, 4)
        settings = replace(SETTINGS, chunk_size=chunk, mixed_precision=False, steps=10)
        log, _ = run(blocks, tmp_path / str(chunk), settings)
        curves.append([entry["loss"] for entry in log[1:]])
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [scale_learning_rate(step, SETTINGS) for step in range(SETTINGS.steps)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.01


def test_the_last_block_learns_at_the_given_rate_and_earlier_ones_more_slowly(upper: UpperBlocks) -> None:
    settings = replace(SETTINGS, learning_rate=1.0, layer_decay=0.5, projection_learning_rate=9.0)
    model = torch.nn.ModuleDict({"upper": upper, "projection": make_projection(64, 12, seed=0)})
    assert sorted({group["lr"] for group in build_optimizer(model, upper, settings).param_groups}) == [0.5, 1.0, 9.0]


def test_curves_are_drawn_of_what_the_log_holds(tmp_path: Path) -> None:
    log = [{"step": step, "loss": 5 - step / 10, "srcc": step / 50} for step in range(1, 41)]
    draw_curves(log, tmp_path / "some.png", alignment_panels(log))
    with Image.open(tmp_path / "some.png") as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    coloured = (np.ptp(pixels, axis=-1) > 60).sum(axis=0)
    assert coloured[:520].sum() > 200
    assert coloured[520:1040].sum() == 0
    assert coloured[1040:].sum() > 200


def test_what_cannot_be_aligned_is_refused(upper: UpperBlocks, tmp_path: Path) -> None:
    one = described(1, seed=0)
    with pytest.raises(ValueError, match="at least two images with a description, got 1"):
        align(upper, make_projection(64, 12, seed=0), [one], settings=SETTINGS, folder=tmp_path)
    with pytest.raises(ValueError, match="2 views with 1 images"):
        DescribedViews(one.tokens, one.view_images[:1], one.texts, one.text_images)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        replace(SETTINGS, steps=0)
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        replace(SETTINGS, batch_size=1)
