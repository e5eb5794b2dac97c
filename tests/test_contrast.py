from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rali_core.training.contrast import EmbeddingQueue, TextProjection, backward_in_chunks, info_nce, retrieval_recall


def pairs(count: int, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return images, texts, torch.arange(count)


def test_one_description_each_is_clips_loss() -> None:
    images, texts, ids = pairs(5)
    logits = 10 * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    expected = (functional.cross_entropy(logits, ids) + functional.cross_entropy(logits.T, ids)) / 2
    assert info_nce(images, texts, ids, ids, 10.0) == pytest.approx(float(expected), abs=1e-12)


def test_several_descriptions_of_one_image_all_count_as_its_own() -> None:
    images, texts, ids = pairs(4)
    both, both_ids = torch.cat([texts, pairs(4, seed=1)[1]]), torch.cat([ids, ids])
    similar = 10 * functional.normalize(images, dim=-1) @ functional.normalize(both, dim=-1).T
    from_images = -(similar.log_softmax(1)[ids, ids] + similar.log_softmax(1)[ids, ids + 4]).mean() / 2
    from_texts = functional.cross_entropy(similar.T, both_ids)
    assert info_nce(images, both, ids, both_ids, 10.0) == pytest.approx(float(from_images + from_texts) / 2, abs=1e-12)


def test_a_queue_gives_the_rows_of_the_plain_loss_over_everything() -> None:
    images, texts, ids = pairs(7)
    queued = info_nce(
        images[:3], texts[:3], ids[:3], ids[:3], 10.0,
        queued_images=(images[3:], ids[3:]), queued_texts=(texts[3:], ids[3:]),
    )  # fmt: skip
    logits = 10 * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    expected = (functional.cross_entropy(logits[:3], ids[:3]) + functional.cross_entropy(logits.T[:3], ids[:3])) / 2
    assert float(queued) == pytest.approx(float(expected), abs=1e-12)


def test_the_queue_keeps_the_newest_without_gradient() -> None:
    queue = EmbeddingQueue(3)
    assert queue.content is None
    queue.push(torch.ones(2, 4, requires_grad=True), torch.tensor([1, 2]))
    queue.push(torch.zeros(2, 4), torch.tensor([3, 4]))
    assert queue.content is not None
    embeddings, ids = queue.content
    assert ids.tolist() == [2, 3, 4]
    assert not embeddings.requires_grad
    assert embeddings[:, 0].tolist() == [1, 0, 0]


def test_cached_gradients_are_those_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 6)).double()
    projection = TextProjection(6, 6).double()
    inputs, ids = torch.randn(10, 5, dtype=torch.float64), torch.arange(10)
    texts = torch.randn(10, 6, dtype=torch.float64)

    def loss(embeddings: Tensor) -> Tensor:
        return info_nce(projection.linear(embeddings), texts, ids, ids, projection.logit_scale)

    plain = loss(encoder(inputs))
    plain.backward()
    parameters = [*encoder.parameters(), *projection.parameters()]
    expected = [parameter.grad.clone() for parameter in parameters]  # type: ignore[union-attr]
    for parameter in parameters:
        parameter.grad = None
    for size in (3, 10):
        value = backward_in_chunks(encoder, inputs.split(size), loss)
        assert float(value) == pytest.approx(float(plain.detach()), abs=1e-12)
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, atol=1e-12)
            parameter.grad = None


def test_recall_counts_images_whose_own_text_is_near() -> None:
    images = torch.eye(4)
    texts = torch.eye(4)[[1, 0, 2, 3]] + 0.4 * torch.eye(4)
    ids = torch.arange(4)
    assert retrieval_recall(images, texts, ids, ids, k=1) == 0.5
    assert retrieval_recall(images, texts, ids, ids, k=2) == 1.0


def test_embeddings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, E\) and \(T, E\) embeddings, got \(2, 3\) and \(2, 4\)"):
        info_nce(torch.ones(2, 3), torch.ones(2, 4), torch.arange(2), torch.arange(2), 1.0)
    with pytest.raises(ValueError, match="expected one id per embedding"):
        info_nce(torch.ones(2, 3), torch.ones(2, 3), torch.arange(3), torch.arange(2), 1.0)
