"""The official recipe, written from the description of the release on transformers' own classes.

It shares no line with `rali_core`, and is what parity is measured against. The image processor is the one that resizes
with Pillow: from transformers 5 on, `CLIPImageProcessor` resizes with torchvision, and the Pillow one has its own name.
"""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import CLIPModel


class Reference:
    """Scores of a release as its authors' code gives them, with the known traps handled."""

    def __init__(self, folder: Path) -> None:
        processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        self.processor = processor.from_pretrained(folder / "best")
        self.clip = CLIPModel.from_pretrained(folder / "best").eval()
        state = torch.load(folder / "ckpt.pt", weights_only=True)["state_dict"]
        self.clip.load_state_dict({k[len("clip.") :]: v for k, v in state.items() if k.startswith("clip.")})
        self.scorer = {k[len("scorer.") :]: v for k, v in state.items() if k.startswith("scorer.")}
        self.mean = torch.from_numpy(joblib.load(folder / "pca.pkl").mean_).float()

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, S, S) normalised input of the encoder."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"]

    def pixels_of_older_pillow(self, image: Image.Image) -> torch.Tensor:
        """The same through Pillow up to 12, which always resizes along x first; 13 turns that round for tall images.

        Two resizes along one axis each, with Pillow's rounding between them, fix the order.
        """
        edge, (width, height) = self.processor.crop_size["height"], image.size
        short, long = min(width, height), max(width, height)
        new = (edge, int(edge * long / short)) if width <= height else (int(edge * long / short), edge)
        image = image.resize((new[0], height), Image.Resampling.BICUBIC).resize(new, Image.Resampling.BICUBIC)
        left, top = (new[0] - edge) // 2, (new[1] - edge) // 2
        values = np.asarray(image.crop((left, top, left + edge, top + edge)), dtype=np.float64) / 255
        values = (values - np.array(self.processor.image_mean)) / np.array(self.processor.image_std)
        return torch.from_numpy(values).permute(2, 0, 1).unsqueeze(0).float()

    @torch.inference_mode()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, D) pooled and projected features, not normalised."""
        output = self.clip.get_image_features(pixel_values=pixels)
        return output if isinstance(output, torch.Tensor) else output.pooler_output

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B,) scores of the encoder's input."""
        head = self.scorer
        reduced = (self.features(pixels) - self.mean) / head["pca_scale"].abs()
        reduced = reduced @ head["pca_components"].t()
        reduced = reduced / reduced.norm(dim=1, keepdim=True)
        basis = head["prototypes"] / head["prototypes"].norm(dim=1, keepdim=True)
        temperature = 1.0 / max(float(head["logit_scale"]), 1e-6)
        weights = torch.softmax(reduced @ basis.t() / temperature, dim=1)
        return (weights * head["proto_scores"]).sum(dim=1)
