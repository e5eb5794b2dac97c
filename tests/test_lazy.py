from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

import rali_core
import rali_core.dataset
from rali_core import explain, images, scorer, vision_transformer
from rali_core.lazy import import_on_first_use, renamed
from rali_core.official.verify import Verification


def test_every_public_name_comes_from_its_module_whatever_was_imported_before() -> None:
    code = """
import importlib, pkgutil
names = ("rali_core", "rali_core.rewards", "rali_core.diffusers_hook")
packages = [importlib.import_module(name) for name in names]
for package in packages:
    loaded = [name for name in package.__all__ if name in vars(package) and name != "__version__"]
    assert not loaded, loaded
for package in packages:
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg and module.name != "image_quality_metric":
            importlib.import_module(package.__name__ + "." + module.name)
    for name in package.__all__:
        value = getattr(package, name)
        assert not isinstance(value, type(importlib)), name
        assert vars(package)[name] is value
    assert dir(package) == package.__all__
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rali_core' has no attribute 'nothing'"):
        import_on_first_use("rali_core", {"selection": ("rank",)})("nothing")


def test_a_module_with_the_name_of_what_it_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="modules of rali_core have the names of what they hold: rank"):
        import_on_first_use("rali_core", {"rank": ("rank",)})


def test_names_of_the_last_release_work_and_say_what_to_use() -> None:
    with pytest.warns(DeprecationWarning, match="Progress is deprecated .* use ProgressCallback"):
        assert scorer.Progress is scorer.ProgressCallback
    with pytest.warns(DeprecationWarning, match="Summary is deprecated .* use DatasetSummary"):
        assert rali_core.dataset.Summary is rali_core.dataset.DatasetSummary
    share = explain.PrototypeShare(0, 0.5, 0.8, 0.4)
    with pytest.warns(DeprecationWarning, match="part is deprecated .* use contribution"):
        assert share.part == share.contribution
    get = import_on_first_use("rali_core", {"selection": ("rank",)}, old_names={"sorted_by_score": "rank"})
    with pytest.warns(DeprecationWarning, match="sorted_by_score is deprecated .* use rank"):
        assert get("sorted_by_score")([0.1, 0.9]) == [1, 0]
    with pytest.raises(AttributeError, match=r"module 'rali_core\.scorer' has no attribute 'Nothing'"):
        renamed("rali_core.scorer", {})("Nothing")
    with warnings.catch_warnings():  # where names moved to another module, the old place gives them silently
        warnings.simplefilter("error")
        assert scorer.ImageScore is rali_core.ImageScore
        assert scorer.PrototypeShare is explain.PrototypeShare
        assert scorer.is_out_of_memory(MemoryError())


def test_attributes_and_methods_of_the_last_release_work_and_say_what_to_use() -> None:
    encoder = vision_transformer.DinoEncoder(vision_transformer.ViTConfig(42, 14, 8, 1, 1, 16, "checkerboard"))
    tokens = encoder.trunk.pos_embed
    result = Verification(44, 6, "float16", 0.001, {})
    with pytest.warns(DeprecationWarning, match="DinoTower is deprecated .* use DinoEncoder"):
        assert vision_transformer.DinoTower is vision_transformer.DinoEncoder
    with pytest.warns(DeprecationWarning, match="to_picture is deprecated .* use to_pil_image"):
        assert images.to_picture is images.to_pil_image
    with pytest.warns(DeprecationWarning, match="inputs_per_pass is deprecated .* use max_batch"):
        assert encoder.shape.inputs_per_pass(4) == encoder.shape.max_batch(4)
    with pytest.warns(DeprecationWarning, match="keep_own is deprecated .* use select_patches"):
        assert encoder.trunk.keep_own(tokens).equal(encoder.trunk.select_patches(tokens))
    with pytest.warns(DeprecationWarning, match="tower_tensors is deprecated .* use encoder_tensors"):
        assert result.tower_tensors == result.encoder_tensors
