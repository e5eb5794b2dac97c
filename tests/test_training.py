from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from rali_core.checkpoint import load_model
from rali_core.head import PrototypeHead
from rali_core.training.backbones import load_backbone
from rali_core.training.compress import compress
from rali_core.training.data import read_labels, split_validation
from rali_core.training.distortions import DISTORTIONS, LEVELS, distort
from rali_core.training.evaluate import draw_scatter, measure_agreement
from rali_core.training.fit import OrderedEmbeddings, Regression, Teacher, build_head, fit_head, regress_scores
from rali_core.training.joint import JointSettings
from rali_core.training.joint import _build_optimizer as joint_optimizer
from rali_core.training.joint import _Upper as Upper
from rali_core.training.losses import plcc_loss, rank_loss
from rali_core.training.ordered import OrderedGroup
from rali_core.training.tokens import View, plan_views, render_view

# ---------------------------------------------------------------------------------------------- data


def test_labels_are_read_with_their_split_and_scale(labels: Path) -> None:
    rows = read_labels(labels)
    assert len(rows) == 96
    assert sum(row.split == "test" for row in rows) == 12
    assert [row.near_duplicate for row in rows].count(True) == 1
    doubled = labels.with_name("doubled.csv")
    doubled.write_text("image,mos\n" + "\n".join(f"{row.path.name},{row.score * 4 + 1}" for row in rows))
    again = read_labels(doubled, score_range=(1, 5))
    assert [row.score for row in again] == pytest.approx([row.score for row in rows])
    assert {row.split for row in again} == {"train"}


def test_all_unusable_rows_are_listed(labels: Path) -> None:
    bad = labels.with_name("bad.csv")
    bad.write_text("image,mos\n0.png,0.5\n1.png,many\n2.png,1.5\ngone.png,0.5\n")
    with pytest.raises(ValueError, match=r"3 unusable row\(s\)") as caught:
        read_labels(bad)
    for part in ("line 3: mos 'many' is not a number in [0, 1]", "line 4: mos '1.5'", "line 5: no file"):
        assert part in str(caught.value)
    bad.write_text("image,mos\ngone.png,0.5\n")
    with pytest.raises(FileNotFoundError, match="line 2: no file"):
        read_labels(bad)
    bad.write_text("picture,mos\n0.png,0.5\n")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) image"):
        read_labels(bad)
    bad.write_text("image,mos\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_labels(bad)
    with pytest.raises(ValueError, match="worst < best"):
        read_labels(labels, score_range=(1, 1))


def test_validation_is_a_seeded_part_of_the_training_rows_only(labels: Path) -> None:
    rows = read_labels(labels)
    training, validation = split_validation(rows, fraction=0.25, seed=3)
    assert (len(training), len(validation)) == (63, 21)
    assert {row.path for row in training}.isdisjoint(row.path for row in validation)
    assert all(row.split == "train" for row in training + validation)
    assert split_validation(rows, fraction=0.25, seed=3)[1] == validation
    assert split_validation(rows, fraction=0.25, seed=4)[1] != validation
    with pytest.raises(ValueError, match="at least two rows with split 'train', got 0"):
        split_validation([row for row in rows if row.split == "test"])
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 1"):
        split_validation(rows, fraction=1)


# --------------------------------------------------------------------------------------- distortions


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_every_stronger_level_is_farther_from_the_picture(kind: str, photographs: dict[str, Image.Image]) -> None:
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


def test_views_show_every_image_in_every_wanted_way(labels: Path) -> None:
    views = plan_views(10, seed=0)
    assert len(views) == 30
    for position, kind in enumerate(("whole", "mirrored", "crop")):
        assert [(view.image, view.kind) for view in views[10 * position :][:10]] == [(n, kind) for n in range(10)]
    assert plan_views(10, seed=0) == views != plan_views(10, seed=1)
    assert {view.kind for view in plan_views(3, kinds=("whole", "crop"))} == {"whole", "crop"}
    with pytest.raises(ValueError, match=r"views must be some of whole, mirrored, crop, got \['strong'\]"):
        plan_views(3, kinds=["strong"])  # type: ignore[list-item]

    from rali_core.preprocess import PreprocessConfig

    row, config = read_labels(labels)[0], PreprocessConfig(64, (0.5,) * 3, (0.5,) * 3)
    whole = render_view(row.path, View(0, "whole"), config)
    assert torch.allclose(render_view(row.path, View(0, "mirrored"), config), whole.flip(-1), atol=1e-5)
    crop = render_view(row.path, View(0, "crop", seed=5), config)
    assert crop.shape == whole.shape
    assert not torch.equal(crop, whole)
    assert torch.equal(crop, render_view(row.path, View(0, "crop", seed=5), config))


# ------------------------------------------------------------------------------------------- figures


def test_the_figures_are_those_of_scipy_and_the_intervals_hold_them() -> None:
    random = np.random.default_rng(0)
    human = random.random(200)
    predicted = human + random.normal(0, 0.1, 200)
    agreement = measure_agreement(predicted, human, resamples=300)
    assert agreement.srcc == pytest.approx(stats.spearmanr(predicted, human)[0])
    assert agreement.plcc == pytest.approx(np.corrcoef(predicted, human)[0, 1])
    assert agreement.krcc == pytest.approx(stats.kendalltau(predicted, human)[0])
    assert agreement.mae == pytest.approx(np.abs(predicted - human).mean())
    for name, (low, high) in agreement.intervals.items():
        assert low < getattr(agreement, name) < high
        assert high - low < 0.2
    assert measure_agreement(predicted, human, resamples=300) == agreement


@pytest.mark.parametrize(
    ("predicted", "human", "message"),
    [
        ([0.1, 0.2], [0.1, 0.2], "at least three images, got 2"),
        ([0.1, 0.2, 0.3], [0.1, 0.2], "two lists of one length"),
        ([0.1, float("nan"), 0.3], [0.1, 0.2, 0.3], "NaN or infinite"),
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], "a correlation is not defined"),
    ],
)
def test_figures_that_would_mean_nothing_are_refused(predicted: list[float], human: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_agreement(predicted, human)


def test_a_scatter_plot_shows_its_points(tmp_path: Path) -> None:
    human = np.linspace(0, 1, 50)
    draw_scatter(human, human, measure_agreement(human, human), tmp_path / "plot.png", title="perfect")
    with Image.open(tmp_path / "plot.png") as image:
        blue = np.asarray(image.convert("RGB"), dtype=int)
    assert ((blue[..., 2] - blue[..., 0]) > 40).sum() > 500


# -------------------------------------------------------------------------------------------- stages


def quality_embeddings(count: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings in which one direction tells the score, under noise, with an offset and unequal scales."""
    random = np.random.default_rng(seed)
    scores = random.beta(4, 2, count)
    direction = np.random.default_rng(99).normal(size=dim)
    values = np.outer(scores - 0.5, direction) * 3 + random.normal(size=(count, dim)) + 5.0
    return (values * np.linspace(0.1, 3, dim)).astype(np.float32), scores


def test_compression_makes_the_prototypes_of_the_method() -> None:
    embeddings, scores = quality_embeddings(600, 24, 0)
    head = compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0)
    assert head.prototypes.shape == (60, 16)
    assert np.allclose(np.linalg.norm(head.prototypes, axis=1), 1, atol=1e-5)
    assert np.allclose(head.components @ head.components.T, np.eye(16), atol=1e-5)
    assert np.allclose(head.mean, embeddings.mean(axis=0), atol=1e-4)
    occupied = np.unique(np.minimum((scores * 40).astype(int), 39))
    assert set(np.minimum((head.scores * 40).astype(int), 39)) == set(occupied), "every bin with images has a prototype"
    assert (np.diff(head.scores) > -1 / 40).all(), "prototypes come bin after bin"
    again = compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0)
    assert np.array_equal(again.prototypes, head.prototypes)


def test_one_bin_with_one_prototype_is_the_mean_score() -> None:
    embeddings, scores = quality_embeddings(50, 8, 1)
    head = compress(embeddings, scores, pca_dim=4, bins=1, prototypes=1, seed=0)
    assert head.scores == pytest.approx([scores.mean()])


def test_there_are_never_more_prototypes_than_distinct_images() -> None:
    embeddings, scores = quality_embeddings(10, 8, 2)
    doubled = compress(
        np.repeat(embeddings, 2, axis=0), np.repeat(scores, 2), pca_dim=4, bins=5, prototypes=250, seed=0
    )
    assert len(doubled.prototypes) == 10


def test_unusable_embeddings_are_refused() -> None:
    embeddings, scores = quality_embeddings(30, 8, 3)
    options = {"pca_dim": 4, "bins": 5, "prototypes": 20, "seed": 0}
    with pytest.raises(ValueError, match="score bins hold images, more than the 2 prototypes"):
        compress(embeddings, scores, **{**options, "prototypes": 2})
    with pytest.raises(ValueError, match=r"expected scores in \[0, 1\]"):
        compress(embeddings, scores * 5, **options)
    with pytest.raises(ValueError, match=r"\(N, D\) embeddings and \(N,\) scores"):
        compress(embeddings, scores[:-1], **options)
    embeddings[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        compress(embeddings, scores, **options)


def test_without_pca_prototypes_are_in_the_embeddings_own_space() -> None:
    embeddings, scores = quality_embeddings(60, 8, 6)
    head = compress(embeddings, scores, pca_dim=0, bins=1, prototypes=12, seed=0)
    assert np.array_equal(head.components, np.eye(8))
    assert not head.mean.any()
    assert len(head.prototypes) == 12
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = (unit @ head.prototypes.T).argmax(axis=1)
    means = [scores[labels == k].mean() for k in range(12)]
    assert np.corrcoef(means, head.scores)[0, 1] > 0.95, "each score is that of the members near its prototype"


def test_unscored_embeddings_shape_the_pca_and_give_no_prototypes() -> None:
    embeddings, scores = quality_embeddings(100, 8, 7)
    unscored = embeddings[:50] * 3 + 1
    options = {"pca_dim": 4, "bins": 5, "prototypes": 20, "seed": 0}
    head = compress(embeddings, scores, unscored=unscored, **options)
    assert np.allclose(head.mean, np.concatenate([embeddings, unscored]).mean(axis=0), atol=1e-4)
    assert len(head.prototypes) == 20
    assert not np.allclose(head.components, compress(embeddings, scores, **options).components)


@pytest.mark.parametrize(("term", "measure"), [("plcc_weight", plcc_loss), ("rank_weight", rank_loss)])
def test_the_optional_terms_of_fitting_are_lowered_by_it(term: str, measure: Callable[..., Tensor]) -> None:
    embeddings, scores = quality_embeddings(100, 8, 8)
    values = []
    for weight in (0.0, 1.0):
        head = build_head(compress(embeddings, scores, pca_dim=4, bins=5, prototypes=20, seed=0))
        fit_head(
            head, torch.from_numpy(embeddings), torch.from_numpy(scores).float(),
            validation=(torch.from_numpy(embeddings), scores), epochs=3, batch_size=50, learning_rate=3e-3, seed=0,
            report=lambda _: None, **{term: weight},
        )  # fmt: skip
        with torch.inference_mode():
            values.append(float(measure(head(torch.from_numpy(embeddings)), torch.from_numpy(scores).float())))
    assert values[1] < values[0] - 1e-4


def test_fitting_improves_on_the_compressed_head() -> None:
    embeddings, scores = quality_embeddings(800, 24, 4)
    unseen, unseen_scores = quality_embeddings(300, 24, 5)
    head = build_head(compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0))
    with torch.inference_mode():
        before = measure_agreement(head(torch.from_numpy(unseen)).numpy(), unseen_scores)
    fit_head(
        head, torch.from_numpy(embeddings), torch.from_numpy(scores).float(),
        validation=(torch.from_numpy(unseen), unseen_scores), epochs=15, batch_size=64, learning_rate=3e-3, seed=0,
        report=lambda _: None,
    )  # fmt: skip
    with torch.inference_mode():
        after = measure_agreement(head(torch.from_numpy(unseen)).numpy(), unseen_scores)
    assert before.srcc > 0.8
    assert after.mae < before.mae
    assert after.srcc > before.srcc
    assert head.scores.min() >= 0
    assert head.scores.max() <= 1


def test_a_regression_as_teacher_keeps_wrong_labels_out_of_the_head() -> None:
    embeddings, clean = quality_embeddings(800, 24, 4)
    unseen, unseen_scores = quality_embeddings(300, 24, 5)
    random = np.random.default_rng(0)
    wrong = random.random(800) < 0.15
    scores = np.where(wrong, random.random(800), clean)
    head = build_head(compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0))
    errors, said = {}, {}
    teachers: tuple[Teacher, ...] = ("none", "svr")
    for teacher in teachers:
        fitted, lines = copy.deepcopy(head), list[str]()
        fit_head(
            fitted, torch.from_numpy(embeddings), torch.from_numpy(scores).float(),
            validation=(torch.from_numpy(unseen), unseen_scores), epochs=40, batch_size=64, learning_rate=3e-3,
            teacher=teacher, seed=0, report=lines.append,
        )  # fmt: skip
        with torch.inference_mode():
            errors[teacher] = measure_agreement(fitted(torch.from_numpy(unseen)).numpy(), unseen_scores).mae
        said[teacher] = lines
    assert errors["svr"] < 0.95 * errors["none"]
    assert not any("teacher" in line for line in said["none"])
    assert said["svr"][0].startswith("teacher: validation SRCC 0.")


def fit_copy(head: PrototypeHead, embeddings: np.ndarray, scores: np.ndarray, **terms: Any) -> PrototypeHead:
    return fit_head(
        copy.deepcopy(head), torch.from_numpy(embeddings), torch.from_numpy(scores).float(),
        validation=(torch.from_numpy(embeddings), scores), epochs=10, batch_size=64, learning_rate=3e-3,
        seed=0, report=lambda _: None, **terms,
    )  # fmt: skip


def test_the_order_of_known_distortions_can_be_fitted_beside_the_scores() -> None:
    embeddings, scores = quality_embeddings(400, 24, 4)
    head = build_head(compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0))
    # triples of which the scores say that they get better, and the groups that they get worse
    rising = np.argsort(scores)[:399].reshape(3, 133)[:, :40].T
    triples = torch.from_numpy(embeddings[rising])
    groups = [OrderedGroup("x.png", True, "noise", 1, 3, seed=0)] * 40
    share = {}
    for weight in (0.0, 1.0):
        fitted = fit_copy(head, embeddings, scores, order_weight=weight, ordered=OrderedEmbeddings(groups, triples))
        with torch.inference_mode():
            ordered = fitted(triples.flatten(0, 1)).view(-1, 3).diff(dim=1) < 0
        share[weight] = float(ordered.float().mean())
    assert share[0.0] < 0.1
    assert share[1.0] > 0.2


def test_scores_of_mirrored_copies_can_be_held_together_by_the_fitting() -> None:
    embeddings, scores = quality_embeddings(400, 24, 4)
    head = build_head(compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0))
    triples = torch.from_numpy(embeddings[:120]).view(40, 3, 24)
    copies = triples[:, 0] + 0.3 * torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    ordered = OrderedEmbeddings([OrderedGroup("x.png", True, "noise", 1, 3, seed=0)] * 40, triples, copies)
    moves = {}
    for weight in (0.0, 0.5):
        fitted = fit_copy(head, embeddings, scores, steady_weight=weight, ordered=ordered)
        with torch.inference_mode():
            moves[weight] = float((fitted(triples[:, 0]) - fitted(copies)).abs().mean())
    assert moves[0.5] < 0.6 * moves[0.0]


def test_the_teacher_predicts_scores_for_seen_and_unseen_embeddings() -> None:
    embeddings, scores = quality_embeddings(400, 24, 4)
    unseen, unseen_scores = quality_embeddings(300, 24, 5)
    head = build_head(compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0))
    regression = Regression(penalty=0.3, epsilon=0.03, gamma=0.25)
    for points, human in ((embeddings, scores), (unseen, unseen_scores)):
        predicted = regress_scores(
            head, torch.from_numpy(embeddings), torch.from_numpy(scores).float(), torch.from_numpy(points), regression
        )
        assert predicted.shape == human.shape
        assert 0 <= float(predicted.min()) <= float(predicted.max()) <= 1
        assert measure_agreement(predicted.numpy(), human).srcc > 0.8


def test_training_images_count_as_much_as_their_weights_say() -> None:
    embeddings, scores = quality_embeddings(300, 24, 4)
    twice = torch.from_numpy(np.concatenate([embeddings, embeddings]))
    told = torch.from_numpy(np.concatenate([scores, 1 - scores])).float()  # each image, and the contrary of its score
    head = build_head(compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0))

    def fit(weights: torch.Tensor, teacher: Teacher = "svr") -> float:
        fitted = fit_head(
            copy.deepcopy(head), twice, told, validation=(torch.from_numpy(embeddings), scores), epochs=20,
            batch_size=64, learning_rate=1e-2, teacher=teacher, weights=weights, seed=0, report=lambda _: None,
        )  # fmt: skip
        with torch.inference_mode():
            return measure_agreement(fitted(torch.from_numpy(embeddings)).numpy(), scores).srcc

    first = torch.cat([torch.full((300,), 5.0), torch.ones(300)])
    assert fit(first) > 0.8
    assert fit(first.flip(0)) < -0.8
    with pytest.raises(ValueError, match="weights .* need teacher = 'svr'"):
        fit(first, "none")


def test_a_last_head_learns_the_validation_images_too_and_reports_by_cross_validation() -> None:
    embeddings, scores = quality_embeddings(300, 24, 4)
    unseen, unseen_scores = quality_embeddings(100, 24, 5)
    unseen_scores = np.random.default_rng(0).permutation(unseen_scores)  # cannot be foretold, only learnt
    head = build_head(compress(embeddings, scores, pca_dim=16, bins=40, prototypes=60, seed=0))
    error, lines = {}, {}
    for weight in (0.0, 20.0):
        lines[weight] = []
        fitted = fit_head(
            copy.deepcopy(head), torch.from_numpy(embeddings), torch.from_numpy(scores).float(),
            validation=(torch.from_numpy(unseen), unseen_scores), epochs=30, batch_size=64, learning_rate=1e-2,
            teacher="svr", held_out_weight=weight, seed=0, report=lines[weight].append,
        )  # fmt: skip
        with torch.inference_mode():
            error[weight] = float(np.abs(fitted(torch.from_numpy(unseen)).numpy() - unseen_scores).mean())
    assert error[20.0] < 0.8 * error[0.0]
    srcc = {weight: float(said[0].split("SRCC ")[1].split()[0]) for weight, said in lines.items()}
    assert "five-fold" in lines[20.0][0]
    assert max(map(abs, srcc.values())) < 0.3, "no image was among those that its own prediction learnt from"
    with pytest.raises(ValueError, match="held_out_weight and weights .* need teacher = 'svr'"):
        fit_head(
            head, torch.from_numpy(embeddings), torch.from_numpy(scores).float(),
            validation=(torch.from_numpy(unseen), unseen_scores), epochs=1, batch_size=64, learning_rate=1e-2,
            held_out_weight=1.0, seed=0, report=lambda _: None,
        )  # fmt: skip


def test_the_plcc_loss_is_one_minus_the_correlation() -> None:
    x, y = (
        torch.rand(20, generator=torch.Generator().manual_seed(0)),
        torch.rand(20, generator=torch.Generator().manual_seed(1)),
    )
    assert float(plcc_loss(x, y)) == pytest.approx(1 - np.corrcoef(x, y)[0, 1], abs=1e-5)
    assert float(plcc_loss(3 * y - 1, y)) == pytest.approx(0, abs=1e-5)


def test_the_ranking_loss_looks_at_the_order_only() -> None:
    human = torch.tensor([1.0, 2.0, 5.0])
    assert float(rank_loss(torch.tensor([0.0, 5.0, 9.0]), human)) == pytest.approx(0, abs=1e-6)
    predicted = torch.tensor([0.2, 0.1, 0.4])
    pairs = [-0.1, 0.2, 0.3]  # 2 over 1, 5 over 1, 5 over 2
    expected = np.mean([np.log1p(np.exp(-difference / 0.1)) for difference in pairs])
    assert float(rank_loss(predicted, human)) == pytest.approx(expected, abs=1e-6)
    assert float(rank_loss(predicted, human**3 - 7)) == pytest.approx(expected, abs=1e-6)
    assert float(rank_loss(predicted, torch.ones(3))) == 0


def test_the_last_block_learns_at_the_given_rate_and_earlier_ones_more_slowly(tiny_timm_file: Path) -> None:
    model = load_model(tiny_timm_file).model
    joint = JointSettings(frozen_blocks=3, learning_rate=1.0, layer_decay=0.5, head_learning_rate=9.0)
    _, rates = joint_optimizer(Upper(model, 3), joint)
    assert sorted(set(rates)) == [0.25, 0.5, 1.0, 9.0]


def test_backbone_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name in ("weights.bin", "weights.whl"):
        if name.endswith(".whl"):
            (tmp_path / "folder").mkdir()
            shutil.make_archive(str(tmp_path / "weights"), "zip", tmp_path / "folder")
            (tmp_path / "weights.zip").rename(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a \.onnx, \.whl or \.safetensors file, got weights\.bin"):
        load_backbone(tmp_path / "weights.bin")
    with pytest.raises(
        ValueError, match=r"holds neither dinov2_vits14_patch_8x8\.onnx nor tiny_vit_5m_224_in22k\.onnx"
    ):
        load_backbone(tmp_path / "weights.whl")
