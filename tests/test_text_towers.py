from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rali_core.training.text import TextTower, embed_texts, load_clip_text_tower, load_sentence_tower


def test_the_sentence_encoder_puts_like_sentences_near_each_other() -> None:
    tower = load_sentence_tower()
    blurred, soft, noisy = tower.encode(
        ["The picture is badly blurred.", "The photo is very blurry and soft.", "Colourful grain covers a sharp image."]
    )
    assert tower.embed_dim == len(blurred) == 384
    assert float(blurred.norm()) == pytest.approx(1, abs=1e-5)
    assert blurred @ soft > blurred @ noisy + 0.1


def test_padding_changes_no_embedding() -> None:
    tower = load_sentence_tower()
    text = "Sharp and clean."
    alone = tower.encode([text])[0]
    padded = tower.encode([text, "A much longer sentence that makes the other one be padded by many tokens."])[0]
    assert torch.allclose(alone, padded, atol=1e-5)


def test_a_clip_text_tower_is_built_and_frozen() -> None:
    torch.manual_seed(0)
    tower = load_clip_text_tower("ViT-S-32-alt")
    embeddings = tower.encode(["a sharp photograph", "a blurred photograph"])
    assert embeddings.shape == (2, tower.embed_dim)
    assert not embeddings.requires_grad
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(2), atol=1e-5)


def test_embeddings_are_kept_in_order_and_made_anew_for_other_texts(tmp_path: Path) -> None:
    calls: list[int] = []

    def encode(texts: object) -> torch.Tensor:
        calls.append(1)
        return torch.tensor([[float(len(text)), 1.0] for text in texts])  # type: ignore[attr-defined]

    tower = TextTower("lengths", 2, encode)
    first = embed_texts(tower, ["ccc", "a", "bb"], tmp_path / "texts.safetensors", batch_size=2)
    assert first[:, 0].tolist() == [3, 1, 2]
    count = len(calls)
    again = embed_texts(tower, ["ccc", "a", "bb"], tmp_path / "texts.safetensors", batch_size=2)
    assert torch.equal(first, again)
    assert len(calls) == count
    assert embed_texts(tower, ["ccc", "a"], tmp_path / "texts.safetensors")[:, 0].tolist() == [3, 1]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no sentence encoder: config\.json is missing"):
        load_sentence_tower(tmp_path)
    with pytest.raises(ValueError, match="open_clip knows no model 'magic'"):
        load_clip_text_tower("magic")
    with pytest.raises(FileNotFoundError, match="no CLIP checkpoint"):
        load_clip_text_tower("ViT-S-32-alt", tmp_path / "gone.safetensors")
