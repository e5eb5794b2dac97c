from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rali_core.head import PrototypeHead, project, score_embeddings, weigh_prototypes


def tensors(seed: int, dim: int = 6, pca: int = 4, count: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "mean": normal(dim),
        "scale": normal(dim).abs() + 0.2,
        "components": normal(pca, dim),
        "prototypes": normal(count, pca),
        "scores": torch.rand(count, generator=generator, dtype=torch.float64),
        "logit_scale": torch.tensor(14.0, dtype=torch.float64),
    }


def score_by_hand(x: np.ndarray, t: dict[str, np.ndarray]) -> float:
    """The formula of the paper, one number after the other."""
    z = [sum((x[d] - t["mean"][d]) / abs(t["scale"][d]) * row[d] for d in range(len(x))) for row in t["components"]]
    length = sum(v * v for v in z) ** 0.5
    logits = []
    for mu in t["prototypes"]:
        norm = sum(v * v for v in mu) ** 0.5
        logits.append(sum(a * b for a, b in zip(z, mu, strict=True)) / length / norm * float(t["logit_scale"]))
    weights = np.exp(np.array(logits) - max(logits))
    return float((weights / weights.sum()) @ t["scores"])


def test_the_head_computes_the_papers_formula() -> None:
    values = tensors(1)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_hand = [score_by_hand(row.numpy(), {k: v.numpy() for k, v in values.items()}) for row in x]
    assert np.allclose(score_embeddings(x, **values).numpy(), by_hand, atol=1e-12)


def test_the_embedding_must_not_be_normalised_before() -> None:
    values = tensors(3)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 5
    normalised = torch.nn.functional.normalize(x, dim=-1)
    assert not torch.allclose(score_embeddings(x, **values), score_embeddings(normalised, **values), atol=1e-3)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 100))
def test_scores_lie_between_the_prototypes_scores_and_weights_sum_to_one(seed: int, logit_scale: float) -> None:
    values = {**tensors(seed), "logit_scale": torch.tensor(logit_scale, dtype=torch.float64)}
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    projected = project(x, values["mean"], values["scale"], values["components"])
    weights = weigh_prototypes(projected, values["prototypes"], values["logit_scale"])
    assert torch.allclose(weights.sum(dim=-1), torch.ones(3, dtype=torch.float64))
    scores = score_embeddings(x, **values)
    assert (scores >= values["scores"].min() - 1e-12).all()
    assert (scores <= values["scores"].max() + 1e-12).all()


def test_neither_length_nor_sign_that_the_formula_ignores_changes_the_score() -> None:
    values = tensors(5)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    expected = score_embeddings(x, **values)
    lengths = torch.tensor([[2.0], [0.1], [7.0], [1.0], [30.0]])
    changed = {**values, "prototypes": values["prototypes"] * lengths, "scale": -values["scale"]}
    assert torch.allclose(score_embeddings(x, **changed), expected)


def test_a_negative_logit_scale_counts_as_almost_zero() -> None:
    values = {**tensors(7), "logit_scale": torch.tensor(-3.0, dtype=torch.float64)}
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    assert torch.allclose(score_embeddings(x, **values), values["scores"].mean().expand(2), atol=1e-5)


def test_a_sixteen_bit_embedding_is_scored_in_float32() -> None:
    head = PrototypeHead(6, 4, 5)
    head.load_state_dict({name: tensor.float() for name, tensor in tensors(9).items()})
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(10)).half()
    with torch.autocast("cpu", torch.bfloat16):
        scores = head(x)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, head(x.float()))
    halved = PrototypeHead(6, 4, 5).half()
    halved.load_state_dict(head.state_dict())
    assert halved(x).dtype == torch.float32


def test_the_gradient_is_that_of_finite_differences() -> None:
    values = tensors(11)
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(12), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: score_embeddings(v, **values), (x,))
