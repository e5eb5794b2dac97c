from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rali_core.training.distortion_triplets import DistortionTriplet
from rali_core.training.losses import (
    backward_in_chunks,
    consistency_loss,
    distortion_ranking_loss,
    info_nce,
    plcc_loss,
    retrieval_recall,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_with_one_description_each_it_is_clips_loss() -> None:
    images, texts, ids = random(6, 8), random(6, 8, seed=1), torch.arange(6)
    logits = 10 * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    expected = (functional.cross_entropy(logits, ids) + functional.cross_entropy(logits.T, ids)) / 2
    assert float(info_nce(images, texts, ids, ids, 10.0)) == pytest.approx(float(expected), abs=1e-6)


def test_all_descriptions_of_an_image_are_its_positives() -> None:
    images, texts = random(3, 8), random(5, 8, seed=1)
    image_ids, text_ids = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1, 1, 9])
    log_p = functional.log_softmax(
        5 * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T, dim=-1
    )
    from_images = -(log_p[0, :2].mean() + log_p[1, 2:4].mean()) / 2  # the third image has none and does not count
    log_q = functional.log_softmax(
        5 * functional.normalize(texts, dim=-1) @ functional.normalize(images, dim=-1).T, dim=-1
    )
    from_texts = -(log_q[0, 0] + log_q[1, 0] + log_q[2, 1] + log_q[3, 1]) / 4
    loss = info_nce(images, texts, image_ids, text_ids, 5.0)
    assert float(loss) == pytest.approx(float(from_images + from_texts) / 2, abs=1e-6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, E\) and \(T, E\) embeddings"):
        info_nce(random(3, 8), random(3, 7), torch.arange(3), torch.arange(3), 1.0)
    with pytest.raises(ValueError, match="expected one id per embedding"):
        info_nce(random(3, 8), random(3, 8), torch.arange(2), torch.arange(3), 1.0)


def test_recall_is_the_share_of_images_with_an_own_text_among_the_nearest() -> None:
    texts, ids = torch.eye(4), torch.arange(4)
    images = torch.tensor([[1.0, 0, 0, 0], [0.9, 0.5, 0, 0], [0, 0, 1, 0], [1, 0.9, 0.8, 0.1]])
    assert retrieval_recall(images, texts, ids, ids, k=1) == 0.5
    assert retrieval_recall(images, texts, ids, ids, k=2) == 0.75
    assert retrieval_recall(images, texts, ids, ids, k=9) == 1


@pytest.mark.parametrize("chunk", [2, 3, 6])
def test_chunks_give_the_gradient_of_the_whole_batch(chunk: int) -> None:
    layer, inputs = nn.Linear(4, 3), random(6, 4)

    def loss(embeddings: Tensor) -> Tensor:
        return (embeddings @ embeddings.T).logsumexp(dim=-1).mean()

    def encode(part: Tensor) -> Tensor:
        return layer(part)  # type: ignore[no-any-return]

    expected = loss(encode(inputs))
    (gradient,) = torch.autograd.grad(expected, [layer.weight])
    value = backward_in_chunks(encode, inputs.split(chunk), loss)
    assert float(value) == pytest.approx(float(expected.detach()), abs=1e-6)
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, gradient, atol=1e-6)


def test_the_plcc_loss_is_one_minus_the_correlation() -> None:
    x, y = random(20), random(20, seed=1)
    assert float(plcc_loss(x, y)) == pytest.approx(1 - np.corrcoef(x, y)[0, 1], abs=1e-5)
    assert float(plcc_loss(3 * y - 1, y)) == pytest.approx(0, abs=1e-5)


def test_the_ranking_loss_asks_for_a_margin_per_level() -> None:
    triplet = DistortionTriplet("x.png", True, "noise", 1, 4, seed=0)
    mild = DistortionTriplet("x.png", False, "warp", 1, 4, seed=0)
    ordered = torch.tensor([[0.9, 0.6, 0.3]])
    assert [float(term) for term in distortion_ranking_loss(ordered, [triplet])] == [0, 0]
    equal = torch.tensor([[0.7, 0.7, 0.7]])
    ranking, spread = distortion_ranking_loss(equal, [triplet])
    assert float(ranking) == pytest.approx((0.03 + 0.12 + 0.09) / 3)
    assert float(spread) == pytest.approx((0.7 - (0.8 - 0.4)) / 3), "level 4 may score 0.4 at most"
    assert float(distortion_ranking_loss(equal, [mild])[0]) == pytest.approx((0.03 + 0.12 + 0.09) / 6)
    low = distortion_ranking_loss(torch.tensor([[0.5, 0.3, 0.1]]), [triplet])[1]
    assert float(low) == pytest.approx(0.62 - 0.5), "a pristine image must not score low"


def test_consistency_is_the_mean_difference() -> None:
    images, copies = torch.tensor([0.5, 0.7]), torch.tensor([0.6, 0.4])
    assert float(consistency_loss(images, copies)) == pytest.approx((0.1 + 0.3) / 2)
    assert float(consistency_loss(images, copies, squared=True)) == pytest.approx((0.01 + 0.09) / 2)
