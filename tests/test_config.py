from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from rali_core.training.config import TrainConfig, read_config

REPOSITORY = Path(__file__).resolve().parents[1]
TOP = 'name = "mine"\noutput = "mine.safetensors"\nwork_dir = "work"\n'
HEAD = TOP + '[backbone]\nfile = "encoder.safetensors"\n[[data]]\nname = "a"\nlabels = "data/labels.csv"\n'
USER_OPTIONS = {
    "licence": "for weights that are passed on",
    "device": "a certain GPU",
    "data.images_root": "images and table in different places",
    "data.score_range": "tables on other scales",
    "data.images": "sets whose tokens do not fit on the disk",
    "data.exclude_groups": "leave-one-generator-out figures",
    "data.descriptions": "descriptions of one's own",
    "data.scores_in_text": "sets whose scores are on another scale",
    "describe.model": "Q-Insight's descriptions, as in the paper",
    "describe.prompt_file": "the same with another question",
    "describe.dtype": "the same on other hardware",
    "describe.max_new_tokens": "the same",
    "describe.attempts": "the same",
    "align.texts_per_image": "the paper's seed augmentation",
    "align.text_model": "the text encoder of CLIP, as in the paper",
    "align.weight_decay": "other encoders",
    "tune.weight_decay": "other encoders",
    "align.head_learning_rate": "other encoders",
    "tune.head_learning_rate": "other encoders",
    "align.layer_decay": "other encoders",
    "align.schedule_steps": "a longer cosine, as tune's",
    "tune.layer_decay": "other encoders",
    **{
        f"align.{key}": "a pretrained encoder instead of a model file, whose encoder is aligned already"
        for key in (
            "batch_size",
            "chunk_size",
            "learning_rate",
            "validate_every",
            "validation_images",
            "warmup_steps",
        )
    },
    "tune.schedule_steps": "a training that is stopped early",
    "tune.ranking_weight": "no known distortions",
    "tune.range_weight": "the same",
    "compress.temperature": "the paper's 0.07",
    "fit.batch_size": "small sets",
    "fit.learning_rate": "small sets",
    "fit.correlation_weight": "a set that matters more",
    "fit.ranking_weight": "no known distortions",
    "fit.consistency_weight": "steadier scores",
}
"""Settings that no configuration here sets, and who needs them."""


def write_config(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def all_keys(kind: Any = TrainConfig, prefix: str = "") -> set[str]:
    hints, found = get_type_hints(kind), set()
    for field in fields(kind):
        hint = hints[field.name]
        inner = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        found |= all_keys(inner, f"{prefix}{field.name}.") if inner else {prefix + field.name}
    return found


def test_a_configuration_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    text = HEAD + 'score_range = [1, 5]\n[[data]]\nname = "sea"\nlabels = "/else/sea.csv"\nscores = "none"\n'
    config = read_config(write_config(tmp_path / "c.toml", text + "[align]\nlearning_rate = 1\n"))
    assert config.data[0].labels == tmp_path / "data" / "labels.csv"
    assert config.data[0].score_range == (1.0, 5.0)
    assert (config.data[1].labels, config.data[1].scores) == (Path("/else/sea.csv"), "none")
    assert (config.align.learning_rate, config.align.batch_size) == (1.0, 128)
    assert config.backbone.file == str(tmp_path / "encoder.safetensors")
    named = write_config(tmp_path / "n.toml", HEAD.replace("encoder.safetensors", "timm:vit_small_patch14_dinov2"))
    assert read_config(named).backbone.file == "timm:vit_small_patch14_dinov2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae = 1\n" + HEAD, r"unknown setting\(s\) at the top: nmae; there are name, output, work_dir, backbone, data,"),
        (HEAD + "[align]\nstep = 3\n", r"unknown setting\(s\) in \[align\]: step; there are steps, batch_size, .*text_model"),
        (HEAD + "seed = 3\n", r"unknown setting\(s\) in \[data\]: seed; there are name, labels"),
        (TOP, r"missing setting\(s\): backbone, data"),
        (TOP + "[backbone]\nimage_size = 14\n[[data]]\n", r"missing setting\(s\): backbone.file"),
        (HEAD + '[fit]\nepochs = "many"\n', "fit.epochs must be of type int, got 'many'"),
        (HEAD + "[fit]\nepochs = true\n", "fit.epochs must be of type int, got True"),
        (HEAD + "[fit]\nepochs = -1\n", r"fit\.epochs must lie in 0\.\.1e\+06, got -1"),
        (HEAD + "score_range = [1]\n", "data.score_range must have 2 values, got 1"),
        (HEAD + '[distortions]\npristine = "a"\n', "distortions.pristine must be a list, got 'a'"),
        (HEAD + "[align]\nbatch_size = 1\n", r"align\.batch_size must lie in 2\.\.1e\+06, got 1"),
        (HEAD + "[tune]\nsteps = 9\nschedule_steps = 8\n", "tune.schedule_steps must be 0 or at least tune.steps, got 8"),
        (HEAD + "[tune]\npatch_dropout = 1.0\n", r"tune\.patch_dropout must lie in 0\.\.0\.99, got 1"),
        (HEAD + '[describe]\nsource = "magic"\n', "describe.source must be one of 'measured', 'qinsight', 'file', 'score', got 'magic'"),
        (HEAD + '[describe]\nsource = "qinsight"\n', "needs describe.model"),
        (HEAD + '[describe]\nsource = "file"\n', "needs descriptions of the data set 'a'"),
        (HEAD + 'scores = "correlation"\n', r"the first \[\[data\]\] is the model's scale: its scores must be 'absolute', got 'a'"),
        (HEAD + '[[data]]\nname = "a"\nlabels = "b"\n', r"each with another name .*; got \['a', 'a'\]"),
        (HEAD.replace('name = "a"', 'name = "a/b"'), r"letters, digits, - and _; got \['a/b'\]"),
        (HEAD + "validation_fraction = 0\n", "the first .* needs a validation_fraction"),
        (HEAD + "validation_fraction = 1\n", r"of 'a' must lie in \[0, 1\), got 1"),
        (HEAD + 'exclude_groups = ["x"]\n', "exclude_groups of 'a' needs its group_column"),
        (HEAD.replace("mine.safetensors", "mine.pt"), "ends in .safetensors, got mine.pt"),
        ("name = \n", "is not TOML"),
    ],
)  # fmt: skip
def test_invalid_config_reports_the_problem(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(write_config(tmp_path / "c.toml", text))


def test_a_missing_config_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration"):
        read_config(tmp_path / "gone.toml")


def test_every_setting_is_set_by_a_config_or_has_a_user() -> None:
    used = set()
    for path in sorted((REPOSITORY / "configs").glob("*.toml")):
        read_config(path)
        section = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"\[+(\w+)\]+", line):
                section = found[1] + "."
            elif found := re.match(r"(\w+) *=", line):
                used.add(section + found[1])
    keys = all_keys()
    assert used | set(USER_OPTIONS) == keys, "each setting belongs to a configuration or to a user's task"
    assert not used & set(USER_OPTIONS), "what a configuration sets needs no reason"


def test_the_table_of_settings_is_that_of_the_docstrings() -> None:
    table = REPOSITORY / "tools" / "settings_table.py"
    checked = subprocess.run([sys.executable, str(table), "--check"], cwd=REPOSITORY, check=False)
    assert checked.returncode == 0, "run python tools/settings_table.py"
