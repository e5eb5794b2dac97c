from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rali_core.checkpoint import ModelInfo, save_model
from rali_core.encoder import EncoderConfig
from rali_core.model import RaliModel
from rali_core.official.convert import convert
from rali_core.official.errors import ReleaseError
from rali_core.official.verify import locate_release, verify
from rali_core.preprocess import PreprocessConfig


@pytest.fixture
def converted(release: Path, tmp_path: Path) -> Path:
    return convert(release, tmp_path / "model.safetensors").path


def rewrite(path: Path, change: object = None, **metadata: str) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        old = file.metadata()
    if change is not None:
        change(tensors)  # type: ignore[operator]
    save_file(tensors, path, metadata={**old, **metadata})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_converted_file_is_equal_to_its_release(release: Path, dtype: str, tmp_path: Path) -> None:
    path = convert(release, tmp_path / "model.safetensors", dtype=dtype).path  # type: ignore[arg-type]
    result = verify(path, release)
    assert (result.encoder_tensors, result.head_tensors, result.dtype) == (44, 6, dtype)
    assert (result.largest_rounding == 0) == (dtype == "float32")
    assert result.largest_rounding < 0.01
    assert set(result.files) >= {"ckpt.pt", "pca.pkl"}


@pytest.mark.parametrize(
    "name", ["encoder.proj", "encoder.transformer.resblocks.2.attn.in_proj_bias", "head.mean", "head.logit_scale"]
)
def test_one_changed_number_is_found(release: Path, converted: Path, name: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        flat = tensors[name].view(-1)
        flat[-1] = flat[-1] * 1.01 + 0.01

    rewrite(converted, change)
    with pytest.raises(ReleaseError, match=f"(?s)1 problem.*{name}: differs from the release"):
        verify(converted, release)


def test_swapped_tensors_of_one_shape_are_found(release: Path, converted: Path) -> None:
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        first, second = "encoder.ln_pre.weight", "encoder.ln_post.weight"
        tensors[first], tensors[second] = tensors[second], tensors[first]

    rewrite(converted, swap)
    with pytest.raises(ReleaseError, match="2 problem"):
        verify(converted, release)


def test_a_missing_or_additional_tensor_is_found(release: Path, converted: Path) -> None:
    rewrite(converted, lambda tensors: tensors.update({"encoder.more": tensors.pop("encoder.proj")}))
    with pytest.raises(ReleaseError, match=r"(?s)encoder.proj: not in the file.*encoder.more: not in the release"):
        verify(converted, release)


def test_changed_metadata_are_found(release: Path, converted: Path) -> None:
    rewrite(converted, None, coverage='"tiles"')
    with pytest.raises(ReleaseError, match="metadata coverage: expected 'center', got 'tiles'"):
        verify(converted, release)


def test_another_release_is_found_by_its_hashes(converted: Path, release_copy: Path) -> None:
    (release_copy / "best" / "config.json").write_text((release_copy / "best" / "config.json").read_text() + "\n")
    with pytest.raises(ReleaseError, match="best/config.json: the file was made from SHA-256"):
        verify(converted, release_copy)


def test_a_file_that_was_not_converted_is_refused(release: Path, tmp_path: Path) -> None:
    config = EncoderConfig(8, {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8})
    model = RaliModel(config, PreprocessConfig(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), pca_dim=2, prototypes=3)
    with torch.no_grad():
        model.head.prototypes.fill_(1.0)
    save_model(tmp_path / "own.safetensors", model, ModelInfo("own", "Apache-2.0"))
    with pytest.raises(ReleaseError, match="does not say that it was converted from a release"):
        verify(tmp_path / "own.safetensors", release)


def test_a_release_beside_the_file_is_found_and_one_that_is_nowhere_is_asked_for(
    release_copy: Path, converted: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        FileNotFoundError,
        match="is neither beside it nor in the cache: name its folder, `rali convert --check .*model.safetensors RELEASE_DIR`",
    ):
        locate_release(converted)
    folder = tmp_path / "given"
    folder.mkdir()
    shutil.move(release_copy, folder / "RALI")
    shutil.move(converted, folder / "model.safetensors")
    assert locate_release(folder / "model.safetensors") == folder / "RALI"
