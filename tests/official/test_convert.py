from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import joblib
import numpy as np
import pytest
import torch
from safetensors import safe_open

import rali_core
from rali_core import RaliScorer, load_model, read_metadata
from rali_core.cli import main
from rali_core.constants import CLIP_MEAN, CLIP_STD, OFFICIAL_OPEN_CLIP_NAME
from rali_core.encoder import EncoderConfig
from rali_core.official.convert import convert
from rali_core.official.errors import ReleaseError
from rali_core.official.layout import read_architecture
from rali_core.official.release import read_release
from rali_core.official.verify import verify

Edit = Callable[[Path], None]


def edit_state(folder: Path, change: Callable[[dict], object]) -> None:
    state = torch.load(folder / "ckpt.pt", weights_only=True)["state_dict"]
    change(state)
    torch.save({"state_dict": state}, folder / "ckpt.pt")


def edit_json(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


def test_a_converted_file_holds_encoder_and_head_and_says_where_they_come_from(release: Path, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "model.safetensors")
    metadata = read_metadata(made.path)
    assert metadata["name"] == "rali-official"
    assert metadata["coverage"] == "center"
    assert metadata["encoder"]["quick_gelu"] is True
    assert metadata["preprocess"] == {
        "image_size": 56,
        "mean": list(CLIP_MEAN),
        "std": list(CLIP_STD),
        "eight_bit": True,
    }
    source = metadata["source"]
    assert set(source["files"]) == {
        "ckpt.pt",
        "pca.pkl",
        "basis.npz",
        "best/config.json",
        "best/preprocessor_config.json",
    }
    assert all(len(digest) == 64 for digest in source["files"].values())
    assert set(source["dropped"]) == {
        "clip.text_model.*",
        "clip.text_projection.*",
        "clip.logit_scale",
        "basis.npz",
        "best/model.safetensors",
    }
    assert source["pca"]["estimator"] == "IncrementalPCA"
    assert "Apache-2.0 is the licence of the authors' code" in source["licence_note"]
    with safe_open(made.path, framework="pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {dtype for name, dtype in dtypes.items() if name.startswith("encoder.")} == {torch.float16}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("head.")} == {torch.float32}
    assert len(load_model(made.path).model.encoder.transformer.resblocks) == 3


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_the_encoder_is_stored_in_the_dtype_that_was_asked_for(
    release: Path, dtype: str, bytes_each: int, tmp_path: Path
) -> None:
    path = convert(release, tmp_path / "model.safetensors", dtype=dtype).path  # type: ignore[arg-type]
    model = load_model(path).model
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert abs(path.stat().st_size - bytes_each * encoder) < 25_000
    assert RaliScorer.from_pretrained(path, device="cpu").score(np.zeros((9, 9, 3), dtype=np.uint8)).scores[0] > 0


def test_prototype_scores_outside_of_the_usual_range_widen_the_model_s_range(release: Path, tmp_path: Path) -> None:
    convert(release, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    low, high = loaded.info.score_range
    scores = loaded.model.head.scores.detach()
    assert (low, high) == (float(scores.min()), float(scores.max()))
    assert low < 0 < 1 < high


def test_the_official_model_has_bands_and_no_percentiles(release: Path, tmp_path: Path) -> None:
    path = convert(release, tmp_path / "model.safetensors").path
    result = RaliScorer.from_pretrained(path, device="cpu").score(np.zeros((9, 9, 3), dtype=np.uint8))
    assert result.bands[0] in ("bad", "poor", "fair", "good", "excellent")
    assert np.isnan(result.percentiles).all()


def test_the_configuration_of_the_official_size_is_open_clip_s_own(maker: ModuleType, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor

    size = maker.OFFICIAL
    CLIPConfig(vision_config=size["vision"], text_config=size["text"], projection_dim=768).save_pretrained(
        tmp_path / "best"
    )
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(
        tmp_path / "best"
    )
    problems: list[str] = []
    architecture = read_architecture(tmp_path, problems)
    assert architecture is not None, problems
    theirs = EncoderConfig.from_open_clip(OFFICIAL_OPEN_CLIP_NAME)
    assert architecture.encoder.embed_dim == theirs.embed_dim
    assert architecture.encoder.quick_gelu == theirs.quick_gelu
    assert architecture.encoder.vision_cfg == {"head_width": 64, "mlp_ratio": 4.0, **theirs.vision_cfg}


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_checkpoint_without_an_encoder_takes_that_of_best(release_copy: Path, kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    encoder = {
        name.removeprefix("clip."): tensor
        for name, tensor in torch.load(release_copy / "ckpt.pt", weights_only=True)["state_dict"].items()
        if name.startswith("clip.")
    }
    expected = convert(release_copy, tmp_path / "expected.safetensors").path
    (release_copy / "best" / "model.safetensors").unlink()
    if kind == "model.safetensors":
        save_file(encoder, release_copy / "best" / kind)
    else:
        torch.save(encoder, release_copy / "best" / kind)
    edit_state(release_copy, lambda state: [state.pop(name) for name in list(state) if name.startswith("clip.")])
    made = convert(release_copy, tmp_path / "made.safetensors")
    assert f"best/{kind}" in made.source["files"]
    ours, theirs = (load_model(path).model.state_dict() for path in (made.path, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_folder_above_is_taken_as_well(release_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    shutil.move(release_copy, tmp_path / "repository" / "RALI")
    assert read_release(tmp_path / "repository").folder.name == "RALI"


def drop_mean(folder: Path) -> None:
    pca = joblib.load(folder / "pca.pkl")
    del pca.mean_
    joblib.dump(pca, folder / "pca.pkl")


def shorten_mean(folder: Path) -> None:
    pca = joblib.load(folder / "pca.pkl")
    pca.mean_ = pca.mean_[:-1]
    joblib.dump(pca, folder / "pca.pkl")


def poison(name: str, value: float) -> Edit:
    def edit(folder: Path) -> None:
        edit_state(folder, lambda state: state[name].view(-1)[:1].fill_(value))

    return edit


Q = "clip.vision_model.encoder.layers.1.self_attn.q_proj.weight"
PROBLEMS: dict[str, tuple[Edit, str]] = {
    "no mean": (drop_mean, "pca.pkl: the PCA has no mean_"),
    "mean of another size": (shorten_mean, r"pca.pkl: mean_: expected \(48,\), the encoder's output, got \(47,\)"),
    "a missing file": (lambda f: (f / "pca.pkl").unlink(), "pca.pkl: missing"),
    "another state dict": (lambda f: torch.save({"model": {}}, f / "ckpt.pt"), 'expected a state dict under "state_dict", found the keys: model'),
    "a missing tensor": (lambda f: edit_state(f, lambda s: s.pop(Q)), "self_attn.q_proj.weight: missing, shape"),
    "a missing head tensor": (lambda f: edit_state(f, lambda s: s.pop("scorer.pca_scale")), r"scorer.pca_scale: missing, expected shape \(48,\)"),
    "an unknown key": (lambda f: edit_state(f, lambda s: s.update({"scorer.gate": torch.zeros(1)})), "unknown key scorer.gate"),
    "an unknown prefix": (lambda f: edit_state(f, lambda s: s.update({"optimizer.x": torch.zeros(1)})), "unknown key optimizer.x"),
    "an unknown encoder key": (lambda f: edit_state(f, lambda s: s.update({"clip.vision_model.adapter": torch.zeros(1)})), "vision_model.adapter: unknown key"),
    "NaN in the encoder": (poison(Q, float("nan")), "attn.in_proj_weight: holds NaN or infinite values"),
    "infinite scores": (poison("scorer.proto_scores", float("inf")), "head.scores: holds NaN or infinite values"),
    "zero scale": (poison("scorer.pca_scale", 0.0), "head.scale: holds zeros"),
    "too large for float16": (poison(Q, 1e6), "holds 1e\\+06, torch.float16 ends at 65504: convert with another --dtype"),
    "prototypes of another size": (lambda f: edit_state(f, lambda s: s.update({"scorer.prototypes": torch.zeros(20, 23)})), r"scorer.prototypes: expected shape \(20, 24\), got \(20, 23\)"),
    "whole numbers": (lambda f: edit_state(f, lambda s: s.update({"scorer.proto_scores": torch.zeros(20, dtype=torch.int64)})), "expected float16, bfloat16, float32 or float64, got torch.int64"),
    "a list for a tensor": (lambda f: edit_state(f, lambda s: s.update({"scorer.proto_scores": [1.0]})), "expected a tensor, got list"),
    "another patch size": (lambda f: edit_json(f, "best/config.json", lambda c: c["vision_config"].update(patch_size=7)), r"patch_embedding.weight: expected shape \(96, 3, 7, 7\), got \(96, 3, 14, 14\)"),
    "fewer layers": (lambda f: edit_json(f, "best/config.json", lambda c: c["vision_config"].update(num_hidden_layers=2)), "encoder.layers.2.* unknown key"),
    "another activation": (lambda f: edit_json(f, "best/config.json", lambda c: c["vision_config"].update(hidden_act="relu")), "hidden_act: expected quick_gelu or gelu, got 'relu'"),
    "another epsilon": (lambda f: edit_json(f, "best/config.json", lambda c: c["vision_config"].update(layer_norm_eps=1e-6)), "layer_norm_eps: expected 1e-05, got 1e-06"),
    "another model": (lambda f: edit_json(f, "best/config.json", lambda c: c.update(model_type="siglip")), "model_type: expected 'clip', got 'siglip'"),
    "heads that do not divide": (lambda f: edit_json(f, "best/config.json", lambda c: c["vision_config"].update(num_attention_heads=5)), "hidden_size 96 cannot be divided by num_attention_heads 5"),
    "another input size": (lambda f: edit_json(f, "best/preprocessor_config.json", lambda c: c.update(size={"shortest_edge": 60}, crop_size={"height": 60, "width": 60})), "the encoder takes 56 pixels, the image processor makes 60"),
    "no centre crop": (lambda f: edit_json(f, "best/preprocessor_config.json", lambda c: c.update(do_center_crop=False)), "do_center_crop: expected true, got False"),
    "bilinear": (lambda f: edit_json(f, "best/preprocessor_config.json", lambda c: c.update(resample=2)), r"resample: expected 3 \(bicubic\), got 2"),
    "a mean that is none": (lambda f: edit_json(f, "best/preprocessor_config.json", lambda c: c.update(image_mean=[0.5, float("nan"), 0.5])), "image_mean and image_std: expected finite numbers"),
    "damaged JSON": (lambda f: (f / "best/config.json").write_text("{"), "config.json: not readable .JSONDecodeError"),
    "half a checkpoint": (lambda f: (f / "ckpt.pt").write_bytes((f / "ckpt.pt").read_bytes()[:50_000]), "ckpt.pt: not a zip file, or a damaged or incompletely downloaded one"),
    "prototypes without scores": (lambda f: np.savez(f / "basis.npz", vectors=np.zeros((20, 24))), "basis.npz: expected the arrays scores and vectors, got vectors.npy"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROBLEMS)
def test_an_unusable_release_is_refused_and_nothing_is_written(case: str, release_copy: Path, tmp_path: Path) -> None:
    edit, message = PROBLEMS[case]
    edit(release_copy)
    with pytest.raises(ReleaseError, match=message):
        convert(release_copy, tmp_path / "out" / "model.safetensors")
    assert not (tmp_path / "out").exists()


def test_all_problems_are_listed_at_once(release_copy: Path, tmp_path: Path) -> None:
    drop_mean(release_copy)
    (release_copy / "basis.npz").unlink()
    edit_json(release_copy, "best/config.json", lambda config: config["vision_config"].update(hidden_act="relu"))
    edit_state(release_copy, lambda state: state.update({"scorer.gate": torch.zeros(1)}))
    with pytest.raises(ReleaseError) as caught:
        convert(release_copy, tmp_path / "model.safetensors")
    for part in ("4 problem(s)", "mean_", "basis.npz: missing", "hidden_act", "scorer.gate"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "settings", "error", "message"),
    [
        ("nowhere", {}, FileNotFoundError, "no folder .*nowhere"),
        ("release/ckpt.pt", {}, NotADirectoryError, "expected the folder of a release .*got a file"),
        ("release", {"dtype": "int8"}, ValueError, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ("release", {"output": "model.pt"}, ValueError, "a model file's name ends in .safetensors, got model.pt"),
    ],
)
def test_wrong_arguments_are_refused(
    folder: str, settings: dict, error: type, message: str, release_copy: Path, tmp_path: Path
) -> None:
    output = tmp_path / settings.pop("output", "model.safetensors")
    with pytest.raises(error, match=message):
        convert(release_copy.parent / folder, output, **settings)


def test_the_command_converts_and_verifies(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    assert main(["convert", str(release), "-o", str(path), "--dtype", "bfloat16"]) == 0
    assert "encoder in bfloat16" in capsys.readouterr().out
    assert main(["convert", "--check", str(path), str(release)]) == 0
    printed = capsys.readouterr().out
    assert "all 44 tensors of the encoder equal the release's in bfloat16" in printed
    assert "all 6 of the head as well" in printed
    assert main(["verify", str(path), str(release)]) == 0  # the old name, for one more release
    old = capsys.readouterr()
    assert (old.out, "use rali convert --check" in old.err) == (printed, True)
    assert main(["info", str(path)]) == 0
    assert "licence_note" in capsys.readouterr().out
    assert main(["convert", str(tmp_path), "-o", str(path)]) == 1
    assert "ckpt.pt: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected RELEASE_DIR, the folder that holds ckpt.pt, got none"),
        (
            ["release", "--check", "a.safetensors", "-o", "b.safetensors"],
            "-o/--output: not allowed with argument --check",
        ),
    ],
)
def test_wrong_usage_of_the_command_is_reported(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["convert", *words])
    assert message in capsys.readouterr().err


def test_a_conversion_that_breaks_off_leaves_the_old_file_and_nothing_else(release: Path, tmp_path: Path) -> None:
    path = convert(release, tmp_path / "model.safetensors").path
    before = path.read_bytes()

    def stop(done: int, total: int) -> None:
        if done > total // 2 + 3:  # a few tensors are written by then
            assert len(list(tmp_path.iterdir())) == 2, "the new file is written under another name"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="^$"):
        convert(release, path, dtype="float32", progress=stop)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_progress_goes_evenly_from_the_first_check_to_the_last_tensor_written(release: Path, tmp_path: Path) -> None:
    for work in (
        lambda progress: convert(release, tmp_path / "model.safetensors", progress=progress),
        lambda progress: verify(tmp_path / "model.safetensors", release, progress=progress),
    ):
        seen: list[tuple[int, int]] = []
        work(lambda done, total, seen=seen: seen.append((done, total)))
        assert seen == [(done, 100) for done in range(1, 101)], "50 tensors, each twice"


FORBIDDEN = ("transformers", "sklearn", "joblib", "pickle5", "cloudpickle")
NO_IMPORTS = """
import sys
sys.modules.update(dict.fromkeys({forbidden}))  # as if they were not installed
import numpy
from rali_core import RaliScorer
from rali_core.official.convert import convert
from rali_core.official.verify import verify
path = convert(sys.argv[1], sys.argv[2]).path
verify(path, sys.argv[1])
print(RaliScorer.from_pretrained(path, device="cpu").score(numpy.zeros((9, 9, 3), dtype="uint8")).scores)
"""


def test_no_module_that_converts_or_scores_imports_transformers_scikit_learn_or_joblib() -> None:
    package = Path(rali_core.__file__).parent
    apart = {"training", "describe"}  # neither converts nor scores
    files = [path for path in package.rglob("*.py") if apart.isdisjoint(path.relative_to(package).parts)]
    assert len(files) > 25
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(str(node.module))
            assert not [name for name in names if name.split(".")[0] in FORBIDDEN], path


def test_converting_and_scoring_work_where_transformers_scikit_learn_and_joblib_are_not_installed(
    release: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    program = NO_IMPORTS.format(forbidden=FORBIDDEN)
    words = [sys.executable, "-c", program, str(release), str(tmp_path / "model.safetensors")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")


PEAK = """
import os, sys
from pathlib import Path
from rali_core.official.convert import convert

def resident(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024

small, large, out = sys.argv[1:]
convert(small, out)  # imports and everything that is set up once
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
before = resident("VmRSS:")
convert(large, out)
print((resident("VmHWM:") - before) / os.path.getsize(large + "/ckpt.pt"))
"""


def measure_peak(small: Path, large: Path, out: Path, environment: dict[str, str]) -> float:
    """Peak of the resident memory, mapped file pages included, above that before, in sizes of ckpt.pt."""
    words = [sys.executable, "-c", PEAK, str(small), str(large), str(out)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_converting_takes_at_most_the_checkpoint_s_size_and_a_third(
    release: Path, maker: ModuleType, tmp_path: Path, environment: dict[str, str]
) -> None:
    vision = {
        **maker.SMALL["vision"],
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
    }
    large = maker.make_release(tmp_path / "large", size={**maker.SMALL, "vision": vision})
    size = (large / "ckpt.pt").stat().st_size
    assert size > 120e6
    assert measure_peak(release, large, tmp_path / "model.safetensors", environment) <= 1.3
