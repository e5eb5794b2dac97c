"""Tiny real pipelines from the examples' folder, and scorers whose order is known."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"

pytest.importorskip("diffusers")


def pytest_configure() -> None:
    torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other


# Warnings that third-party code raises about itself, and that nothing here could prevent.
_NOT_OURS = (
    # diffusers' schedulers hand a tensor to numpy 2, which wants a newer protocol of torch's
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    # diffusers, transformers and accelerate announce removals that older and newer versions handle differently
    r"ignore::FutureWarning:(diffusers|transformers|accelerate|huggingface_hub)\.",
    r"ignore::DeprecationWarning:(diffusers|transformers|accelerate|huggingface_hub)\.",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for text in _NOT_OURS:
                item.add_marker(pytest.mark.filterwarnings(text), append=False)


@cache
def import_example(name: str) -> ModuleType:
    """A module of the examples' folder, or `families` of this one."""
    if name != "tiny_pipelines":
        import_example("tiny_pipelines")
    folder = Path(__file__).parent if name == "families" else EXAMPLES
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the examples import each other by name
    spec.loader.exec_module(module)
    return module


@cache
def _pipe(name: str) -> Any:
    return import_example("tiny_pipelines").TINY_PIPELINES[name]()


@pytest.fixture(scope="session")
def load_example() -> Any:
    """`load_example(name)`: a module of the examples' folder."""
    return import_example


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The builders of tiny pipelines."""
    return import_example("tiny_pipelines")


@pytest.fixture(scope="session")
def families() -> ModuleType:
    """Tiny pipelines of the newest diffusers: `families.build(name)` gives a shared one and a call's arguments."""
    return import_example("families")


@pytest.fixture(scope="session")
def get_pipe() -> Any:
    """`get_pipe(name)`: one shared pipeline per family; best_of_n must leave it as it is."""
    return _pipe


@pytest.fixture
def sd15() -> Any:
    return _pipe("sd15")


class Contrast:
    """Standard deviation of the brightness: a known order, by an independent implementation; records its inputs."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: list[Image.Image]) -> list[float]:
        self.batches.append(len(images))
        return [float(np.asarray(image.convert("L"), dtype=np.float64).std()) for image in images]


@pytest.fixture
def contrast() -> Contrast:
    return Contrast()


def call_arguments(name: str, **changes: Any) -> dict[str, Any]:
    """Arguments for a call of a tiny pipeline."""
    arguments: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 4, "height": 32, "width": 32}
    if name == "flux":
        arguments["max_sequence_length"] = 16
    return {**arguments, **changes}


@pytest.fixture(scope="session")
def arguments() -> Any:
    """`arguments(name, **changes)`: arguments for a call of a tiny pipeline."""
    return call_arguments


def run_alone(pipe: Any, seed: int, **arguments: Any) -> Any:
    """What a user gets from one seed, by the plain pipeline."""
    return pipe(**arguments, generator=torch.Generator("cpu").manual_seed(seed)).images[0]


@pytest.fixture(scope="session")
def alone() -> Any:
    """`alone(pipe, seed, **arguments)`: the plain pipeline's image of one seed."""
    return run_alone
