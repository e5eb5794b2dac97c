"""Model files through ComfyUI's folders, model memory through ComfyUI's model management."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import folder_paths
from comfy_api.latest import io
from torch import nn

from ..rali_core.hub import BUNDLED_NAME, OFFICIAL_NAME, bundled_model_path, official_model_path
from ..rali_core.score_cache import ScoreCache

FOLDER = "rali"
BUNDLED_CHOICE = f"{BUNDLED_NAME} (bundled)"
OFFICIAL_CHOICE = f"{OFFICIAL_NAME} (downloaded)"
DtypeChoice = Literal["auto", "float32", "float16", "bfloat16"]
DeviceChoice = Literal["auto", "cpu"]
KEPT_MODELS = 2
AUTO = "auto"
"""The domain that is not told."""

RaliModelType = io.Custom("RALI_MODEL")


@dataclass(frozen=True)
class ModelHandle:
    """The value of a RALI_MODEL wire.

    Attributes:
        scorer: The core's scorer, with a cache that all handles share; its model stays where ComfyUI put it.
        patcher: ComfyUI's ModelPatcher around the same model.
    """

    scorer: Any
    patcher: Any


class _Managed(nn.Module):
    """ModelPatcher writes to `model.device`, which RaliModel computes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.device = None


def register_model_folder() -> None:
    """Register `models/rali`, after the folders that extra_model_paths.yaml may have given that name."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    folders, _ = folder_paths.folder_names_and_paths[FOLDER]
    # A folder under a new name starts with the empty set, which means every type of file.
    folder_paths.folder_names_and_paths[FOLDER] = (folders, {".safetensors"})


def model_choices() -> list[str]:
    """The bundled model, the authors' if `rali download official` was run, then the files of `models/rali`."""
    official = [OFFICIAL_CHOICE] if _official_is_there() else []
    return [BUNDLED_CHOICE, *official, *folder_paths.get_filename_list(FOLDER)]


def _official_is_there() -> bool:
    try:
        return official_model_path().is_file()
    except OSError:
        return False


def find_model_file(choice: str) -> Path:
    """Path of a choice of `model_choices`.

    Raises:
        FileNotFoundError: The file does not exist; the message says what to do.
    """
    if choice == BUNDLED_CHOICE:
        try:
            return bundled_model_path()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}, or put a RALI .safetensors file into models/{FOLDER} and choose it in RALI Load Model"
            ) from None
    if choice == OFFICIAL_CHOICE:
        return official_model_path()
    path = folder_paths.get_full_path(FOLDER, choice)
    if path is None:
        raise FileNotFoundError(
            f"there is no model {choice!r} in {' or '.join(folder_paths.get_folder_paths(FOLDER))}: "
            f"put it back, or choose {BUNDLED_CHOICE!r}"
        )
    return Path(path)


def model_key(path: Path) -> str:
    """A key that changes with the file."""
    state = path.stat()
    return f"{path}|{state.st_size}|{state.st_mtime_ns}"


_cache = ScoreCache()
_models: OrderedDict[tuple[str, str, str, str], ModelHandle] = OrderedDict()


def get_model(
    choice: str = BUNDLED_CHOICE, *, dtype: DtypeChoice = "auto", device: DeviceChoice = "auto", domain: str = AUTO
) -> ModelHandle:
    """Load a model, or take it from the most recently used; it stays in main memory until it has to score.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The file cannot be used.
        ValueError: The model does not know the domain.
    """
    import comfy.model_management as management
    import torch
    from comfy.model_patcher import ModelPatcher

    from ..rali_core.scorer import RaliScorer

    path = find_model_file(choice)
    load_device = torch.device("cpu") if device == "cpu" else management.get_torch_device()
    if dtype == "auto":
        dtype = "float16" if load_device.type == "cuda" and management.should_use_fp16(load_device) else "float32"
    key = (model_key(path), dtype, str(load_device), domain)
    if key not in _models:
        offload_device = torch.device("cpu")
        told = None if domain == AUTO else domain
        scorer = RaliScorer.from_pretrained(path, device=offload_device, dtype=dtype, cache=_cache, domain=told)
        scorer.model.encoder.register_forward_pre_hook(_stop_if_interrupted)
        patcher = ModelPatcher(_Managed(scorer.model), load_device=load_device, offload_device=offload_device)
        _models[key] = ModelHandle(scorer, patcher)
        while len(_models) > KEPT_MODELS:
            _models.popitem(last=False)
    _models.move_to_end(key)
    return _models[key]


def _stop_if_interrupted(*_: Any) -> None:
    """Before each pass of the encoder: a batch, or an image of many crops, would else be finished first."""
    import comfy.model_management as management

    management.throw_exception_if_processing_interrupted()


def ready_model(handle: ModelHandle | None) -> ModelHandle:
    """A wired model, or the bundled one, on the device where it computes."""
    handle = handle or get_model()
    load_on_device(handle)
    return handle


def load_on_device(handle: ModelHandle) -> None:
    """Let ComfyUI free memory and move the model to its device."""
    import comfy.model_management as management

    # The encoder consists of plain torch layers, which cannot be loaded in parts.
    management.load_models_gpu([handle.patcher], force_full_load=True)
    handle.scorer.device = handle.patcher.load_device
