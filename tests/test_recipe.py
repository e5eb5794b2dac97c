"""`rali train CONFIG.toml`: configuration, stages, and the way from a table of scores to a model file."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rali_core.checkpoint import load_model, read_metadata
from rali_core.cli import main
from rali_core.files import hash_file
from rali_core.training.config import read_config
from rali_core.training.data import read_labels
from rali_core.training.provenance import git_commit, hash_files
from rali_core.training.stages import Stage, run_stages

# ----------------------------------------------------------------------------------------- configuration

HEAD = 'name = "mine"\noutput = "mine.safetensors"\nwork_dir = "work"\n'
SECTIONS = '[backbone]\nfile = "tower.safetensors"\n[data]\nlabels = "data/labels.csv"\n'


def write_config(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_configuration_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    text = HEAD + SECTIONS + 'score_range = [1, 5]\n[align]\nviews = ["whole"]\nlearning_rate = 1\n'
    text += '[ract]\nsteps = 7\n[[ract.data]]\nname = "sea"\nlabels = "/else/sea.csv"\n'
    config = read_config(write_config(tmp_path / "c.toml", text))
    assert config.data.labels == tmp_path / "data" / "labels.csv"
    assert config.data.score_range == (1.0, 5.0)
    assert (config.align.views, config.align.learning_rate, config.align.batch_size) == (("whole",), 1.0, 128)
    assert config.ract is not None
    assert (config.ract.steps, config.ract.data[0].labels) == (7, Path("/else/sea.csv"))
    assert config.joint == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae = 1\n" + HEAD + SECTIONS, r"c\.toml: unknown key\(s\) at the top: nmae; there are name, output, work_dir, backbone, data,"),
        (HEAD + SECTIONS + "[align]\nstep = 3\n", r"unknown key\(s\) in \[align\]: step; there are steps, batch_size, .*text_tower"),
        (HEAD + SECTIONS + "[joint]\nruns = 0\n", r"joint.runs must be at least 1 and joint.start_share lie in .* got 0"),
        (HEAD + SECTIONS + "[joint]\nteacher_share = 2.0\n", r"joint\.teacher_share must lie in \[0, 1\], got 2"),
        (HEAD + SECTIONS + '[joint]\nunlabelled = ["a"]\n', r"joint\.unlabelled, .*, and joint\.unlabelled_teachers, .*one another"),
        (HEAD + SECTIONS + "[joint]\nunlabelled_weight = 3\n", r"any but 1 needs unlabelled, new_head and fit\.teacher = 'svr'; got 3"),
        (HEAD + SECTIONS + "[fit]\nheld_out_weight = 1\n", r"would leave nothing to choose by: set that of a \[\[joint"),
        (HEAD + SECTIONS + "[joint]\nheld_out_weight = 2\n", r"held_out_weight .* needs new_head and fit.teacher = 'svr', got 2"),
        (
            HEAD + SECTIONS + "[fit]\nteacher = 'svr'\n[joint]\nnew_head = true\nheld_out_weight = 2\nrecalibrate = true\n",
            "recalibrate fits to the validation images, which .* has learnt",
        ),
        (
            HEAD + SECTIONS + "[joint]\nnew_head = true\nothers_weight = 0.1\n",
            r"joint\.others_weight must be at least 0, and needs new_head and \[\[ract\.data\]\], got 0\.1",
        ),
        (HEAD + SECTIONS + "[joint]\nvalidation_fraction = 0.2\n", r"must lie in \(0, 0\.1\], what was held out before; got 0\.2"),
        (HEAD + SECTIONS + '[joint]\nmix_with = "a"\n', r"joint\.mix_with names weights to mix in, but joint\.start_share, .*0"),
        (HEAD + SECTIONS + "[joint]\nseed = 3\n", r"unknown key\(s\) in \[joint\]: seed; there are image_size"),
        (HEAD + SECTIONS + '[ract]\n[[ract.data]]\nlabel = "x"\n', r"unknown key\(s\) in \[ract\.data\]: label; there are labels"),
        (HEAD, r"missing key\(s\) at the top: backbone, data"),
        (HEAD + SECTIONS + '[fit]\nepochs = "many"\n', "fit.epochs must be of type int, got 'many'"),
        (HEAD + SECTIONS + "[fit]\nepochs = true\n", "fit.epochs must be of type int, got True"),
        (HEAD + SECTIONS + "score_range = [1]\n", "data.score_range must have 2 values, got 1"),
        (HEAD + SECTIONS + '[align]\nviews = "whole"\n', "align.views must be a list, got 'whole'"),
        (HEAD + SECTIONS + '[align]\nviews = ["all"]\n', "align.views must be one of 'whole', 'mirrored', 'crop', got 'all'"),
        (HEAD + SECTIONS + '[align]\nviews = ["crop"]\n', "align.views must begin with 'whole'"),
        (HEAD + SECTIONS + "[align]\nsteps = 0\n", r"\[align\]: steps must be at least 1, got 0"),
        (HEAD + SECTIONS + '[describe]\nsource = "magic"\n', "describe.source must be one of 'measured', 'qinsight', 'file', 'score', got 'magic'"),
        (HEAD + SECTIONS + '[describe]\nsource = "qinsight"\n', "needs describe.model"),
        (HEAD + SECTIONS + '[describe]\nsource = "file"\n', "needs data.descriptions"),
        (HEAD + SECTIONS + "[fit]\nteacher_gamma = 0\n", "must be positive, .*, got 0.3, 0.0, 0.03"),
        (HEAD + SECTIONS + "[fit]\norder_weight = 1\n", "set describe.groups, and leave align enabled"),
        (HEAD + SECTIONS + "[ract]\n", r"\[\[ract\.data\]\] must be there, each with another name"),
        (HEAD.replace("mine.safetensors", "mine.pt") + SECTIONS, "ends in .safetensors, got mine.pt"),
        ("name = \n", "is not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_configuration_is_said(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(write_config(tmp_path / "c.toml", text))


def test_a_configuration_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration"):
        read_config(tmp_path / "gone.toml")


# ------------------------------------------------------------------------------------------------ stages


def test_a_stage_runs_again_only_for_other_inputs_or_outputs(tmp_path: Path) -> None:
    runs: list[str] = []
    settings = {"a": 1, "b": 1}

    def stage(name: str, before: Stage | None) -> Stage:
        def work(folder: Path) -> None:
            runs.append(name)
            (folder / "out.txt").write_text(name + str(settings[name]))

        inputs = lambda: {"setting": settings[name], "before": before.hashes if before else None}  # noqa: E731
        return Stage(name, tmp_path / name, ("out.txt",), inputs, work)

    first = stage("a", None)
    stages = [first, stage("b", first)]
    lines: list[str] = []

    def run(wanted: list[str] | None = None) -> list[str]:
        runs.clear()
        run_stages(stages, wanted, report=lines.append)
        return list(runs)

    with pytest.raises(ValueError, match="stage b needs stage a, which is not finished"):
        run(["b"])
    assert run(["a"]) == ["a"]
    assert run() == ["b"]
    assert run() == []
    settings["b"] = 2
    assert run() == ["b"]
    assert "b: made anew, for these changed: setting" in lines
    (tmp_path / "a" / "out.txt").write_text("spoilt")
    assert run() == ["a"], "the output is the same again, so b stands"
    settings["a"] = 2
    assert run() == ["a", "b"]
    with pytest.raises(ValueError, match="has no stage c; it has a, b"):
        run(["c"])


def test_an_interrupted_stage_finds_what_it_left_and_others_files_are_not_touched(tmp_path: Path) -> None:
    setting = [1]
    found: list[bool] = []

    def work(folder: Path) -> None:
        found.append((folder / "half").exists())
        (folder / "half").touch()
        if len(found) < 4 and len(found) != 2:
            raise KeyboardInterrupt
        (folder / "out").touch()

    stage = Stage("s", tmp_path / "s", ("out",), lambda: {"setting": setting[0]}, work)
    with pytest.raises(KeyboardInterrupt):
        run_stages([stage])
    run_stages([stage])
    assert found == [False, True]
    setting[0] = 2
    with pytest.raises(KeyboardInterrupt):
        run_stages([stage])
    assert found == [False, True, False]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(FileExistsError, match="holds files that no stage made"):
        run_stages([Stage("m", tmp_path / "mine", ("out",), dict, work)])
    assert (tmp_path / "mine" / "letter.txt").exists()


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").touch()
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*command, *arguments], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("changed")
    assert git_commit(tmp_path) == commit + "-dirty"


def test_the_hash_of_files_tells_contents_and_order_and_not_names(tmp_path: Path) -> None:
    for name, content in (("a", "1"), ("b", "2"), ("c", "1")):
        (tmp_path / name).write_text(content)
    assert hash_files([tmp_path / "a", tmp_path / "b"]) == hash_files([tmp_path / "c", tmp_path / "b"])
    assert hash_files([tmp_path / "a", tmp_path / "b"]) != hash_files([tmp_path / "b", tmp_path / "a"])


# -------------------------------------------------------------------------------------------- whole path

SMALL = """
name = "mine"
output = "{output}"
work_dir = "{work}"
workers = 0
[backbone]
file = "tiny-timm.safetensors"
image_size = 64
frozen_blocks = 4
[data]
labels = "data/labels.csv"
validation_fraction = 0.2
[describe]
seeds = 2
groups = 3
[align]
steps = 12
batch_size = 24
chunk_size = 16
learning_rate = 1e-3
warmup_steps = 3
validate_every = 6
checkpoint_every = 5
[compress]
pca_dim = 24
bins = 6
prototypes = 16
[fit]
epochs = {epochs}
batch_size = 16
"""


TAUGHT = 'teacher = "svr"\norder_weight = 0.01\nsteady_weight = 0.02\n'


def small_config(folder: Path, name: str, *, epochs: int = 10, more: str = "") -> Path:
    text = SMALL.format(output=f"{name}.safetensors", work=f"work-{name}", epochs=epochs) + more
    return write_config(folder / f"{name}.toml", text)


def test_one_command_leads_from_scores_to_a_model_that_scores_and_does_so_again(
    labels: Path, tiny_timm_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert tiny_timm_file.parent == tmp_path
    config = small_config(tmp_path, "a")
    assert main(["train", str(config)]) == 0
    said = capsys.readouterr().err
    assert "reference: 67 training, 17 validation, 11 test images" in said
    model = tmp_path / "a.safetensors"
    assert main(["score", str(labels.parent / "0.png"), "--model", str(model)]) == 0
    assert "0.png" in capsys.readouterr().out

    # what the file tells
    training = read_metadata(model)["training"]
    recipe = training["recipe"]
    assert recipe["config"]["align"]["steps"] == 12
    assert recipe["config"]["backbone"]["file"] == "tiny-timm.safetensors", "no folder of this machine"
    assert recipe["data"]["reference"]["labels_sha256"] == hash_file(labels)
    assert list(recipe["stages"]) == ["align", "compress", "describe", "describe-groups", "fit"]
    assert recipe["stages"]["describe"]["descriptions"] == {"count": 168, "source": "measured"}
    assert recipe["stages"]["describe-groups"]["descriptions"] == {"count": 18, "source": "measured"}
    assert recipe["stages"]["align"]["log"][-1]["step"] == 12
    assert recipe["stages"]["fit"]["outputs"] == {
        "model.safetensors": hash_file(tmp_path / "work-a/fit/model.safetensors")
    }
    assert recipe["git_commit"] == git_commit()
    assert recipe["seed"] == 0
    started_from = read_metadata(tiny_timm_file)
    assert recipe["start"]["sha256"] == hash_file(tiny_timm_file)
    assert recipe["start"]["training"] == started_from["training"]
    assert started_from["source"]
    assert read_metadata(model)["source"] == started_from["source"]
    assert training["figures"]["validation"]["count"] == 17
    assert (tmp_path / "work-a" / "align" / "curves.png").stat().st_size > 5000

    # the same again, elsewhere
    assert main(["train", str(small_config(tmp_path, "b"))]) == 0
    first, second = load_file(model), load_file(tmp_path / "b.safetensors")
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.allclose(tensor.float(), second[name].float(), atol=1e-5), name

    # what is finished stays, and only what depends on a change is made anew
    capsys.readouterr()
    assert main(["train", str(config)]) == 0
    assert capsys.readouterr().err.count("finished already") == 5
    small_config(tmp_path, "a", epochs=1, more=TAUGHT)
    assert main(["train", str(config)]) == 0
    said = capsys.readouterr().err
    assert said.count("finished already") == 4
    assert "teacher: validation SRCC " in said
    assert "3 undistorted pictures, mirrored and saved as JPEG" in said
    assert read_metadata(model)["training"]["recipe"]["config"]["fit"]["order_weight"] == 0.01
    assert "fit: made anew, for these changed: describe-groups/descriptions.jsonl, settings" in said
    assert load_file(model)["head.scores"].tolist() != first["head.scores"].tolist()
    assert torch.equal(load_file(model)["head.components"], first["head.components"])

    # what each part is worth, beside the training, which stays as it is
    made = {path: hash_file(path) for path in (model, *(tmp_path / "work-a").glob("[acf]*/*.safetensors"))}
    assert len(made) == 5
    script = Path(__file__).resolve().parent.parent / "bench" / "ablation.py"
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [str(script), str(config)])
        runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 * (2 + 9)
    assert shown[:11] == shown[11:]
    assert len(set(shown[2:11])) == 9
    assert {path: hash_file(path) for path in made} == made
    results = json.loads((tmp_path / "work-a" / "ablation" / "ablation.json").read_text())
    assert results["full"]["srcc"] == pytest.approx(
        read_metadata(model)["training"]["figures"]["validation"]["srcc"], abs=0.02
    )
    assert results["one description of each image"]["settings"]["describe"]["seeds"] == 1


def test_all_stages_run_one_by_one_and_the_last_model_keeps_the_story(
    labels: Path, tiny_timm_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{row.path.name},{1 + 4 * row.score},{row.split}" for row in read_labels(labels)]
    (tmp_path / "data" / "other.csv").write_text("image,mos,split\n" + "\n".join(rows))
    (tmp_path / "strangers").mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(tmp_path / "data" / name, tmp_path / "strangers")
    more = """
[ract]
steps = 3
batch_size = 24
others_weight = 0.2
[[ract.data]]
name = "other"
labels = "data/other.csv"
score_range = [1, 5]
limit = 30
tell_scores = true
[[joint]]
image_size = 64
frozen_blocks = 4
steps = 2
groups = 2
runs = 2
start_share = 0.5
[[joint]]
image_size = 96
frozen_blocks = 5
steps = 1
groups = 2
validation_fraction = 0.05
teachers = ["tiny-timm.safetensors"]
teacher_share = 0.25
unlabelled = ["strangers"]
unlabelled_teachers = ["tiny-timm.safetensors"]
[[joint]]
image_size = 464
frozen_blocks = 5
steps = 1
batch_size = 4
groups = 2
kept_patches = 0.2
limit = 40
first_run = 7
new_head = true
others_weight = 0.3
recalibrate = true
"""
    text = SMALL.format(output="c.safetensors", work="w", epochs=1).replace("groups = 3", 'source = "score"') + more
    config = write_config(tmp_path / "c.toml", text)
    assert main(["train", str(config), "--stage", "align"]) == 1
    assert "stage align needs stage describe, which is not finished" in capsys.readouterr().err
    assert main(["train", str(config), "--stage", "describe", "--stage", "align"]) == 0
    assert not (tmp_path / "c.safetensors").exists()
    line = json.loads((tmp_path / "w" / "describe" / "descriptions.jsonl").read_text().splitlines()[0])
    assert line["source"] == "score"
    assert line["image"].endswith(".png")
    capsys.readouterr()
    assert main(["train", str(config)]) == 0
    said = "".join(capsys.readouterr())
    training = read_metadata(tmp_path / "c.safetensors")["training"]
    assert training["joint"]["settings"]["steps"] == 1
    assert load_model(tmp_path / "c.safetensors").model.preprocess_config.image_size == 464
    pictures = sorted(path.relative_to(tmp_path / "w").as_posix() for path in (tmp_path / "w").rglob("training*.npy"))
    assert pictures == ["joint/training-464.npy", "joint/training.npy"]  # the first two use the same
    runs = [
        torch.load(tmp_path / "w" / folder / "joint.pt", weights_only=True)["signature"]
        for folder in ("joint", "joint/run-1", "joint-2", "joint-3")
    ]
    assert [f"'seed': {seed}" in run for seed, run in zip([0, 1, 2, 7], runs, strict=True)] == [True] * 4
    assert ("recalibrated" in training) != ("not recalibrated" in said)
    assert training["new head"]["compress"] == training["recipe"]["config"]["compress"]
    sets = {"other": {"labels_sha256": hash_file(tmp_path / "data" / "other.csv"), "images": 30}}
    assert training["domains"] == {"weight": 0.3, "sets": sets}
    assert "other: validation SRCC" in said
    assert training["images"]["validation"] == 4, "as the section before"
    assert training["images"]["training"] == 40 < training["before"]["training"]["images"]["training"]
    assert training["before"]["training"]["teachers"] == {"sha256": [hash_file(tiny_timm_file)], "share": 0.25}
    assert training["before"]["training"]["unlabelled"] == {"pictures": 4, "teachers": [hash_file(tiny_timm_file)]}
    first = training["before"]["training"]["before"]["training"]
    assert "new head" not in first
    assert first["joint"]["settings"]["steps"] == 2
    assert first["joint"]["runs"] == len(first["joint"]["log"]) == 2
    assert first["mixed"]["share"] == 0.5
    before = first["before"]["training"]
    assert before["stage"] == "ract"
    assert {name: figures["count"] for name, figures in before["domains"].items()} == {"reference": 17, "other": 8}
    assert list(training["recipe"]["data"]) == ["other", "reference"]
    assert training["recipe"]["data"]["other"]["images"] == {"training": 30, "validation": 8, "test": 12}
    assert {"describe", "describe-other", "ract", "joint", "joint-2", "joint-3"} < set(training["recipe"]["stages"])

    # the test images are looked at for the model that is published, and for no other
    assert training["figures"]["test"]["count"] == 11
    for earlier in (training["before"]["training"], first, before):
        assert set(earlier["figures"]) == {"validation"}
    shorter = text[: text.rindex("[[joint]]")].replace("c.safetensors", "shorter.safetensors")
    assert main(["train", str(write_config(config, shorter))]) == 0
    published = read_metadata(tmp_path / "shorter.safetensors")["training"]
    assert published["joint"] == training["before"]["training"]["joint"]
    assert published["figures"]["test"]["count"] == 11

    # weights of another model instead of the start's
    mixed = text[: text.index("[[joint]]\nimage_size = 96")].replace("c.safetensors", "mixed.safetensors")
    mixed = mixed.replace("start_share = 0.5", 'start_share = 1.0\nmix_with = "shorter.safetensors"')
    assert main(["train", str(write_config(config, mixed))]) == 0
    theirs, ours = (load_model(tmp_path / f"{name}.safetensors").model.head for name in ("shorter", "mixed"))
    assert torch.equal(ours.prototypes, theirs.prototypes)

    # two sections that start from one model, the second of which mixes in what the first has made
    side = """
[[joint]]
start_from = 0
image_size = 64
frozen_blocks = 4
steps = 1
groups = 2
start_share = 1.0
mix_with = "w/joint/model.safetensors"
"""
    beside = mixed.replace("mixed.safetensors", "beside.safetensors") + side
    assert main(["train", str(write_config(config, beside))]) == 0
    told = read_metadata(tmp_path / "beside.safetensors")["training"]
    assert told["before"]["training"]["stage"] == "ract"
    assert told["mixed"]["sha256"] == hash_file(tmp_path / "w" / "joint" / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "beside.safetensors").model.head.prototypes, theirs.prototypes)
    capsys.readouterr()
    assert main(["train", str(write_config(config, beside.replace("start_from = 0", "start_from = 2")))]) == 1
    assert "joint.start_from of section 2 must be the number of an earlier section" in capsys.readouterr().err

    # no steps: mixing alone
    untuned = re.sub(r"(\[\[joint\]\][^\[]*?\n)steps = \d+\n", r"\1steps = 0\n", mixed).replace("mixed.", "untuned.")
    assert untuned.count("steps = 0\n") == 1
    assert main(["train", str(write_config(config, untuned))]) == 0
    assert torch.equal(load_model(tmp_path / "untuned.safetensors").model.head.prototypes, theirs.prototypes)


@pytest.mark.usefixtures("labels", "tiny_timm_file", "tiny_file")
def test_training_says_at_once_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(old: str, new: str) -> str:
        text = SMALL.format(output="x.safetensors", work="w", epochs=1)
        assert old in text
        assert main(["train", str(write_config(tmp_path / "x.toml", text.replace(old, new)))]) == 1
        return capsys.readouterr().err

    assert "no backbone file" in error("tiny-timm.safetensors", "gone.onnx")
    assert "needs a timm vision transformer tower" in error("tiny-timm.safetensors", "tiny.safetensors")
    assert "expected at least 20 training and 3 validation images, got 8 and" in error(
        "[describe]", "limit = 8\n[describe]"
    )
    assert "unknown key(s) in [fit]: epoch" in error("epochs", "epoch")


def test_the_example_configuration_is_valid() -> None:
    config = read_config(Path(__file__).resolve().parent.parent / "configs" / "small.toml")
    assert config.backbone.image_size == 224
    assert config.compress.prototypes == 250
    assert config.ract is not None
    assert len(config.ract.data) == 2
    assert [joint.image_size for joint in config.joint] == [336, 336, 518, 518]
