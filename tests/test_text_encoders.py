from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rali_core.training.text import TextEncoder, embed_texts, load_text_encoder


def test_the_sentence_encoder_puts_like_sentences_near_each_other() -> None:
    encoder = load_text_encoder("minilm")
    blurred, soft, noisy = encoder.encode(
        ["The image is badly blurred.", "The photo is very blurry and soft.", "Colourful grain covers a sharp image."]
    )
    assert encoder.embed_dim == len(blurred) == 384
    assert float(blurred.norm()) == pytest.approx(1, abs=1e-5)
    assert blurred @ soft > blurred @ noisy + 0.1


def test_padding_changes_no_embedding() -> None:
    encoder = load_text_encoder("minilm")
    text = "Sharp and clean."
    alone = encoder.encode([text])[0]
    padded = encoder.encode([text, "A much longer sentence that makes the other one be padded by many tokens."])[0]
    assert torch.allclose(alone, padded, atol=1e-5)


def test_a_clip_text_encoder_is_built_and_frozen() -> None:
    torch.manual_seed(0)
    encoder = load_text_encoder("open_clip:ViT-S-32-alt")
    embeddings = encoder.encode(["a sharp photograph", "a blurred photograph"])
    assert embeddings.shape == (2, encoder.embed_dim)
    assert not embeddings.requires_grad
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(2), atol=1e-5)


def test_embeddings_are_kept_in_order_and_recomputed_for_other_texts(tmp_path: Path) -> None:
    calls: list[int] = []

    def encode(texts: object) -> torch.Tensor:
        calls.append(1)
        return torch.tensor([[float(len(text)), 1.0] for text in texts])  # type: ignore[attr-defined]

    encoder = TextEncoder("lengths", 2, encode)
    first = embed_texts(encoder, ["ccc", "a", "bb"], tmp_path / "texts.safetensors", batch_size=2)
    assert first[:, 0].tolist() == [3, 1, 2]
    count = len(calls)
    again = embed_texts(encoder, ["ccc", "a", "bb"], tmp_path / "texts.safetensors", batch_size=2)
    assert torch.equal(first, again)
    assert len(calls) == count
    assert embed_texts(encoder, ["ccc", "a"], tmp_path / "texts.safetensors")[:, 0].tolist() == [3, 1]


def test_a_missing_text_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no sentence encoder: config\.json is missing"):
        load_text_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="open_clip knows no model 'magic'"):
        load_text_encoder("open_clip:magic")
    with pytest.raises(FileNotFoundError, match="no CLIP checkpoint"):
        load_text_encoder(f"open_clip:ViT-S-32-alt/{tmp_path / 'gone.safetensors'}")
