"""Frozen lower blocks run once: their output tokens on disk, so that the upper blocks train quickly on a small machine.

Each training image is seen in several views (whole, mirrored, a random square crop). All views of all images go through
the frozen part of the tower once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..devices import device_of, training_autocast
from ..images import load_image
from ..preprocess import PreprocessConfig, preprocess
from ..vision_transformer import DinoBlock
from .backbones import Backbone
from .data import LabelledImage
from .evaluate import Report

ViewKind = Literal["whole", "mirrored", "crop"]
VIEW_KINDS: tuple[ViewKind, ...] = get_args(ViewKind)

CROP_SIDE_RANGE = (0.7, 1.0)
"""A random crop keeps this share of the shorter side: smaller ones would change what people scored."""


@dataclass(frozen=True)
class View:
    """One way in which one image is shown to the tower.

    Attributes:
        image: Index of the image.
        kind: The whole picture, its mirror image, or a random square crop, which may be mirrored.
        seed: Seed of the crop.
    """

    image: int
    kind: ViewKind
    seed: int = 0


def plan_views(count: int, *, kinds: Sequence[ViewKind] = VIEW_KINDS, seed: int = 0) -> list[View]:
    """The views of `count` images, one of each kind: all images in the first kind, then all in the second, and so on.

    Args:
        count: Number of images.
        kinds: Which views.
        seed: Seed of the crops.

    Raises:
        ValueError: No or unknown kinds.
    """
    if not kinds or set(kinds) - set(VIEW_KINDS):
        raise ValueError(f"views must be some of {', '.join(VIEW_KINDS)}, got {list(kinds)}")
    random = np.random.default_rng(seed)
    return [
        View(image, kind, int(random.integers(2**31)) if kind == "crop" else 0)
        for kind in kinds
        for image in range(count)
    ]


def render_view(path: Path, view: View, config: PreprocessConfig) -> Tensor:
    """Read an image and turn it into the tower's input under `view`; (3, S, S)."""
    pixels = load_image(path)
    if view.kind == "crop":
        random = np.random.default_rng(view.seed)
        height, width = pixels.shape[1:]
        side = max(1, int(min(height, width) * random.uniform(*CROP_SIDE_RANGE)))
        top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
        pixels = pixels[:, top : top + side, left : left + side]
        if random.random() < 0.5:
            pixels = pixels.flip(-1)
    elif view.kind == "mirrored":
        pixels = pixels.flip(-1)
    return preprocess(pixels.unsqueeze(0), config)[0, 0]


class _ViewDataset(Dataset[Tensor]):
    def __init__(self, rows: list[LabelledImage], views: list[View], config: PreprocessConfig) -> None:
        self.rows, self.views, self.config = rows, views, config

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> Tensor:
        view = self.views[index]
        return render_view(self.rows[view.image].path, view, self.config)


def _use_one_thread(_: int) -> None:
    torch.set_num_threads(1)  # a decoding process runs beside the tower; more threads would only fight it


def token_key(backbone: Backbone, blocks: int) -> str:
    """Identifies what cached tokens depend on besides the views."""
    return f"{backbone.source['sha256']}-{backbone.preprocess.image_size}-{blocks}"


class LowerBlocks(nn.Module):
    """Patch embedding and the first blocks of a timm vision transformer inside open_clip's tower; frozen."""

    def __init__(self, tower: nn.Module, blocks: int) -> None:
        super().__init__()
        self.trunk: Any = timm_trunk(tower)
        self.blocks = blocks

    def forward(self, inputs: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) normalised input to (B, tokens, width).

        With `kept`, (B, n) indexes, of those patches only; else of all that the tower itself looks at.
        """
        tokens = self.trunk.norm_pre(self.trunk.patch_drop(self.trunk._pos_embed(self.trunk.patch_embed(inputs))))
        if kept is not None:
            first = self.trunk.num_prefix_tokens
            patches = tokens[:, first:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
            tokens = torch.cat([tokens[:, :first], patches], dim=1)
        elif hasattr(self.trunk, "keep_own"):
            tokens = self.trunk.keep_own(tokens)
        for block in self.trunk.blocks[: self.blocks]:
            tokens = block(tokens)
        result: Tensor = tokens
        return result


class UpperBlocks(nn.Module):
    """The remaining blocks, the final norm and the pooling; what is tuned."""

    def __init__(self, tower: nn.Module, blocks: int) -> None:
        super().__init__()
        trunk: Any = timm_trunk(tower)
        self.blocks, self.norm = trunk.blocks[blocks:], trunk.norm
        self.first = blocks

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, tokens, width) to the class token's (B, D) embedding."""
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last: Any = self.blocks[-1]  # of a tower of our own, it computes nothing that only other tokens need
        tokens = last(tokens, first_only=True) if isinstance(last, DinoBlock) else last(tokens)
        embedding: Tensor = self.norm(tokens)[:, 0]
        return embedding


def timm_trunk(tower: nn.Module) -> nn.Module:
    """The timm vision transformer inside an open_clip tower.

    Raises:
        ValueError: The tower is not one, or its embedding is not its class token alone; blocks are frozen and
            cached of such a transformer only.
    """
    trunk = getattr(tower, "trunk", None)
    if trunk is None or not hasattr(trunk, "blocks") or getattr(trunk, "global_pool", None) != "token":
        raise ValueError("tuning upper blocks needs a timm vision transformer tower whose embedding is its class token")
    module: nn.Module = trunk
    return module


def cache_tokens(
    lower: LowerBlocks,
    rows: list[LabelledImage],
    views: list[View],
    config: PreprocessConfig,
    path: Path,
    *,
    key: str,
    batch_size: int = 32,
    workers: int = 1,
    report: Report = print,
) -> NDArray[np.float16]:
    """Run the frozen blocks over all views; what is already on disk is kept.

    Args:
        lower: The frozen blocks.
        rows: The images that `views` index.
        views: What to compute, in this order.
        config: How the tower's input is made.
        path: File to create, `.npy` of (views, tokens, width) float16; progress stands beside it as `.json`.
        key: Identifies backbone and settings; a file of another key is made anew.
        batch_size: Views per forward pass.
        workers: Processes that decode.
        report: Called with a line of text now and then.

    Returns:
        The memory-mapped array, read-only.
    """
    size, device = config.image_size, device_of(lower)
    with torch.inference_mode():
        shape = (len(views), *lower(torch.zeros(1, 3, size, size, device=device)).shape[1:])
    state_path = path.with_suffix(".json")
    wanted: dict[str, object] = {"key": key, "shape": list(shape), "views": [asdict(view) for view in views]}
    done = _resume_point(path, state_path, wanted)
    array = np.lib.format.open_memmap(path, mode="r+" if done else "w+", dtype=np.float16, shape=shape)
    loader = DataLoader(
        _ViewDataset(rows, views[done:], config),
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=_use_one_thread,
    )
    written = done
    for step, inputs in enumerate(loader, start=1):
        with torch.inference_mode(), training_autocast(device):
            tokens = lower(inputs.to(device))
        array[written : written + len(tokens)] = tokens.float().cpu().numpy().astype(np.float16)
        written += len(tokens)
        if step % 50 == 0 or written == len(views):
            array.flush()
            state_path.write_text(json.dumps({**wanted, "done": written}))
            report(f"frozen blocks: {written} of {len(views)} views")
    tokens_on_disk: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return tokens_on_disk


def _resume_point(path: Path, state_path: Path, wanted: dict[str, object]) -> int:
    if not path.is_file() or not state_path.is_file():
        return 0
    state = json.loads(state_path.read_text())
    done = state.pop("done", 0)
    return int(done) if state == wanted else 0


def cache_embeddings(
    upper: UpperBlocks,
    tokens: NDArray[np.float16],
    indices: NDArray[np.int64],
    path: Path,
    *,
    key: str = "",
    report: Report = print,
) -> Tensor:
    """Embeddings of cached views; taken from `path` where the same blocks made them for the same views before.

    Args:
        upper: The tuned blocks.
        tokens: (V, tokens, width) cached output of the frozen blocks.
        indices: (N,) which views to embed.
        path: `.safetensors` file to keep them in.
        key: Identifies the views, where another set's embeddings may stand in the file.
        report: Called with a line of text.

    Returns:
        (N, D) float32.
    """
    digest = hashlib.sha256(key.encode() + indices.tobytes())
    for name, tensor in sorted(upper.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    wanted = digest.hexdigest()
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == wanted:
                report(f"embeddings: taken from {path.name}")
                kept: Tensor = file.get_tensor("embeddings").clone()
                return kept
    embeddings = torch.cat([part.clone() for part in iterate_embeddings(upper, tokens, indices)])
    save_file({"embeddings": embeddings}, path, metadata={"key": wanted})
    report(f"embeddings: {len(embeddings)} views")
    return embeddings


def iterate_embeddings(
    upper: UpperBlocks, tokens: NDArray[np.float16], indices: NDArray[np.int64], *, batch_size: int = 32
) -> Iterator[Tensor]:
    """Embeddings of cached views, (<= batch_size, D) float32 on the CPU at a time, in bfloat16 without gradient."""
    device = device_of(upper)
    for start in range(0, len(indices), batch_size):
        batch = torch.from_numpy(np.asarray(tokens[indices[start : start + batch_size]])).to(device).float()
        with torch.inference_mode(), training_autocast(device):
            embeddings = upper(batch)
        yield embeddings.float().cpu()
