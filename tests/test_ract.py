"""Several data sets on different scales: what their texts do to the tower, and what their scores never do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from rali_core.checkpoint import load_model
from rali_core.training.align import AlignSettings, DescribedViews, align, make_projection
from rali_core.training.config import CompressConfig, FitConfig
from rali_core.training.ract import Domain, compress_domains, fit_domains, make_validation, measure_domains
from rali_core.training.tokens import UpperBlocks

COMPRESS = CompressConfig(pca_dim=16, bins=8, prototypes=20)
FIT = FitConfig(epochs=8, batch_size=16, learning_rate=3e-3)
ALIGN = AlignSettings(
    steps=30, batch_size=32, chunk_size=32, learning_rate=1e-3, warmup_steps=4, projection_learning_rate=1e-2,
    validate_every=30, checkpoint_every=30,
)  # fmt: skip


def views(quality: np.ndarray, style: float, seed: int) -> DescribedViews:
    """Pictures of one style whose tokens show their quality faintly; their texts tell it plainly, and the style not."""
    generator, maps = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    to_tokens, to_style, to_text = (torch.randn(1, size, generator=maps) for size in (64, 64, 12))
    hidden = torch.from_numpy(quality).float()[:, None] * 2 - 1
    tokens = (0.7 * hidden @ to_tokens + style * to_style)[:, None].expand(-1, 5, -1)
    tokens = tokens + 0.7 * torch.randn(tokens.shape, generator=generator)
    texts = hidden @ to_text + 1.5 * torch.ones(12) + 0.1 * torch.randn(len(quality), 12, generator=generator)
    ids = np.arange(len(quality))
    return DescribedViews(tokens.numpy().astype(np.float16), ids, torch.nn.functional.normalize(texts, dim=-1), ids)


def domain(name: str, *, style: float, seed: int) -> tuple[Domain, np.ndarray]:
    """A set of 60 training and 40 validation images, and the quality of the latter."""
    random = np.random.default_rng(seed)
    quality, unseen = random.random(60), random.random(40)
    made = Domain(
        name, views(quality, style, seed), quality, views(unseen, style, seed + 50), unseen, np.arange(60), name
    )
    return made, unseen


@pytest.fixture
def upper(tiny_timm_file: Path) -> UpperBlocks:
    return UpperBlocks(load_model(tiny_timm_file).model.encoder, 5).eval()


def head_of(upper: UpperBlocks, domains: list[Domain], folder: Path, others_weight: float = 0.0) -> torch.nn.Module:
    folder.mkdir(exist_ok=True)
    quiet = {"folder": folder, "seed": 0, "report": lambda _: None}
    compressed = compress_domains(upper, domains, config=COMPRESS, **quiet)  # type: ignore[arg-type]
    return fit_domains(upper, compressed, domains, config=FIT, others_weight=others_weight, **quiet)  # type: ignore[arg-type]


def test_two_sets_on_different_scales_share_a_head_that_keeps_both_orders(upper: UpperBlocks, tmp_path: Path) -> None:
    reference, _ = domain("reference", style=0.0, seed=1)
    sea, quality = domain("sea", style=3.0, seed=2)
    # The other set's people give notes from 0.6 to 0.7 and never the best or the worst.
    sea = replace(sea, scores=0.6 + 0.1 * sea.scores, validation_scores=0.6 + 0.1 * quality)
    both = [reference, sea]
    before = measure_domains(upper, head_of(upper, both, tmp_path / "before"), both)
    validate = make_validation(both, config=COMPRESS, probe_images=60, images=30, seed=0)
    log = align(
        upper, make_projection(64, 12, seed=0), [part.training for part in both], settings=ALIGN,
        folder=tmp_path / "align", validate=validate, report=lambda _: None,
    )  # fmt: skip
    assert log[-1]["recall@5"] > log[0]["recall@5"]
    assert log[-1]["sea recall@5"] > log[0]["sea recall@5"]
    head = head_of(upper, both, tmp_path / "after")
    after = measure_domains(upper, head, both)
    assert after["sea"]["srcc"] > before["sea"]["srcc"]
    assert min(after["reference"]["srcc"], after["sea"]["srcc"]) > 0.8
    assert "mae" in after["reference"]
    assert "mae" not in after["sea"]
    with torch.inference_mode():
        predicted = head(sea.embed_validation(upper)).numpy()
    assert spearmanr(predicted, quality).statistic == pytest.approx(after["sea"]["srcc"], abs=1e-6)
    assert np.ptp(predicted) > 0.4, "the reference's scale, not the other's narrow one"


def test_other_sets_scores_are_left_alone_or_enter_by_correlation_only(upper: UpperBlocks, tmp_path: Path) -> None:
    reference, _ = domain("reference", style=0.0, seed=1)
    sea, _ = domain("sea", style=3.0, seed=2)
    turned = replace(sea, scores=1 - sea.scores)
    stretched = replace(sea, scores=0.5 + 0.25 * sea.scores)

    def state(other: Domain, weight: float) -> torch.Tensor:
        return head_of(upper, [reference, other], tmp_path, weight).prototypes.detach()

    assert torch.equal(state(sea, 0.0), state(turned, 0.0))
    assert torch.allclose(state(sea, 1.0), state(stretched, 1.0), atol=1e-4)
    assert not torch.allclose(state(sea, 1.0), state(turned, 1.0), atol=1e-3)
