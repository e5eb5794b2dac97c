from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rali_core.checkpoint import load_model, read_metadata, save_model
from rali_core.cli import main
from rali_core.files import hash_file
from rali_core.model import RaliModel
from rali_core.scorer import RaliScorer
from rali_core.training.adapt import adapt, find_pictures
from rali_core.training.config import TAUGHT, CompressConfig, FitConfig
from rali_core.training.data import LabelledImage, read_labels, split_validation
from rali_core.training.distortions import DISTORTIONS
from rali_core.training.drawings import draw_picture
from rali_core.training.evaluate import Agreement, measure_agreement
from rali_core.training.joint import (
    JointSettings,
    UnlabelledPictures,
    _Pictures,
    fit_line,
    mirror_patches,
    ordered_losses,
    predict_pictures,
    with_image_size,
)
from rali_core.training.ordered import OrderedGroup, cache_groups, cache_pictures, plan_groups, render_group
from rali_core.training.refit import DomainPictures, refit_head
from rali_core.training.teachers import Teachers
from rali_core.training.tokens import LowerBlocks

SMALL = JointSettings(
    image_size=64, frozen_blocks=3, steps=120, batch_size=16, groups_per_batch=2, learning_rate=6e-4,
    head_learning_rate=1e-2, warmup_steps=5, average_decay=0.9, kept_patches=0.5, whole_steps=60,
)  # fmt: skip


@pytest.fixture
def pristine(photographs: dict[str, Image.Image], tmp_path: Path) -> Path:
    folder = tmp_path / "pristine"
    (folder / "inner").mkdir(parents=True)
    photographs["coffee"].save(folder / "coffee.png")
    photographs["cat"].save(folder / "inner" / "cat.PNG")
    (folder / "readme.txt").write_text("no picture")
    return folder


# --------------------------------------------------------------------------------------- ordered groups


def test_groups_use_every_distortion_and_all_three_kinds_of_pictures(pristine: Path, tmp_path: Path) -> None:
    labelled = [LabelledImage(tmp_path / f"{n}.png", score, "train", False) for n, score in enumerate((0.3, 0.9))]
    groups = plan_groups(find_pictures([pristine]), labelled, count=310, seed=1)
    assert {group.distortion for group in groups} == set(DISTORTIONS)
    assert all(1 <= group.weak < group.strong <= 5 for group in groups)
    sources = {group.source for group in groups if not group.source.startswith("drawing:")}
    assert {Path(source).name for source in sources} == {"coffee.png", "cat.PNG", "1.png"}, "0.png scores too low"
    assert all(group.pristine == (Path(group.source).name != "1.png") for group in groups)
    drawn = sum(group.source.startswith("drawing:") for group in groups)
    assert 0.05 < drawn / len(groups) < 0.16
    assert groups == plan_groups(find_pictures([pristine]), labelled, count=310, seed=1)


def test_groups_without_pictures_are_drawn() -> None:
    assert all(group.source.startswith("drawing:") for group in plan_groups([], [], count=8, seed=0))


def test_a_group_shows_the_picture_and_ever_more_of_its_distortion(pristine: Path) -> None:
    group = OrderedGroup(str(pristine / "coffee.png"), True, "noise", 2, 5, seed=3)
    original, weak, strong = render_group(group).astype(float)
    assert original.shape == (448, 448, 3)
    assert 0 < ((weak - original) ** 2).mean() < ((strong - original) ** 2).mean()
    assert np.array_equal(render_group(group), render_group(group))


def test_drawings_differ_by_seed_only() -> None:
    assert np.array_equal(draw_picture(5, size=64), draw_picture(5, size=64))
    assert not np.array_equal(draw_picture(5, size=64), draw_picture(6, size=64))
    assert draw_picture(5, size=64).size == (64, 64)


def test_rendered_groups_are_kept_and_an_interruption_loses_nothing(tmp_path: Path) -> None:
    groups = plan_groups([], [], count=3, seed=0)
    first = np.array(cache_groups(groups, tmp_path / "groups.npy", workers=0, report=lambda _: None))
    state = json.loads((tmp_path / "groups.json").read_text())
    (tmp_path / "groups.json").write_text(json.dumps({**state, "done": 1}))  # as if stopped after the first
    stored = np.load(tmp_path / "groups.npy", mmap_mode="r+")
    stored[1:] = 0
    stored.flush()
    again = cache_groups(groups, tmp_path / "groups.npy", workers=1, report=lambda _: None)
    assert np.array_equal(again, first)
    other = cache_groups(
        plan_groups([], [], count=3, seed=1), tmp_path / "groups.npy", workers=0, report=lambda _: None
    )
    assert not np.array_equal(other, first)


# -------------------------------------------------------------------------------------------- the losses


def test_the_terms_on_distorted_pictures_ask_for_order_floor_and_ceiling() -> None:
    group = OrderedGroup("x.png", True, "noise", 1, 4, seed=0)
    order, anchor = ordered_losses(torch.tensor([[0.80, 0.75, 0.30]]), [group])
    assert float(order) == 0
    assert float(anchor) == 0
    order, anchor = ordered_losses(torch.tensor([[0.50, 0.55, 0.60]]), [group])
    # pairs (0, 1), (0, 2), (1, 2): margins 0.03, 0.12, 0.09; scores rise by 0.05, 0.10, 0.05
    assert float(order) == pytest.approx((0.08 + 0.22 + 0.14) / 3, abs=1e-6)
    # 0.62 - 0.50 for the pristine one; 0.60 - (0.8 - 0.1 * 4) for level 4, over three pictures
    assert float(anchor) == pytest.approx(0.12 + 0.20 / 3, abs=1e-6)
    gentle = replace(group, distortion="warp", pristine=False)
    order, anchor = ordered_losses(torch.tensor([[0.50, 0.55, 0.60]]), [gentle])
    assert float(order) == pytest.approx((0.065 + 0.16 + 0.095) / 3, abs=1e-6)
    assert float(anchor) == 0


# ------------------------------------------------------------------------------------------ whole models


def test_another_image_size_keeps_the_model_and_resamples_its_positions(tiny_timm_file: Path) -> None:
    model = load_model(tiny_timm_file).model
    larger = with_image_size(model, 96)
    assert larger.preprocess_config.image_size == larger.encoder_config.image_size == 96
    pixels = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        assert larger(pixels).shape == (2,)
        assert torch.equal(with_image_size(model, 64)(pixels), model(pixels))
    with pytest.raises(ValueError, match=r"expected position embeddings of shape \(1, 37, 64\), got \(1, 5, 64\)"):
        with_image_size(model, 96, torch.zeros(1, 5, 64))


def test_kept_patches_are_those_of_the_whole_picture_and_the_class_token_stays(tiny_timm_file: Path) -> None:
    model = load_model(tiny_timm_file).model
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    lower = LowerBlocks(model.encoder, 0)
    with torch.inference_mode():
        whole, part = lower(pixels), lower(pixels, torch.tensor([[3, 1, 0], [2, 2, 5]]))
        in_order = LowerBlocks(model.encoder, 3)(pixels, torch.arange(16).expand(2, -1))
    assert torch.equal(part[0], whole[0, [0, 4, 2, 1]])
    assert torch.equal(part[1], whole[1, [0, 3, 3, 6]])
    torch.testing.assert_close(in_order, LowerBlocks(model.encoder, 3)(pixels), rtol=0, atol=1e-6)


def test_a_tuned_model_can_look_at_a_checkerboard_of_patches_and_be_recalibrated(
    labels: Path, dino_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(dino_file).model
    assert with_image_size(model, 42, pattern="all").encoder_config == model.encoder_config
    with pytest.raises(ValueError, match="a checkerboard needs an odd number of patches a side, got 4"):
        with_image_size(model, 56, pattern="checkerboard")
    arguments = ["tune", str(dino_file), str(labels), "--work-dir", str(tmp_path / "w")]
    arguments += ["--image-size", "70", "--steps", "2", "--groups", "2", "--workers", "0"]
    arguments += ["--kept-patches", "0.3", "--patch-pattern", "checkerboard"]
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert main([*arguments, "-o", str(files[0])]) == 0
    assert "recalibrated" not in capsys.readouterr().err
    assert main([*arguments, "-o", str(files[1]), "--recalibrate"]) == 0
    assert "recalibrated: " in capsys.readouterr().err  # or, should the two steps have taught it nothing, not
    tuned, moved = (load_model(file).model for file in files)
    assert tuned.encoder_config.vision_cfg["patch_pattern"] == "checkerboard"
    pixels = torch.rand(8, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = tuned(pixels), moved(pixels)
    line = read_metadata(files[1])["training"].get("recalibrated", {"slope": 1, "offset": 0})
    torch.testing.assert_close(after, (before * line["slope"] + line["offset"]).clamp(0, 1), rtol=0, atol=1e-4)
    assert with_image_size(moved, 70).encoder_config == moved.encoder_config, (
        "the pattern stays unless another is asked for"
    )


def test_recalibrating_gives_slope_and_offset_and_leaves_ranks(tiny_timm_file: Path) -> None:
    model = load_model(tiny_timm_file).model
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3))
    pictures = (noise * np.linspace(0.1, 1, 6)[:, None, None, None]).astype(np.uint8)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        before = model(pixels)
    scores = 0.5 * before.double().numpy() + 0.1
    assert fit_line(model, pictures, -scores) is None
    with torch.inference_mode():
        assert torch.equal(model(pixels), before)
    line = fit_line(model, pictures, scores)
    assert line is not None
    assert line["slope"] == pytest.approx(0.5, abs=0.02)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), 0.5 * before + 0.1, rtol=0, atol=5e-3)


def test_larger_inputs_have_decoded_pictures_of_their_own(labels: Path, tmp_path: Path) -> None:
    files = [row.path for row in read_labels(labels)[:3]]
    group = plan_groups([], [], count=2, seed=0)
    pictures = [
        cache_pictures(files, tmp_path / "p.npy", size=size, workers=0, report=lambda _: None) for size in (448, 518)
    ]
    assert [part.shape for part in pictures] == [(3, 448, 448, 3), (3, 518, 518, 3)]
    rendered = cache_groups(group, tmp_path / "g.npy", size=518, workers=0, report=lambda _: None)
    assert rendered.shape == (2, 3, 518, 518, 3)


def test_tuning_a_model_improves_it_repeats_itself_and_resumes(
    labels: Path, pristine: Path, tiny_timm_file: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def run(folder: str, report: object = lambda _: None) -> tuple[dict[str, object], Path]:
        output = tmp_path / f"{folder}.safetensors"
        story = adapt(
            tiny_timm_file, labels, output, work_dir=tmp_path / folder, pristine=[pristine], groups=12,
            validation_fraction=0.2, settings=SMALL, workers=0, report=report,  # type: ignore[arg-type]
        )  # fmt: skip
        return story, output

    story, tuned = run("a")
    logged = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == list(range(10, 121, 10))
    assert logged[-1]["loss"] < logged[0]["loss"]
    with Image.open(tmp_path / "a" / "curves.png") as curves:
        assert curves.width > 1000
    rows = [row for row in read_labels(labels) if row.split == "train"]
    paths, human = [row.path for row in rows], np.array([row.score for row in rows])

    def agreement(file: Path) -> Agreement:
        return measure_agreement(RaliScorer.from_pretrained(file, device="cpu").score(paths).scores, human)

    # A random tiny tower: it comes nearer to its training scores, no more is asked.
    before, after = agreement(tiny_timm_file), agreement(tuned)
    assert after.plcc > before.plcc
    assert after.mae < 0.85 * before.mae
    metadata = read_metadata(tuned)
    assert metadata["training"]["joint"]["settings"]["steps"] == 120
    assert metadata["training"]["joint"]["pristine_pictures"] == 2
    assert metadata["training"]["before"]["model"] == "tiny"
    assert metadata["training"]["figures"] == story["figures"]

    def stop_in_the_middle(line: str) -> None:
        if "joint tuning 40/120" in line:
            raise Stop

    with pytest.raises(Stop):
        run("b", stop_in_the_middle)
    lines: list[str] = []
    _, resumed = run("b", lines.append)
    assert "joint tuning: going on after step 30" in lines
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scores = [RaliScorer.from_pretrained(file, device="cpu").score(pixels).scores for file in (tuned, resumed)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)

    # The finished run, repeated; now with weights of its start mixed in.
    def repeat(share: float) -> list[float]:
        output = tmp_path / f"mixed-{share}.safetensors"
        adapt(
            tiny_timm_file, labels, output, work_dir=tmp_path / "b", pristine=[pristine], groups=12,
            validation_fraction=0.2, settings=SMALL, mix_with=tiny_timm_file, mix_share=share, workers=0,
            report=lambda _: None,
        )  # fmt: skip
        assert read_metadata(output)["training"]["mixed"]["share"] == share
        mixed: list[float] = RaliScorer.from_pretrained(output, device="cpu").score(pixels).scores.tolist()
        return mixed

    start = RaliScorer.from_pretrained(tiny_timm_file, device="cpu").score(pixels).scores
    assert repeat(1.0) == pytest.approx(start.tolist(), abs=2e-3), "the file holds the tower in 16 bits"
    assert repeat(0.0) == pytest.approx(scores[0].tolist(), abs=1e-5)
    assert repeat(0.5) != pytest.approx(scores[0].tolist(), abs=2e-3)
    with pytest.raises(ValueError, match=r"mix_share must lie in \[0, 1\], got 1\.5"):
        repeat(1.5)
    with pytest.raises(ValueError, match=r"joint\.pt belongs to a run with other settings"):
        adapt(
            tiny_timm_file, labels, resumed, work_dir=tmp_path / "b", pristine=[pristine], groups=12,
            validation_fraction=0.2, settings=replace(SMALL, learning_rate=1e-5), workers=0, report=lambda _: None,
        )  # fmt: skip


def test_scores_become_steadier_where_that_is_asked_for(
    labels: Path, pristine: Path, tiny_timm_file: Path, tmp_path: Path
) -> None:
    moves = []
    for weight in (0.0, 5.0):
        settings = replace(SMALL, steps=40, whole_steps=0, groups_per_batch=8, order_weight=0.0, steady_weight=weight)
        output, work_dir = tmp_path / f"{weight}.safetensors", tmp_path / f"{weight}"
        adapt(
            tiny_timm_file, labels, output, work_dir=work_dir, pristine=[pristine], groups=40, settings=settings,
            validation_fraction=0.2, workers=0, report=lambda _: None,
        )  # fmt: skip
        model = load_model(output).model
        group = np.load(work_dir / "groups.npy")[:, 0]
        with torch.inference_mode():
            pixels = torch.from_numpy(group).permute(0, 3, 1, 2) / 255
            moves.append(float((model(pixels) - model(pixels.flip(-1))).abs().mean()))
        entry = json.loads((work_dir / "log.jsonl").read_text().splitlines()[-1])
        assert ("steady" in entry) == (weight > 0)
    assert moves[1] < 0.7 * moves[0]
    mirrored = mirror_patches(torch.tensor([[0, 5, 11]]), 16)
    assert mirrored.tolist() == [[3, 6, 8]]


def test_the_scores_of_labelled_images_become_steadier_where_that_is_asked_for(
    labels: Path, tiny_timm_file: Path, tmp_path: Path
) -> None:
    def tune(count: int, *, seed: int, steps: int) -> tuple[float, dict[str, float]]:
        settings = replace(SMALL, steps=steps, whole_steps=0, steady_weight=5.0, steady_pictures=count, seed=seed,
                           head_learning_rate=1e-3)  # fmt: skip
        output, work_dir = tmp_path / "model.safetensors", tmp_path / f"{count}-{seed}"
        adapt(
            tiny_timm_file, labels, output, work_dir=work_dir, groups=0, settings=settings, validation_fraction=0.2,
            workers=0, report=lambda _: None,
        )  # fmt: skip
        model = load_model(output).model
        with torch.inference_mode():
            pixels = torch.from_numpy(np.load(work_dir / "training.npy")).permute(0, 3, 1, 2) / 255
            move = float((model(pixels) - model(pixels.flip(-1))).abs().mean())
        entry = json.loads((work_dir / "log.jsonl").read_text().splitlines()[-1])
        assert "steady" not in entry, "that is the groups'"
        return move, entry

    assert "steady, labelled" in tune(12, seed=0, steps=2)[1]
    moves = {0: 0.0, 99: 0.0}  # a step has 16 labelled images, and no more can be asked for
    for seed in range(3):  # so short a tuning of so small a tower depends on its seed
        for count in moves:
            move, entry = tune(count, seed=seed, steps=40)
            assert ("steady, labelled" in entry) == (count > 0)
            moves[count] += move
    assert moves[99] < 0.5 * moves[0], moves


def test_several_runs_are_averaged_and_can_be_added_to_a_finished_one(
    labels: Path, tiny_timm_file: Path, tmp_path: Path
) -> None:
    def weights(folder: str, *, runs: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], list[str]]:
        lines: list[str] = []
        adapt(
            tiny_timm_file, labels, tmp_path / "x.safetensors", work_dir=tmp_path / folder, groups=2, runs=runs,
            validation_fraction=0.2, settings=replace(SMALL, steps=12, whole_steps=0, seed=seed), workers=0,
            report=lines.append,
        )  # fmt: skip
        state = load_model(tmp_path / "x.safetensors").model.state_dict()
        return {name: tensor.float() for name, tensor in state.items()}, lines

    first, _ = weights("runs", runs=1)
    mean, lines = weights("runs", runs=2)
    assert not any("10/12" in line for line in lines[: lines.index("joint tuning: going on after step 12") + 1])
    assert sum("10/12" in line for line in lines) == 1, "only the new run is trained"
    assert (tmp_path / "runs" / "run-1" / "log.jsonl").is_file()
    both = {
        run: torch.load(tmp_path / "runs" / run / "joint.pt", weights_only=True, map_location="cpu")["average"]
        for run in (".", "run-1")
    }
    name = "head.prototypes"
    assert not torch.equal(both["."][name], both["run-1"][name])
    torch.testing.assert_close(first[name], both["."][name])
    torch.testing.assert_close(mean[name], (both["."][name] + both["run-1"][name]) / 2)
    with pytest.raises(ValueError, match="runs must be at least 1, got 0"):
        weights("runs", runs=0)


def test_no_steps_only_mix_and_a_new_head_learns_the_teachers_scores_too(
    labels: Path, tiny_timm_file: Path, tmp_path: Path
) -> None:
    other = load_model(tiny_timm_file)
    with torch.no_grad():
        for tensor in other.model.encoder.parameters():
            tensor.mul_(1.5)
    second = tmp_path / "second.safetensors"
    save_model(second, other.model, replace(other.info, name="second"))

    def tune(name: str, **given: Any) -> RaliModel:
        output = tmp_path / f"{name}.safetensors"
        adapt(
            tiny_timm_file, labels, output, work_dir=tmp_path / name, groups=0, validation_fraction=0.2,
            settings=replace(SMALL, steps=0), workers=0, report=lambda _: None, **given,
        )  # fmt: skip
        assert not (tmp_path / name / "log.jsonl").exists()
        return load_model(output).model

    first, both = load_model(tiny_timm_file).model, tune("both", mix_with=second, mix_share=0.25)
    for name, tensor in both.encoder.state_dict().items():
        expected = first.encoder.state_dict()[name].float() * (
            1.125 if name in dict(first.encoder.named_parameters()) else 1
        )
        torch.testing.assert_close(tensor.float(), expected, rtol=2e-3, atol=1e-5)
    # A teacher that contradicts every human score: the new head follows it.
    rows = [row for row in read_labels(labels) if row.split == "train"]
    table = tmp_path / "backwards.csv"
    table.write_text(
        "image,score\n" + "".join(f"{row.path.relative_to(labels.parent)},{1 - row.score}\n" for row in rows)
    )
    refit = (CompressConfig(pca_dim=16, prototypes=30), FitConfig(epochs=5))
    human, taught = (
        tune(name, refit=refit, teachers=teachers, teacher_share=1.0)
        for name, teachers in (("human", []), ("taught", [table]))
    )
    scores = [measure_agreement(RaliScorer(model, other.info).score([row.path for row in rows]).scores,
                                np.array([row.score for row in rows])).srcc for model in (human, taught)]  # fmt: skip
    assert scores[0] > 0.3
    assert scores[1] < -0.3


def test_a_tuned_model_can_learn_from_a_teachers_scores(labels: Path, tiny_timm_file: Path, tmp_path: Path) -> None:
    backwards = load_model(tiny_timm_file)
    with torch.no_grad():
        backwards.model.head.scores.copy_(1 - backwards.model.head.scores)
    teacher = tmp_path / "teacher.safetensors"
    save_model(teacher, backwards.model, replace(backwards.info, name="teacher"))
    paths = [row.path for row in read_labels(labels) if row.split == "train"]
    taught = RaliScorer.from_pretrained(teacher, device="cpu").score(paths).scores
    lines: list[str] = []

    def tune(folder: str, share: float) -> Path:
        output = tmp_path / f"{share}.safetensors"
        adapt(
            tiny_timm_file, labels, output, work_dir=tmp_path / folder, groups=0, validation_fraction=0.2,
            settings=replace(SMALL, steps=80), teachers=[teacher], teacher_share=share, workers=0, report=lines.append,
        )  # fmt: skip
        return output

    def distance(file: Path) -> float:
        return float(np.abs(RaliScorer.from_pretrained(file, device="cpu").score(paths).scores - taught).mean())

    follows, ignores = tune("follows", 1.0), tune("ignores", 0.0)
    assert distance(follows) < 0.6 * distance(ignores)
    assert read_metadata(follows)["training"]["teachers"] == {"sha256": [hash_file(teacher)], "share": 1.0}
    said = f"teacher {hash_file(teacher)[:8]} scores 67 pictures"
    assert lines.count(said) == 2
    tune("follows", 1.0)
    assert lines.count(said) == 2, "they are kept"
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        tune("follows", 0.5)  # other targets
    with pytest.raises(ValueError, match=r"teacher_share must lie in \[0, 1\], got -1"):
        tune("other", -1.0)


def test_teachers_may_be_asked_about_some_images_only(
    labels: Path, tiny_timm_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, NDArray[np.float64]] = {}

    def keep_targets(*arguments: Any, **_: Any) -> list[dict[str, float]]:
        seen["targets"] = arguments[2]
        return []

    monkeypatch.setattr("rali_core.training.adapt.tune_jointly", keep_targets)
    rows = [row for row in read_labels(labels) if row.split == "train"]
    training, _ = split_validation(rows, fraction=0.2, seed=SMALL.seed)
    last = training[-1].path.name
    lines: list[str] = []

    def tune(pattern: str) -> dict[str, Any]:
        return adapt(
            tiny_timm_file, labels, tmp_path / "out.safetensors", work_dir=tmp_path / "work", groups=0,
            validation_fraction=0.2, settings=SMALL, teachers=[tiny_timm_file], teacher_share=0.75,
            teacher_images=pattern, workers=0, report=lines.append,
        )  # fmt: skip

    training_story = tune(last[:-4].upper() + ".*")
    human = np.array([row.score for row in training])
    np.testing.assert_array_equal(seen["targets"][:-1], human[:-1])
    score = load_scores(tmp_path / "work" / "teachers")
    assert seen["targets"][-1] == pytest.approx(0.25 * human[-1] + 0.75 * score)
    assert any(line.endswith("scores 1 pictures") for line in lines)
    assert training_story["teachers"]["images"] == last[:-4].upper() + ".*"
    with pytest.raises(ValueError, match="none of 67 training images has a name like 'ss02"):
        tune("ss02*")


def test_pictures_without_human_scores_are_learnt_from_teachers(
    labels: Path, tiny_timm_file: Path, photographs: dict[str, Image.Image], tmp_path: Path
) -> None:
    backwards = load_model(tiny_timm_file)
    with torch.no_grad():
        backwards.model.head.scores.copy_(1 - backwards.model.head.scores)
    teacher, folder = tmp_path / "teacher.safetensors", tmp_path / "unlabelled"
    save_model(teacher, backwards.model, backwards.info)
    (folder / "inner").mkdir(parents=True)
    for name, photograph in photographs.items():
        photograph.save(folder / "inner" / f"{name}.png")
    lines: list[str] = []

    def tune(name: str, **keywords: Any) -> dict[str, Any]:
        return adapt(
            tiny_timm_file, labels, tmp_path / f"{name}.safetensors", work_dir=tmp_path / name, groups=0,
            validation_fraction=0.2, settings=replace(SMALL, steps=60), limit=20, workers=0, report=lines.append,
            **keywords,
        )  # fmt: skip

    both = {"unlabelled": [folder], "unlabelled_teachers": [teacher, tiny_timm_file]}
    story = tune("two", **both)
    count = len(photographs)
    hashes = [hash_file(teacher), hash_file(tiny_timm_file)]
    assert story["unlabelled"] == {"pictures": 2 * count, "teachers": hashes}
    said = [f"teacher {sha256[:8]} scores {count} pictures" for sha256 in hashes]
    assert [lines.count(line) for line in said] == [2, 2], "pictures, and as many distorted ones"
    shown = np.load(tmp_path / "two" / "unlabelled.npy")
    distorted = np.load(tmp_path / "two" / "unlabelled-distorted.npy")
    assert shown.shape == distorted.shape == (count, 448, 448, 3)
    assert not np.array_equal(shown, distorted)
    tune("two", **both)
    assert [lines.count(line) for line in said] == [2, 2], "they are kept"
    tune("one", unlabelled=[folder], unlabelled_teachers=[teacher])
    tune("none")
    pixels = torch.from_numpy(shown).permute(0, 3, 1, 2) / 255
    scores = {}
    for file in ("teacher", "one", "none"):
        with torch.inference_mode():
            scores[file] = load_model(tmp_path / f"{file}.safetensors").model(pixels)
    distances = {file: float((scores[file] - scores["teacher"]).abs().mean()) for file in ("one", "none")}
    assert distances["one"] < 0.7 * distances["none"], distances
    with pytest.raises(ValueError, match="unlabelled_weight must be positive, and any but 1 needs .* got 3"):
        tune("bad", **both, unlabelled_weight=3.0)
    with pytest.raises(ValueError, match="unlabelled pictures need unlabelled_teachers"):
        tune("bad", unlabelled=[folder])
    with pytest.raises(ValueError, match=r"domains, further data sets, are for a new head .* got 0 sets and 0\.1"):
        tune("bad", domains_weight=0.1)
    table = tmp_path / "scores.csv"
    table.write_text("image,score\ncat.png,0.5\n")
    with pytest.raises(ValueError, match="unlabelled_teachers must be model files: a table"):
        tune("bad", unlabelled=[folder], unlabelled_teachers=[table])


def test_several_arrays_of_pictures_are_one() -> None:
    parts = [np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) + 10 * count for count in (3, 1, 2)]
    pictures = _Pictures(parts)
    assert [int(pictures[place].item()) for place in range(len(pictures))] == [30, 31, 32, 10, 20, 21]


def test_a_teacher_may_be_a_table_of_scores(labels: Path, tmp_path: Path) -> None:
    rows = [row for row in read_labels(labels) if row.split == "train"][:6]
    table = tmp_path / "scores.csv"
    names = [row.path.relative_to(labels.parent).as_posix() for row in rows]
    lines = [f"{name},{0.1 * place}" for place, name in enumerate(names)]
    table.write_text("image,score\n" + "\n".join(lines))
    other = tmp_path / "other.csv"  # as `rali score --csv` writes it
    other.write_text("file,score,band\n" + "\n".join(f"{row.path},0.5,fair" for row in rows))
    told = {"root": labels.parent, "folder": tmp_path, "device": torch.device("cpu"), "report": print}
    pictures = np.zeros((6, 4, 4, 3), dtype=np.uint8)
    human = np.array([row.score for row in rows])
    teachers = Teachers([table, other], share=0.4)
    mixed = teachers.mix(rows, pictures, **told)
    np.testing.assert_allclose(mixed, 0.6 * human + 0.4 * (0.1 * np.arange(6) + 0.5) / 2)
    assert teachers.story() == {"sha256": [hash_file(table), hash_file(other)], "share": 0.4}
    one = Teachers([table], share=1.0, images=rows[3].path.name)
    np.testing.assert_allclose(one.mix(rows, pictures, **told), [*human[:3], 0.3, *human[4:]])
    np.testing.assert_array_equal(Teachers([]).mix(rows, pictures, **told), human)
    table.write_text("image,score\n" + "\n".join(lines[1:]))
    with pytest.raises(ValueError, match=r"no score of 1 of 6 training images, such as .*; its names may be relative"):
        Teachers([table]).check(rows, root=labels.parent)
    Teachers([table], images=rows[3].path.name).check(rows, root=labels.parent)  # the missing one is not asked for
    for text, problem in (
        ("name,score\na.png,0.5\n", r"must have the columns image \(or file\) and score; it has \['name', 'score'\]"),
        ("image,score\na.png,1.5\n", r"line 2: score '1.5' is not a number in \[0, 1\]"),
        ("image,score\na.png\n", r"line 2: score None is not a number"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=problem):
            Teachers([table])
    with pytest.raises(FileNotFoundError, match="expected a CSV with the columns image and score"):
        Teachers([tmp_path / "none.csv"])


def load_scores(folder: Path) -> float:
    (file,) = folder.glob("*.npy")
    (score,) = np.load(file)
    return float(score)


def test_the_tune_command_makes_a_model(
    labels: Path, tiny_timm_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.safetensors"
    arguments = ["tune", str(tiny_timm_file), str(labels), "-o", str(output), "--work-dir", str(tmp_path / "w")]
    arguments += ["--image-size", "96", "--steps", "2", "--groups", "2", "--workers", "0"]
    assert main(arguments) == 1
    assert "frozen_blocks must lie in 0..5 for this tower of 6 blocks, got 8" in capsys.readouterr().err
    arguments += ["--frozen-blocks", "4"]
    assert main([*arguments, "--kept-patches", "0"]) == 1
    assert "kept_patches must lie in (0, 1], got 0.0" in capsys.readouterr().err
    assert main([*arguments, "--steady-pictures", "4"]) == 1
    assert (
        "a positive steady_weight, the weight of their term; got 4 pictures and weight 0.0" in capsys.readouterr().err
    )
    assert main([*arguments, "--steady-weight", "1", "--steady-pictures", "-1"]) == 1
    assert "steady_pictures must be at least 0" in capsys.readouterr().err
    arguments += ["--name", "mine", "--kept-patches", "0.5", "--whole-steps", "1", "--runs", "2"]
    assert main([*arguments, "--steady-weight", "0.5", "--first-run", "7"]) == 0
    assert "2 ordered groups" in capsys.readouterr().err
    metadata = read_metadata(output)
    assert metadata["name"] == "mine"
    assert metadata["preprocess"]["image_size"] == 96
    assert metadata["training"]["joint"]["runs"] == 2
    settings = metadata["training"]["joint"]["settings"]
    assert (settings["kept_patches"], settings["whole_steps"], settings["steady_weight"]) == (0.5, 1, 0.5)
    checkpoints = [torch.load(tmp_path / "w" / run / "joint.pt", weights_only=True) for run in (".", "run-1")]
    assert ["'seed': 7" in state["signature"] for state in checkpoints] == [True, False]
    assert "'seed': 8" in checkpoints[1]["signature"]
    assert main(["score", str(labels.parent / "0.png"), "--model", str(output)]) == 0


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        find_pictures([tmp_path])


def test_a_new_head_is_made_of_the_tuned_towers_own_embeddings(tiny_timm_file: Path) -> None:
    model = load_model(tiny_timm_file).model
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (30, 64, 64, 3), dtype=np.uint8) // np.arange(1, 31)[:, None, None, None]
    pictures, scores = pictures.astype(np.uint8), random.random(30)
    tower = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    said: list[str] = []
    refit_head(
        model, pictures, scores, validation=(pictures[:6], scores[:6]),
        compressing=CompressConfig(pca_dim=16, prototypes=30, temperature=1e-3), fitting=FitConfig(epochs=0), seed=0,
        report=said.append,
    )  # fmt: skip
    assert all(torch.equal(tensor, tower[name]) for name, tensor in model.encoder.state_dict().items())
    assert model.head.prototypes.shape == (30, 16)
    assert said == ["new head: 30 prototypes of dimension 16"]
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():  # every picture is its own prototype
        agreement = measure_agreement(model(pixels).numpy(), scores)
    assert agreement.srcc > 0.9


def test_a_new_head_learns_pictures_without_human_scores_as_much_as_they_weigh(tiny_timm_file: Path) -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8) // np.arange(1, 41)[:, None, None, None]
    pictures = pictures.astype(np.uint8)
    scores = np.linspace(0.9, 0.1, 40)  # the darker, the worse
    contrary = UnlabelledPictures([pictures[:20], pictures[20:]], 1 - scores)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    srcc = {}
    for weight in (0.1, 10.0):
        model = load_model(tiny_timm_file).model
        refit_head(
            model, pictures, scores, validation=(pictures, scores), unlabelled=contrary, unlabelled_weight=weight,
            compressing=CompressConfig(pca_dim=16, prototypes=40), seed=0,
            fitting=FitConfig(epochs=300, learning_rate=3e-2, teacher="svr"), report=lambda _: None,
        )  # fmt: skip
        with torch.inference_mode():
            srcc[weight] = measure_agreement(model(pixels).numpy(), scores).srcc
    assert srcc[0.1] > 0.8
    assert srcc[10.0] < -0.8


def test_a_new_head_learns_only_the_order_of_another_data_set(tiny_timm_file: Path) -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (60, 64, 64, 3), dtype=np.uint8) // np.arange(1, 61)[:, None, None, None]
    pictures = pictures.astype(np.uint8)
    own, theirs = pictures[::2], pictures[1::2]
    scores = np.linspace(0.9, 0.1, 30)  # the darker, the worse; in the other set the darker, the better
    heads: dict[tuple[float, float], torch.Tensor] = {}
    said: list[str] = []
    for weight, scale in ((0.0, 1.0), (0.5, 1.0), (0.5, 0.1)):
        model = load_model(tiny_timm_file).model
        other = DomainPictures("night", theirs, scale * (1 - scores), theirs[:10], scale * (1 - scores[:10]))
        refit_head(
            model, own, scores, validation=(own, scores), domains=[other], domains_weight=weight,
            compressing=CompressConfig(pca_dim=16, prototypes=30), seed=0,
            fitting=FitConfig(epochs=300, learning_rate=3e-2), report=said.append,
        )  # fmt: skip
        heads[weight, scale] = torch.from_numpy(predict_pictures(model, theirs))
    assert measure_agreement(heads[0.0, 1.0].numpy(), scores).srcc > 0.6
    assert measure_agreement(heads[0.5, 1.0].numpy(), scores).srcc < 0
    assert torch.allclose(heads[0.5, 1.0], heads[0.5, 0.1], atol=0.02)
    assert [line.split(" SRCC")[0] for line in said if "night" in line] == ["night: validation"] * 3


def test_tuning_can_end_with_a_new_head(labels: Path, dino_file: Path, tmp_path: Path) -> None:
    arguments = ["tune", str(dino_file), str(labels), "--work-dir", str(tmp_path / "w"), "--image-size", "42"]
    arguments += ["--steps", "1", "--groups", "0", "--workers", "0"]
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    assert main([*arguments, "-o", str(files[0])]) == 0
    assert main([*arguments, "-o", str(files[1]), "--new-head", "--recalibrate"]) == 0
    tuned, renewed = (load_model(file).model for file in files)
    weights = renewed.encoder.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tuned.encoder.state_dict().items())
    training = [read_metadata(file)["training"] for file in files]
    assert "new head" not in training[0]
    assert training[1]["new head"]["fit"] == asdict(TAUGHT)
    assert tuned.head.components.shape != renewed.head.components.shape  # fewer images than the settings' dimensions
    assert training[1]["figures"]["validation"]["count"] == training[0]["figures"]["validation"]["count"]
    assert "seen" not in training[1]["figures"]["validation"]
    assert main([*arguments, "-o", str(files[0]), "--new-head", "--held-out-weight", "2"]) == 0
    last = read_metadata(files[0])
    assert last["training"]["new head"]["fit"] == asdict(replace(TAUGHT, held_out_weight=2.0))
    assert last["training"]["figures"]["validation"]["seen"] is True
    assert main([*arguments, "-o", str(files[0]), "--new-head", "--held-out-weight", "2", "--recalibrate"]) != 0
    more = ["tune", str(files[0]), *arguments[2:], "-o", str(files[1]), "--validation-fraction", "0.05"]
    more[more.index("--work-dir") + 1] = str(tmp_path / "more")
    assert main(more) == 0
    figures = [read_metadata(file)["training"]["figures"]["validation"] for file in files]
    assert figures[1]["seen"] is True, "it goes on from one that has learnt them"
    assert figures[1]["count"] == round(figures[0]["count"] / 2)
    assert main([*more, "--recalibrate"]) != 0
    assert last["calibration"]["reference"].endswith("validation images of labels.csv, which its head has seen")
