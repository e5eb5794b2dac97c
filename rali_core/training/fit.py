"""Stage 3 of RALI: tune the prototypes and their scores end to end on the human scores.

Source: Zhao et al., ICLR 2026 (arXiv 2510.11369), section 4.3: mean squared error; prototypes, their scores and,
optionally, the PCA and the temperature are tuned. Here that is done on embeddings that are computed once, with
AdamW and a cosine schedule; the prototypes' scores are kept inside [0, 1], so that every score is. Our own additions,
all off by default: targets from a support vector regression, terms on the correlation, on the order of human scores and
on that of known distortions, and further data sets on scales of their own (`ract.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..head import PrototypeHead, project
from .compress import CompressedHead
from .evaluate import Report, measure_agreement
from .joint import ordered_losses
from .losses import plcc_loss, rank_loss
from .ordered import OrderedGroup

WEIGHT_DECAY = 1e-4
GROUPS_PER_STEP = 32
CROSS_VALIDATION_FOLDS = 5


Teacher = Literal["none", "svr"]
"""What the prototypes learn from: the human scores, or a support vector regression on these."""


@dataclass(frozen=True)
class OrderedEmbeddings:
    """Pictures at known levels of a distortion, as embeddings.

    Attributes:
        groups: G groups.
        embeddings: (G, 3, D) of the undistorted picture, the weak and the strong distortion.
        copies: (G, D) of the undistorted pictures' copies by `joint.steady_copy`; None where they are not needed.
    """

    groups: list[OrderedGroup]
    embeddings: Tensor
    copies: Tensor | None = None


def build_head(compressed: CompressedHead) -> PrototypeHead:
    """The head module with the tensors of stage 2."""
    prototypes, pca_dim = compressed.prototypes.shape
    head = PrototypeHead(len(compressed.mean), pca_dim, prototypes)
    values = {name: torch.tensor(getattr(compressed, name)) for name in head.state_dict()}
    head.load_state_dict(values)
    return head


def fit_head(
    head: PrototypeHead,
    embeddings: Tensor,
    scores: Tensor,
    *,
    validation: tuple[Tensor, NDArray[np.float64]],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    fit_projection: bool = False,
    plcc_weight: float = 0.0,
    rank_weight: float = 0.0,
    teacher: Teacher = "none",
    teacher_penalty: float = 0.3,
    teacher_epsilon: float = 0.03,
    teacher_gamma: float = 0.25,
    order_weight: float = 0.0,
    steady_weight: float = 0.0,
    held_out_weight: float = 0.0,
    weights: Tensor | None = None,
    ordered: OrderedEmbeddings | None = None,
    others: Sequence[tuple[Tensor, Tensor]] = (),
    others_weight: float = 0.0,
    seed: int,
    report: Report = print,
) -> PrototypeHead:
    """Tune the head in place.

    Args:
        head: From `build_head`.
        embeddings: (N, D) float32 embeddings of the training views.
        scores: (N,) float32 human scores in [0, 1].
        validation: ((M, D) embeddings, (M,) human scores), only reported unless `held_out_weight` says otherwise.
        epochs: Passes over the training views.
        batch_size: Views per step.
        learning_rate: Peak learning rate.
        fit_projection: Tune the PCA's components and scale too.
        plcc_weight: Weight of 1 - PLCC within the batch.
        rank_weight: Weight of the ranking term, `losses.rank_loss`.
        teacher: `"svr"` puts what `regress_scores` predicts for the training views in the place of their human scores.
        teacher_penalty: Its C.
        teacher_epsilon: Half the width of its tube, in units of the scores.
        teacher_gamma: Its gamma.
        order_weight: Weight of the term that asks for the order of known distortions, `joint.ordered_losses`.
        steady_weight: Weight of the mean absolute difference between the scores of undistorted pictures and of their
            mirror images saved as JPEG.
        held_out_weight: For a last head, when nothing is left to be chosen: the validation images are learnt too, in
            the teacher's regression each as much as that many training images. A tower has other embeddings of images
            that it was tuned on than of new ones; these are of the second kind. What is reported of the regression is
            then by five-fold cross-validation, what is reported of the prototypes is on images that they have learnt.
            Needs `teacher = "svr"`.
        weights: (N,) how much each training image counts in that regression; None for all alike. Needs it, too.
        ordered: Pictures for the terms of `order_weight` and `steady_weight`.
        others: ((N_i, D) embeddings, (N_i,) human scores) of further data sets, each on a scale of its own. Only
            correlations within each set are used, never a score itself.
        others_weight: Weight of the mean of 1 - PLCC over these sets, one batch of each per step.
        seed: Seed of the order.
        report: Called with a line of text per epoch.

    Returns:
        The same head.

    Raises:
        ValueError: There is a `held_out_weight`, or there are `weights`, but no such teacher.
    """
    if (held_out_weight or weights is not None) and teacher != "svr":
        raise ValueError(
            "held_out_weight and weights are weights in the teacher's regression: they need teacher = 'svr'"
        )
    if teacher == "svr":
        regression = Regression(penalty=teacher_penalty, epsilon=teacher_epsilon, gamma=teacher_gamma)
        if held_out_weight:
            human = torch.from_numpy(validation[1]).float()
            counts = torch.ones(len(scores)) if weights is None else weights
            predicted = _cross_validate(
                head, embeddings, scores, validation[0], human, regression, counts, held_out_weight
            )
            both, targets = torch.cat([embeddings, validation[0]]), torch.cat([scores, human])
            counts = torch.cat([counts, torch.full((len(human),), held_out_weight)])
            embeddings, scores = both, regress_scores(head, both, targets, both, regression, weights=counts)
        else:
            asked = torch.cat([embeddings, validation[0]])
            scores, predicted = regress_scores(head, embeddings, scores, asked, regression, weights=weights).split(
                [len(embeddings), len(validation[0])]
            )
        agreement = measure_agreement(predicted.numpy(), validation[1])
        kind = "five-fold " if held_out_weight else ""
        report(f"teacher: {kind}validation SRCC {agreement.srcc:.4f} PLCC {agreement.plcc:.4f} MAE {agreement.mae:.4f}")
    generator = torch.Generator().manual_seed(seed)
    head.components.requires_grad_(fit_projection)
    head.scale.requires_grad_(fit_projection)
    tuned = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(embeddings) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    head.train()
    for epoch in range(epochs):
        losses = []
        for index in torch.randperm(len(embeddings), generator=generator).split(batch_size):
            predicted, human = head(embeddings[index]), scores[index]
            loss = functional.mse_loss(predicted, human)
            losses.append(float(loss.detach()))
            if plcc_weight:
                loss = loss + plcc_weight * plcc_loss(predicted, human)
            if rank_weight:
                loss = loss + rank_weight * rank_loss(predicted, human)
            if ordered is not None and (order_weight or steady_weight):
                order, steady = _order_some(head, ordered, generator)
                loss = loss + order_weight * order + steady_weight * steady
            if others_weight and others:
                loss = loss + others_weight * _correlate_others(head, others, batch_size, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                head.scores.clamp_(0.0, 1.0)
        with torch.inference_mode():
            agreement = measure_agreement(head(validation[0]).numpy(), validation[1])
        report(
            f"fit epoch {epoch + 1}/{epochs}: MSE {np.mean(losses):.5f}, validation SRCC {agreement.srcc:.4f} "
            f"PLCC {agreement.plcc:.4f} MAE {agreement.mae:.4f}, tau {1 / float(head.logit_scale.detach()):.4f}"
        )
    return head.requires_grad_(True).eval()


@dataclass(frozen=True)
class Regression:
    """Settings of a support vector regression.

    Attributes:
        penalty: C, how much an error costs.
        epsilon: Errors up to this cost nothing.
        gamma: Of the Gaussian kernel.
    """

    penalty: float
    epsilon: float
    gamma: float


def regress_scores(
    head: PrototypeHead,
    embeddings: Tensor,
    scores: Tensor,
    others: Tensor,
    regression: Regression,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Predict human scores by a support vector regression on what the head's prototypes are compared with.

    Some human scores of a data set are far off (sharp photographs called poor, say), and prototypes follow them once
    they are fitted for long enough. This regression's loss grows linearly with such an error, not with its square, and
    its kernel, exp(-gamma |z - z'|^2) between unit vectors, hardly falls off for a small gamma: it is smooth.

    Source: Smola and Schoelkopf, "A tutorial on support vector regression", Statistics and Computing, 2004; learning
    from another model's predictions is distillation (Hinton et al., arXiv 1503.02531). scikit-learn does the work; its
    time grows with the square of N or more.

    Args:
        head: Its mean, scale and components make (N, P) unit vectors of the embeddings.
        embeddings: (N, D) of the images to learn from.
        scores: (N,) their human scores in [0, 1].
        others: (M, D) embeddings to predict the scores of.
        regression: Settings.
        weights: (N,) how much each image counts; None for all alike.

    Returns:
        (M,) predictions in [0, 1], float32.
    """
    from sklearn.svm import SVR

    with torch.no_grad():
        points, further = (
            project(values, head.mean, head.scale, head.components).numpy() for values in (embeddings, others)
        )
    machine = SVR(C=regression.penalty, epsilon=regression.epsilon, gamma=regression.gamma)
    machine.fit(points, scores.numpy(), sample_weight=None if weights is None else weights.numpy())
    return torch.from_numpy(machine.predict(further)).float().clamp(0, 1)


def _cross_validate(
    head: PrototypeHead,
    embeddings: Tensor,
    scores: Tensor,
    held_out: Tensor,
    held_out_scores: Tensor,
    regression: Regression,
    counts: Tensor,
    weight: float,
) -> Tensor:
    """(M,) predictions for held-out images, each by a regression that learnt the others and all training images."""
    from sklearn.model_selection import KFold

    predicted = torch.empty(len(held_out))
    folds = KFold(min(CROSS_VALIDATION_FOLDS, len(held_out)), shuffle=True, random_state=0)
    for learnt, asked in folds.split(held_out):
        weights = torch.cat([counts, torch.full((len(learnt),), weight)])
        predicted[asked] = regress_scores(
            head, torch.cat([embeddings, held_out[learnt]]), torch.cat([scores, held_out_scores[learnt]]),
            held_out[asked], regression, weights=weights,
        )  # fmt: skip
    return predicted


def _order_some(head: PrototypeHead, ordered: OrderedEmbeddings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    index = torch.randperm(len(ordered.groups), generator=generator)[:GROUPS_PER_STEP]
    scores = head(ordered.embeddings[index].flatten(0, 1)).view(-1, 3)
    order = ordered_losses(scores, [ordered.groups[i] for i in index.tolist()])[0]
    if ordered.copies is None:
        return order, order.new_zeros(())
    return order, (scores[:, 0] - head(ordered.copies[index])).abs().mean()


def _correlate_others(
    head: PrototypeHead, others: Sequence[tuple[Tensor, Tensor]], batch_size: int, generator: torch.Generator
) -> Tensor:
    terms = []
    for embeddings, scores in others:
        index = torch.randperm(len(embeddings), generator=generator)[:batch_size]
        terms.append(plcc_loss(head(embeddings[index]), scores[index]))
    return torch.stack(terms).mean()
