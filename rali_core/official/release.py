"""Reads a release and maps its tensors to those of the model file, or lists everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..calibration import Calibration
from ..checkpoint import CheckpointError, ModelInfo
from ..constants import Precision
from ..files import hash_file
from ..model import RaliModel
from . import layout
from .clip_mapping import check_tensor, check_values, is_dropped, map_encoder
from .errors import ReleaseError, describe
from .layout import Architecture, find_release, read_architecture
from .pca_file import PcaRecord, read_pca
from .tensor_files import load_safetensors, load_torch_file, read_basis
from .write import Entry, ProgressCallback

T = TypeVar("T")

SCORER_NAMES = ("pca_scale", "pca_components", "prototypes", "proto_scores", "logit_scale")
HEAD_NAMES = {"pca_scale": "scale", "pca_components": "components", "prototypes": "prototypes",
              "proto_scores": "scores", "logit_scale": "logit_scale"}  # fmt: skip
"""Names in `ckpt.pt` behind `scorer.`, and in our head."""


@dataclass(frozen=True)
class Release:
    """A release whose files fit together.

    Attributes:
        folder: Where it lies.
        architecture: Encoder and preprocessing.
        entries: The tensors of the model file.
        pca: The fitted PCA.
        used: Files that were read, relative to `folder`.
        dropped: What is left out, each with the reason.
        score_range: [0, 1], widened to the prototypes' scores where these leave it.
    """

    folder: Path
    architecture: Architecture
    entries: tuple[Entry, ...]
    pca: PcaRecord
    used: tuple[str, ...]
    dropped: dict[str, str]
    score_range: tuple[float, float]

    def hash_sources(self) -> dict[str, str]:
        """SHA-256 of each file that was used, in hexadecimal digits."""
        return {name: hash_file(self.folder / name) for name in self.used}

    def describe_model(self, source: dict[str, Any]) -> ModelInfo:
        """What the model file says about itself."""
        return ModelInfo(
            name="rali-official",
            licence="Apache-2.0",
            score_range=self.score_range,
            calibration=Calibration(),
            training={
                "method": "RALI (Zhao et al., ICLR 2026, arXiv 2510.11369)",
                "by": "the makers of the release; nothing was trained in the conversion",
            },
            source=source,
        )


def read_release(folder: Path, dtype: Precision = "float16", *, progress: ProgressCallback | None = None) -> Release:
    """Read and check a release.

    Args:
        folder: Holds `ckpt.pt`, `pca.pkl`, `basis.npz` and `best/`; or `RALI/` with these.
        dtype: Of the encoder in the model file.
        progress: Called after each tensor whose values were checked, with (done, total).

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        ReleaseError: Files or tensors are missing, unknown, do not fit each other, or hold values that are not
            finite; everything that was found is listed.
    """
    folder = find_release(folder)
    problems = [f"{name}: missing" for name in layout.REQUIRED if not (folder / name).is_file()]
    encoder_dtype = getattr(torch, dtype)

    def load(name: str, read: Callable[[Path], T]) -> T | None:
        if not (folder / name).is_file():
            return None
        try:
            return read(folder / name)
        except ReleaseError as error:
            problems.append(f"{name}: {error}")
        except OSError as error:
            problems.append(f"{name}: cannot be read ({error})")
        return None

    pca = load(layout.PCA, read_pca)
    basis = load(layout.BASIS, read_basis)
    state = _split_state(load(layout.CHECKPOINT, load_torch_file), problems)
    described = all((folder / name).is_file() for name in (layout.MODEL_CONFIG, layout.PROCESSOR_CONFIG))
    architecture = read_architecture(folder, problems) if described else None
    if pca is None or basis is None or state is None or architecture is None:
        raise ReleaseError(describe(f"the release in {folder} cannot be used", problems))

    clip, scorer = state
    used = [*layout.REQUIRED]
    dropped = {}
    weights = next((name for name in layout.ENCODER_WEIGHTS if (folder / name).is_file()), None)
    if not clip and weights is not None:
        loaded = load(weights, load_safetensors if weights.endswith(".safetensors") else load_torch_file)
        clip = loaded if loaded is not None else {}
        used.append(weights)
    elif weights is not None:
        dropped[weights] = "the encoder in ckpt.pt counts"
    if not clip:
        names = " or ".join(layout.ENCODER_WEIGHTS)
        problems.append(f"{layout.CHECKPOINT}: holds no clip.* tensors, and no {names} gives the encoder instead")
        raise ReleaseError(describe(f"the release in {folder} cannot be used", problems))
    where = f"{weights}: " if weights in used else f"{layout.CHECKPOINT}: clip."
    entries = [
        *_plan_encoder(architecture, clip, encoder_dtype, where, problems),
        *_plan_head(architecture, scorer, pca, basis, problems),
    ]
    if not problems:
        _check_values(entries, problems, progress)
    if problems:
        raise ReleaseError(describe(f"the release in {folder} cannot be used", problems))
    _check_against_model(architecture, entries)
    for name in clip:
        if is_dropped(name):
            part = name.split(".")[0] + (".*" if "." in name else "")
            dropped[f"clip.{part}"] = "no image embedding depends on it"
    dropped["basis.npz"] = "initial values; ckpt.pt holds the trained ones"
    low, high = (float(value) for value in torch.aminmax(scorer["proto_scores"].detach().float()))
    score_range = (min(0.0, low), max(1.0, high))
    return Release(folder, architecture, tuple(entries), pca, tuple(used), dropped, score_range)


def _split_state(loaded: dict[str, Any] | None, problems: list[str]) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
    """`ckpt.pt`'s state dict as (clip, scorer), both without their prefixes."""
    if loaded is None:
        return None
    state = loaded.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        shown = ", ".join(sorted(str(key)[:40] for key in loaded)[:10]) or "nothing"
        problems.append(f'{layout.CHECKPOINT}: expected a state dict under "state_dict", found the keys: {shown}')
        return None
    clip = {name.removeprefix("clip."): state[name] for name in state if name.startswith("clip.")}
    scorer = {name.removeprefix("scorer."): state[name] for name in state if name.startswith("scorer.")}
    unknown = [name for name in state if not name.startswith(("clip.", "scorer."))]
    unknown += [f"scorer.{name}" for name in scorer if name not in SCORER_NAMES]
    problems += [f"{layout.CHECKPOINT}: unknown key {name[:120]}" for name in unknown]
    return clip, scorer


def _plan_encoder(
    architecture: Architecture, clip: Mapping[str, Any], dtype: torch.dtype, where: str, problems: list[str]
) -> Iterable[Entry]:
    known: set[str] = set()
    entries = []
    for mapped in map_encoder(architecture):
        known.update(mapped.sources)
        for name in mapped.sources:
            problem = check_tensor(clip[name], mapped.shape) if name in clip else f"missing, shape {mapped.shape}"
            if problem:
                problems.append(f"{where}{name}: {problem}")
        shape = mapped.shape
        if mapped.how == "stack":
            shape = (3 * shape[0], *shape[1:])
        elif mapped.how == "transpose":
            shape = shape[::-1]
        entries.append(Entry(f"encoder.{mapped.target}", shape, dtype, lambda mapped=mapped: mapped.make(clip)))  # type: ignore[misc]
    unknown = sorted(name for name in clip if name not in known and not is_dropped(name))
    problems += [f"{where}{name[:120]}: unknown key" for name in unknown]
    return entries


def _plan_head(
    architecture: Architecture, scorer: dict[str, Any], pca: PcaRecord, basis: Mapping[str, Any], problems: list[str]
) -> Iterable[Entry]:
    embed = architecture.encoder.embed_dim
    vectors = basis["vectors"].shape
    if len(vectors) != 2 or 0 in vectors or basis["scores"].shape != vectors[:1]:
        problems.append(
            f"{layout.BASIS}: expected vectors (K, P) and scores (K,), got {vectors} and {basis['scores'].shape}"
        )
        return []
    prototypes, dimension = vectors
    wanted = {
        "pca_scale": (embed,),
        "pca_components": (dimension, embed),
        "prototypes": (prototypes, dimension),
        "proto_scores": (prototypes,),
        "logit_scale": (),
    }
    if pca.mean.shape != (embed,):
        problems.append(f"{layout.PCA}: mean_: expected {(embed,)}, the encoder's output, got {pca.mean.shape}")
    if pca.components_shape not in (None, (dimension, embed)):
        problems.append(f"{layout.PCA}: components_: expected {(dimension, embed)}, got {pca.components_shape}")
    mean = torch.from_numpy(pca.mean)
    entries = [Entry("head.mean", (embed,), torch.float32, lambda: mean)]
    for name, shape in wanted.items():
        problem = check_tensor(scorer[name], shape) if name in scorer else f"missing, expected shape {shape}"
        if problem:
            problems.append(f"{layout.CHECKPOINT}: scorer.{name}: {problem}")
        else:
            tensor = scorer[name].detach()
            entries.append(Entry(f"head.{HEAD_NAMES[name]}", shape, torch.float32, lambda tensor=tensor: tensor))  # type: ignore[misc]
    return entries


def _check_values(entries: Sequence[Entry], problems: list[str], progress: ProgressCallback | None) -> None:
    for done, entry in enumerate(entries, start=1):
        tensor = entry.make()
        problem = check_values(tensor, entry.dtype)
        if problem is None and entry.name == "head.scale" and bool((tensor.float() == 0).any()):
            problem = "holds zeros, by which the embedding would be divided"
        if problem is None and entry.name == "head.prototypes" and bool((tensor.float().norm(dim=-1) == 0).any()):
            problem = "holds a prototype of length zero"
        if problem:
            problems.append(f"{entry.name}: {problem}")
        if progress is not None:
            progress(done, len(entries))


def _check_against_model(architecture: Architecture, entries: Iterable[Entry]) -> None:
    """Our encoder must have exactly these tensors; if not, this version of open_clip builds a different one."""
    shapes = {entry.name: entry.shape for entry in entries}
    with torch.device("meta"):
        model = RaliModel(
            architecture.encoder,
            architecture.preprocess,
            pca_dim=shapes["head.components"][0],
            prototypes=shapes["head.prototypes"][0],
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if wanted != shapes:
        different = sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
        raise CheckpointError(
            f"open_clip builds a encoder that does not fit these tensors: {', '.join(different[:20])}; "
            "another version of open_clip_torch may be needed"
        )
