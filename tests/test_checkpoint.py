from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rali_core import checkpoint
from rali_core.checkpoint import CheckpointError, ModelInfo, load_model, read_metadata, save_model
from rali_core.model import RaliModel


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def rewrite(path: Path, *, tensors: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None) -> Path:
    """The file with some tensors or metadata replaced; None removes."""
    old_tensors, old_metadata = read(path)
    new_tensors = {**old_tensors, **(tensors or {})}
    new_metadata = {**old_metadata, **(metadata or {})}
    other = path.with_name("changed.safetensors")
    save_file(
        {name: tensor for name, tensor in new_tensors.items() if tensor is not None},
        other,
        metadata={name: text for name, text in new_metadata.items() if text is not None},
    )
    return other


@pytest.mark.parametrize("fixture", ["tiny_file", "tiny_timm_file"])
def test_a_model_comes_back_from_its_file_as_it_was(fixture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    tensors, _ = read(path)
    loaded = load_model(path)
    assert loaded.info.name == "tiny"
    assert loaded.info.calibration is not None
    assert not loaded.model.training
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    copy = path.with_name("copy.safetensors")
    save_model(copy, loaded.model, loaded.info)
    assert read(copy)[1] == read(path)[1]


def test_a_file_read_in_many_parts_gives_the_same_model_and_all_problems_at_once(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(tiny_file).model.state_dict()
    monkeypatch.setattr(checkpoint, "MAPPED_VALUES", 300)
    parts = load_model(tiny_file).model.state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    broken = {name: torch.full_like(whole[name], torch.nan) for name in ("encoder.conv1.weight", "head.scores")}
    with pytest.raises(CheckpointError, match=r"2 problem\(s\):\n  encoder\.conv1\.weight: .*\n  head\.scores: "):
        load_model(rewrite(tiny_file, tensors=broken))


def test_the_head_stays_float32_whatever_the_encoder_is(tiny_file: Path) -> None:
    model = load_model(tiny_file, dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.encoder.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in model.head.state_dict().values()} == {torch.float32}


def test_a_loaded_model_outlives_its_file(tiny_file: Path) -> None:
    model = load_model(tiny_file).model
    pixels = torch.rand(1, 3, 32, 32)
    before = model(pixels)
    tiny_file.write_bytes(b"\0" * tiny_file.stat().st_size)
    assert torch.equal(model(pixels), before)


def test_loading_draws_no_random_numbers(tiny_file: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(tiny_file)
    assert torch.equal(torch.rand(1), expected)


def test_all_problems_are_listed_at_once(tiny_file: Path) -> None:
    tensors, _ = read(tiny_file)
    path = rewrite(
        tiny_file,
        tensors={"head.mean": None, "head.surprise": torch.zeros(2), "head.scores": torch.zeros(3)},
    )
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "3 problem(s)" in message
    assert "head.mean: missing, expected shape (16,)" in message
    assert "head.surprise: unexpected, of shape (2,)" in message
    assert f"head.scores: expected shape {tuple(tensors['head.scores'].shape)}, got (3,)" in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.mean", torch.full((16,), float("nan")), "head.mean: holds NaN or infinite values"),
        ("head.mean", torch.zeros(16, dtype=torch.int64), "head.mean: expected float16, bfloat16 or float32, got torch.int64"),
        ("head.scale", torch.zeros(16), "head.scale: holds zeros"),
        ("head.prototypes", torch.zeros(12, 8), "head.prototypes: holds a prototype of length zero"),
        ("head.scores", torch.full((12,), 7.0), r"head.scores: expected scores in \[0, 1\], got 7 to 7"),
        ("head.prototypes", None, r"head.prototypes: expected \(K, P\), got nothing"),
        ("head.components", torch.zeros(8), r"head.components: expected \(P, D\), got \(8,\)"),
        ("encoder.conv1.weight", torch.full((32, 3, 8, 8), float("inf")), "encoder.conv1.weight: holds NaN or infinite"),
    ],
)  # fmt: skip
def test_unusable_tensors_are_refused(tiny_file: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(rewrite(tiny_file, tensors={name: value}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", None, "is a .safetensors file, but not a RALI model file"),
        ("format_version", "99", r"model file format 99; this version reads format 1: update"),
        ("format_version", "not json", "metadata format_version: not JSON"),
        ("encoder", None, "metadata encoder: missing"),
        ("encoder", "{}", "metadata encoder: expected the keys"),
        ("encoder", json.dumps({"embed_dim": 16, "vision_cfg": {"image_size": 32, "nonsense": 1}, "quick_gelu": False}), "metadata encoder: open_clip cannot build"),
        ("encoder", json.dumps({"embed_dim": 16, "vision_cfg": {"timm_model_name": "hf-hub:someone/model", "image_size": 32}, "quick_gelu": False}), "timm has no model 'hf-hub:someone/model'"),
        ("preprocess", '{"image_size": 64, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}', "takes 32 pixels, the preprocessing makes 64"),
        ("preprocess", "[]", "metadata preprocess: expected the keys"),
        ("coverage", '"everything"', "metadata coverage: expected one of center, tiles"),
        ("score_range", "[1, 0]", r"metadata score_range: expected \[worst, best\]"),
        ("score_range", "5", "metadata score_range:"),
        ("calibration", '{"quantiles": [1], "reference": "", "band_thresholds": []}', "metadata calibration: quantiles must be 101"),
        ("name", "3", "metadata name: expected a text"),
        ("training", "[]", "metadata training: expected an object"),
    ],
)  # fmt: skip
def test_unusable_metadata_is_refused(tiny_file: Path, key: str, value: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(rewrite(tiny_file, metadata={key: value}))


def test_files_that_are_no_model_files_are_refused(tmp_path: Path, tiny_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model file"):
        load_model(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="expected a model file, got a folder"):
        load_model(tmp_path)
    broken = tmp_path / "broken.safetensors"
    for content in (b"", b"hello", struct.pack("<Q", 2**60) + b"{}", tiny_file.read_bytes()[:-100]):
        broken.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable .safetensors file"):
            load_model(broken)


def test_a_pickle_under_a_model_files_name_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "evil.safetensors"
    torch.save({"state_dict": Payload()}, path)
    with pytest.raises(CheckpointError, match="not a readable .safetensors file"):
        load_model(path)
    assert not (tmp_path / "ran").exists()


def test_saving_refuses_what_could_not_be_loaded_and_leaves_nothing_behind(
    tiny_model: RaliModel, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="ends in .safetensors, got model.pt"):
        save_model(tmp_path / "model.pt", tiny_model, ModelInfo("x", "MIT"))
    torch.nn.init.constant_(tiny_model.head.scale, float("nan"))
    with pytest.raises(ValueError, match=r"NaN or infinite values: head\.scale"):
        save_model(tmp_path / "model.safetensors", tiny_model, ModelInfo("x", "MIT"))
    assert list(tmp_path.iterdir()) == []


def test_metadata_can_be_read_without_the_tensors(tiny_file: Path) -> None:
    metadata = read_metadata(tiny_file)
    assert metadata["name"] == "tiny"
    assert metadata["encoder"]["embed_dim"] == 16
    assert metadata["format_version"] == 1


def test_probes_come_back_from_the_model_file(probing_model: RaliModel, tiny_info: ModelInfo, tmp_path: Path) -> None:
    path = tmp_path / "probing.safetensors"
    save_model(path, probing_model, tiny_info)
    loaded = load_model(path, dtype=torch.bfloat16).model
    assert loaded.attributes == probing_model.attributes
    assert loaded.probes is not None
    assert probing_model.probes is not None
    assert torch.equal(loaded.probes.weight, probing_model.probes.weight), "in float32, whatever the encoder's"
    save_model(tmp_path / "copy.safetensors", load_model(path).model, tiny_info)
    assert read(tmp_path / "copy.safetensors")[1] == read(path)[1]


@pytest.mark.parametrize(
    ("tensor", "metadata", "message"),
    [
        (None, None, r"probes\.weight: missing, expected shape \(2, 16\)"),
        (torch.zeros(3, 16), None, r"probes\.weight: expected shape \(2, 16\), got \(3, 16\)"),
        (torch.full((2, 16), torch.inf), None, r"probes\.weight: holds NaN or infinite values"),
        (torch.zeros(2, 16), [], "metadata attributes: expected the keys version and probes"),
        (torch.zeros(2, 16), {"version": 2, "probes": []}, "metadata attributes: expected version 1, got 2: update"),
        (torch.zeros(2, 16), {"version": 1, "probes": []}, "metadata attributes: expected probes of different names"),
        (torch.zeros(2, 16), {"version": 1, "probes": [{"name": "a"}]}, "expected name, word, threshold and auc of"),
        (torch.zeros(2, 16), {"version": None, "probes": []}, "expected version 1, got None"),
    ],
)  # fmt: skip
def test_unusable_probes_are_refused(
    tensor: torch.Tensor | None, metadata: object, message: str, probing_model: RaliModel, tmp_path: Path
) -> None:
    path = tmp_path / "probing.safetensors"
    save_model(path, probing_model, ModelInfo("x", "MIT"))
    changed = {} if metadata is None else {"attributes": json.dumps(metadata)}
    with pytest.raises(CheckpointError, match=message):
        load_model(rewrite(path, tensors={"probes.weight": tensor}, metadata=changed))


def test_domains_come_back_from_the_model_file(telling_file: Path) -> None:
    loaded = load_model(telling_file).model
    assert loaded.domains == {"photographs": -3.0, "generated images": 4.0}
    assert loaded.domain is loaded.head.domain_coordinate is None, "nothing is told yet"
    assert read_metadata(telling_file)["domains"] == loaded.domains


@pytest.mark.parametrize("value", [[], {}, {"": 1.0}, {"photographs": "3 m"}, {"photographs": None}])
def test_unusable_domains_are_refused(value: object, telling_file: Path) -> None:
    with pytest.raises(CheckpointError, match="metadata domains: "):
        load_model(rewrite(telling_file, metadata={"domains": json.dumps(value)}))
