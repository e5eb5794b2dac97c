"""`rali train CONFIG.toml`: the stages, their resuming, and the way from tables of scores to a model file."""

from __future__ import annotations

import hashlib
import json
import logging
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rali_core.checkpoint import load_model, read_metadata, save_model
from rali_core.cli import main
from rali_core.describe import measures
from rali_core.files import hash_file
from rali_core.scorer import RaliScorer
from rali_core.training import align, optimise, pipeline, publish, tune
from rali_core.training.attributes import MIN_AUC, PROBED
from rali_core.training.config import read_config

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = """
name = "mine"
output = "mine.safetensors"
work_dir = "work"
workers = 0
[backbone]
file = "dino.safetensors"
image_size = 42
frozen_blocks = 10
intermediate_block = 10
[[data]]
name = "own"
labels = "data/labels.csv"
images = 30
percentiles = "photographs"
[[data]]
name = "other"
labels = "data/other.csv"
scores = "correlation"
content_column = "scene"
group_column = "camera"
[describe]
seeds = 1
[distortions]
triplets = 8
blank = 4
[align]
steps = 12
batch_size = 16
chunk_size = 8
[tune]
steps = 12
batch_size = 12
validate_every = 0
[compress]
pca_dim = 16
bins = 10
prototypes = 20
[fit]
epochs = 2
triplets = 4
"""


@pytest.fixture
def config_file(labels: Path, dino_file: Path, tmp_path: Path) -> Path:  # noqa: ARG001 - the backbone is read there
    """A whole training of seconds: two sets of the same images, the second on its own scale."""
    lines = labels.read_text().splitlines()
    table = ["image,mos,split,scene,camera"]
    for number, line in enumerate(lines[1:]):
        image, mos, split, _ = line.split(",")
        table.append(f"{image},{float(mos) / 2},{split},{number % 9},{'ab'[number % 2]}")
    labels.with_name("other.csv").write_text("\n".join(table))
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Confidence intervals of many would take most of the tests' time."""
    monkeypatch.setattr(publish, "RESAMPLES", 20)


@pytest.fixture
def finished(config_file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work_dir of the finished training, which is trained once for all tests."""
    kept = tmp_path_factory.getbasetemp() / "finished-training"
    if not kept.exists():
        assert main(["train", str(config_file)]) == 0
        shutil.copytree(tmp_path / "work", kept / "work")
        for name in ("mine.safetensors", "dino.safetensors"):  # safetensors orders metadata differently in each file
            shutil.copy(tmp_path / name, kept)
    else:
        shutil.copytree(kept / "work", tmp_path / "work")
        for name in ("mine.safetensors", "dino.safetensors"):
            shutil.copy(kept / name, tmp_path)
    return tmp_path / "work"


def outputs(folder: Path) -> dict[str, str]:
    """Hashes of everything that the stages made and that counts."""
    names = [
        "align/encoder.safetensors",
        "tune/encoder.safetensors",
        "compress/head.safetensors",
        "fit/head.safetensors",
    ]
    return {name: hash_file(folder / name) for name in names if (folder / name).is_file()}


def test_a_training_goes_from_tables_to_a_scoring_file(finished: Path, tmp_path: Path) -> None:
    model = tmp_path / "mine.safetensors"
    metadata = read_metadata(model)
    figures = metadata["training"]["figures"]
    assert set(figures) == {"own", "other"}
    assert figures["own"]["test"]["count"] == 11, "without the flagged near-duplicate"
    assert set(figures["other"]["test"]["srcc_within_groups"]) == {"a", "b"}
    assert metadata["calibration"]["populations"][0]["name"] == "photographs"
    training = metadata["training"]
    assert training["config"]["tune"]["steps"] == 12
    assert len(training["config_sha256"]) == len(training["data"]["own"]["sha256"]) == 64
    assert set(training["stages"]) == set(pipeline.STAGES)
    sharp = sorted((tmp_path / "data").glob("*.png"))[:5]
    assert all(0 <= score <= 1 for score in RaliScorer.from_pretrained(model, device="cpu").score(sharp).scores)
    assert (finished / "tune" / "curves.png").is_file()
    assert len(np.load(finished / "embeddings" / "own-training.npy")) == 30, "at most as many as the set's images says"


def test_a_mapped_set_is_tuned_on_the_models_scale(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other set holds the same images with half of their scores."""
    config_file.write_text(CONFIG.replace('scores = "correlation"', 'scores = "mapped"'))
    seen: list[tune.ScoredImages] = []

    def keep(_model: object, sets: list[tune.ScoredImages], *_: object, **__: object) -> list[dict[str, float]]:
        seen.extend(sets)
        return [{"step": 1, "loss": 0.0}]

    monkeypatch.setattr(pipeline, "tune_encoder", keep)
    assert main(["train", str(config_file), "--stage", "describe", "--stage", "align", "--stage", "tune"]) == 0
    own, other = seen[:2]
    assert other.role == "mapped"
    assert abs(other.scores.mean() - own.scores.mean()) < 0.1
    assert 0 <= other.scores.min() < other.scores.max() <= 1


def test_a_model_of_two_domains_can_be_told_them_and_a_tool_adds_them_later(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CONFIG.replace('scores = "correlation"', 'scores = "mapped"\npercentiles = "drawings"')
    text = text.replace("[align]\nsteps = 12", "[align]\nsteps = 0").replace("[tune]\nsteps = 12", "[tune]\nsteps = 0")
    config_file.write_text(text.replace("[compress]", "[compress]\nset_scale = 12.0"))
    assert main(["train", str(config_file)]) == 0
    model, bare, added = (tmp_path / f"{name}.safetensors" for name in ("mine", "bare", "added"))
    domains = read_metadata(model)["domains"]
    whole = load_model(model)
    last = {name: (torch.from_numpy(np.load(tmp_path / "work" / "embeddings" / f"{data}-training.npy"))
                   - whole.model.head.mean) / whole.model.head.scale.abs() @ whole.model.head.components[-1]
            for name, data in (("photographs", "own"), ("drawings", "other"))}  # fmt: skip
    assert domains == {name: pytest.approx(each.mean().item(), abs=1e-3) for name, each in last.items()}
    whole.model.domains = {}
    save_model(bare, whole.model, whole.info)
    assert "domains" not in read_metadata(bare)
    monkeypatch.setattr(sys, "argv", ["complete_model.py", str(config_file), str(bare), "--domains", "-o", str(added)])
    runpy.run_path(str(REPOSITORY / "tools" / "complete_model.py"), run_name="__main__")
    assert read_metadata(added)["domains"] == {name: pytest.approx(value, abs=0.05) for name, value in domains.items()}
    one, other = load_file(bare), load_file(added)
    assert all(bool((one[name] == other[name]).all()) for name in one)


def test_finished_stages_are_run_again_only_for_other_inputs(
    config_file: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rali")
    before = outputs(finished)
    pipeline.train(read_config(config_file))
    assert sum("already finished" in message for message in caplog.messages) == 5
    config_file.write_text(CONFIG.replace("epochs = 2", "epochs = 3"))
    caplog.clear()
    pipeline.train(read_config(config_file))
    assert "fit: re-running: inputs changed (settings)" in caplog.messages
    after = outputs(finished)
    assert {name for name in before if before[name] != after[name]} == {"fit/head.safetensors"}


def test_stages_run_alone_and_in_order_only(config_file: Path, tmp_path: Path) -> None:
    config = read_config(config_file)
    with pytest.raises(ValueError, match="there is no stage polish; there are describe, align, tune, compress, fit"):
        pipeline.train(config, stages=["polish"])
    with pytest.raises(ValueError, match="stage align needs stage describe, which is not finished"):
        pipeline.train(config, stages=["align"])
    assert pipeline.train(config, stages=["describe"]) is None
    lines = (tmp_path / "work" / "describe" / "own.jsonl").read_text().splitlines()
    assert len(lines) == 30 + 8, "training and validation images, one description each"
    assert not any("excellent" in json.loads(line)["description"] for line in
                   (tmp_path / "work" / "describe" / "other.jsonl").read_text().splitlines())  # fmt: skip
    (tmp_path / "work" / "align").mkdir()
    (tmp_path / "work" / "align" / "mine.txt").write_text("notes")
    with pytest.raises(FileExistsError, match="holds files that no stage made"):
        pipeline.train(config, stages=["align"])


def interrupt_after(calls: int, function: Callable[..., object]) -> Callable[..., object]:
    """The function, which raises KeyboardInterrupt when it is called once too often."""
    made = [0]

    def wrapped(*arguments: object, **options: object) -> object:
        made[0] += 1
        if made[0] > calls:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize(
    ("where", "name", "calls"),
    [
        (measures, "measure_image", 40),  # in describe
        (align, "encode", 7),
        (tune, "encode", 7),
        (pipeline, "compress_embeddings", 0),
        (pipeline, "fit_head", 0),
    ],
)
def test_a_killed_training_resumes_to_the_same_model(
    where: object, name: str, calls: int, config_file: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimise, "CHECKPOINT_SECONDS", 0.0)
    config = read_config(config_file)
    expected, whole = outputs(finished), load_file(config.output)
    shutil.rmtree(finished)
    config.output.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupt_after(calls, getattr(where, name)))
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(config)
    assert not config.output.exists()
    pipeline.train(config)
    assert outputs(finished) == expected
    again = load_file(config.output)
    assert all(bool((again[key] == whole[key]).all()) for key in whole)


def test_a_trial_with_few_images_leaves_the_real_training_alone(config_file: Path, tmp_path: Path) -> None:
    assert main(["train", str(config_file), "--limit", "12"]) == 0
    assert (tmp_path / "mine-limit-12.safetensors").is_file()
    assert not (tmp_path / "work").exists()
    assert read_metadata(tmp_path / "mine-limit-12.safetensors")["training"]["data"]["own"]["images"]["training"] == 12
    with pytest.raises(ValueError, match="the limit must be at least 3 images, got 2"):
        pipeline.train(read_config(config_file), limit=2)


def test_the_copies_key_holds_the_pristine_images_only_where_there_are_copies(
    config_file: Path, tmp_path: Path
) -> None:
    for name in ("pristine", "others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(name.encode())
    keys = {}
    for count in (0, 4):
        for folder in ("pristine", "others"):
            config_file.write_text(
                CONFIG.replace("[distortions]\n", f'[distortions]\ncopies = {count}\npristine = ["{folder}"]\n')
            )
            run = pipeline.Run(read_config(config_file))
            keys[count, folder] = run.copies_key
    assert keys[0, "pristine"] == keys[0, "others"]
    digest = hashlib.sha256(b"(0, 4)" + run.data[0].digest.encode() + hash_file(tmp_path / "others" / "a.png").encode())
    assert keys[4, "others"] == digest.hexdigest() != keys[4, "pristine"], "caches of earlier runs stay valid"


def test_a_model_file_is_trained_further_without_aligning(config_file: Path, tmp_path: Path) -> None:
    config_file.write_text(
        CONFIG.replace("[align]\nsteps = 12", "[align]\nsteps = 0").replace("epochs = 2", "epochs = 0")
    )
    assert main(["train", str(config_file)]) == 0
    assert not (tmp_path / "work" / "describe").exists()
    metadata = read_metadata(tmp_path / "mine.safetensors")
    assert set(metadata["training"]["stages"]) == {"align", "tune", "compress", "fit"}
    assert metadata["source"]["origin"] == {"made": "by hand"}


def test_a_model_tells_attributes_where_images_suffice_and_a_tool_adds_them_later(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CONFIG.replace("[align]\nsteps = 12", "[align]\nsteps = 0").replace(
        "[tune]\nsteps = 12", "[tune]\nsteps = 0"
    )
    config_file.write_text(text.replace("triplets = 8", "triplets = 14"))
    assert main(["train", str(config_file)]) == 0
    model, bare, added = (tmp_path / f"{name}.safetensors" for name in ("mine", "bare", "added"))
    told = read_metadata(model)["training"]["attributes"]
    attributes = load_model(model).model.attributes
    assert {attribute.name for attribute in attributes} | set(told["left_out"]) == set(PROBED)
    assert all(attribute.auc >= MIN_AUC for attribute in attributes)
    result = RaliScorer.from_pretrained(model, device="cpu", attributes=True).score([tmp_path / "data" / "1.png"])
    assert result.attributes[0] is not None
    assert list(result.attributes[0].values) == [attribute.name for attribute in attributes]
    whole = load_model(model)
    whole.model.probes = None
    save_model(bare, whole.model, whole.info)
    monkeypatch.setattr(
        sys, "argv", ["complete_model.py", str(config_file), str(bare), "--attributes", "-o", str(added)]
    )
    runpy.run_path(str(REPOSITORY / "tools" / "complete_model.py"), run_name="__main__")
    one, other = load_file(model), load_file(added)
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)
    assert read_metadata(added)["attributes"] == read_metadata(model)["attributes"]
    assert read_metadata(added)["training"]["config_sha256"] == read_metadata(model)["training"]["config_sha256"]


def test_a_generator_can_be_left_out_of_the_training(config_file: Path) -> None:
    config_file.write_text(CONFIG.replace('group_column = "camera"', 'group_column = "camera"\nexclude_groups = ["a"]'))
    data = read_config(config_file).data[1]
    left = pipeline.read_data_set(data, seed=0)
    assert {row.group for row in left.training + left.validation} == {"b"}
    assert {row.group for row in left.test} == {"a", "b"}
    config_file.write_text(CONFIG.replace('group_column = "camera"', 'group_column = "camera"\nexclude_groups = ["z"]'))
    with pytest.raises(ValueError, match=r"exclude_groups of 'other': other\.csv has no z"):
        pipeline.read_data_set(read_config(config_file).data[1], seed=0)
