"""Makes releases of exactly the official layout with seeded random weights, by the libraries that made the official one.

The trained values (`ckpt.pt`) differ from the initial ones (`pca.pkl`, `basis.npz`, `best/`) everywhere, so that a
reader that takes the wrong ones gives other scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import joblib
import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA, IncrementalPCA
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

Layout = Literal["transformers 5", "transformers 4", "early transformers 4"]

SMALL = {
    "vision": {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 56, "patch_size": 14},
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1},
    "projection_dim": 48,
    "pca_dim": 24,
    "prototypes": 20,
}  # fmt: skip

OFFICIAL = {
    "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14},
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "projection_dim": 768,
    "pca_dim": 512,
    "prototypes": 250,
}  # fmt: skip
"""CLIP ViT-L/14 at 336 pixels, 512 dimensions after PCA and 250 prototypes."""


def make_release(
    folder: Path,
    *,
    size: dict = SMALL,
    layout: Layout = "transformers 5",
    estimator: Literal["PCA", "IncrementalPCA"] = "IncrementalPCA",
    seed: int = 0,
) -> Path:
    """Write a release into `folder`; returns `folder`."""
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        config = CLIPConfig(
            vision_config=dict(size["vision"]), text_config=dict(size["text"]), projection_dim=size["projection_dim"]
        )
        clip = CLIPModel(config).eval()
        for parameter in clip.parameters():  # fresh norms and biases are ones and zeros: nothing to mix up
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        edge = size["vision"]["image_size"]
        processor = CLIPImageProcessor(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
        save_best(folder / "best", clip, processor, layout)

        for parameter in clip.vision_model.parameters():  # "training": best/ holds other values than ckpt.pt
            parameter += 0.1 * parameter.abs().mean() * torch.randn_like(parameter)
        features = _features(clip, processor, generator)
        fitted = _fit_pca(features, estimator, size["pca_dim"], generator)
        (folder).mkdir(parents=True, exist_ok=True)
        joblib.dump(fitted, folder / "pca.pkl")
        state = {f"clip.{name}": tensor.clone() for name, tensor in clip.state_dict().items()}
        if layout == "early transformers 4":  # a buffer that was saved in those days
            positions = (edge // size["vision"]["patch_size"]) ** 2 + 1
            state["clip.vision_model.embeddings.position_ids"] = torch.arange(positions).unsqueeze(0)
            state["clip.text_model.embeddings.position_ids"] = torch.arange(16).unsqueeze(0)
        state |= _train_head(features, fitted, size, folder)
        torch.save({"state_dict": state}, folder / "ckpt.pt")
    return folder


def save_best(folder: Path, clip: CLIPModel, processor: CLIPImageProcessor, layout: Layout) -> None:
    """The Hugging Face folder as the two versions of transformers save it.

    What version 4 does differently was taken from folders that 4.57 wrote: weights also as `pytorch_model.bin`, and
    the text side without its token numbers. Early versions wrote sizes as plain numbers and some settings twice.
    """
    clip.save_pretrained(folder)
    processor.save_pretrained(folder)
    if layout == "transformers 5":
        return
    (folder / "model.safetensors").unlink()
    torch.save(clip.state_dict(), folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = "4.57.6" if layout == "transformers 4" else "4.25.1"
    if layout == "early transformers 4":
        config["torch_dtype"] = config.pop("dtype", "float32")
        config["vision_config_dict"] = dict(config["vision_config"])
        # What counts stood in the second copy; the first kept defaults.
        config["vision_config"] = {key: value for key, value in config["vision_config"].items() if key == "model_type"}
        preprocess = json.loads((folder / "preprocessor_config.json").read_text())
        preprocess = {
            key: value
            for key, value in preprocess.items()
            if not key.startswith(("do_rescale", "rescale", "image_processor"))
        }
        preprocess |= {"size": preprocess["size"]["shortest_edge"], "crop_size": preprocess["crop_size"]["height"], "feature_extractor_type": "CLIPFeatureExtractor"}  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocess, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _features(clip: CLIPModel, processor: CLIPImageProcessor, generator: np.random.Generator) -> np.ndarray:
    """Embeddings of a few images with their spread, filled up with random ones of the same spread."""
    seen = []
    for number in range(12 if clip.config.vision_config.image_size < 100 else 3):  # a large encoder takes its time
        side = int(generator.integers(40, 400))
        contrast, colour = generator.uniform(0.1, 1.0), generator.uniform(0, 255, 3)
        grid = contrast * generator.uniform(0, 255, (3 + 2 * number, 3 + 2 * number, 3)) + (1 - contrast) * colour
        image = Image.fromarray(grid.astype(np.uint8)).resize((side, side // 2 + 20), Image.Resampling.BICUBIC)
        output = clip.get_image_features(pixel_values=processor(images=image, return_tensors="pt")["pixel_values"])
        seen.append(output if isinstance(output, torch.Tensor) else output.pooler_output)
    seen_array = torch.cat(seen).numpy()
    spread, center = seen_array.std(axis=0), seen_array.mean(axis=0)
    more = generator.normal(center, spread, (2 * seen_array.shape[1], seen_array.shape[1]))
    return np.concatenate([seen_array, more]).astype(np.float32)


def _fit_pca(
    features: np.ndarray, estimator: str, dimension: int, generator: np.random.Generator
) -> PCA | IncrementalPCA:
    if estimator == "PCA":
        return PCA(dimension, random_state=int(generator.integers(99))).fit(features)
    return IncrementalPCA(dimension, batch_size=len(features)).fit(features)


def _train_head(
    features: np.ndarray, fitted: PCA | IncrementalPCA, size: dict, folder: Path
) -> dict[str, torch.Tensor]:
    """Initial values to `basis.npz`, trained ones as the state dict's `scorer.*`."""
    scale = torch.from_numpy(np.sqrt(fitted.var_) if hasattr(fitted, "var_") else np.ones_like(fitted.mean_)).float()
    scale[scale < 1e-10] = 1.0
    components = torch.from_numpy(fitted.components_).float()
    reduced = (torch.from_numpy(features) - torch.from_numpy(fitted.mean_).float()) / scale @ components.T
    vectors = reduced[torch.linspace(0, len(reduced) - 1, size["prototypes"]).long()]
    scores = torch.linspace(0.0, 1.0, size["prototypes"])[torch.randperm(size["prototypes"])]
    np.savez(folder / "basis.npz", vectors=vectors.numpy(), scores=scores.numpy())
    return {
        "scorer.pca_scale": scale * torch.where(torch.rand_like(scale) < 0.1, -1.1, 0.9),  # its sign must not count
        "scorer.pca_components": components + 0.02 * components.std() * torch.randn_like(components),
        "scorer.prototypes": 1.7 * (vectors + 0.1 * vectors.std() * torch.randn_like(vectors)),
        "scorer.proto_scores": scores * 1.06 - 0.02,  # fine-tuned scores may leave [0, 1]
        "scorer.logit_scale": torch.tensor(11.0),
    }
