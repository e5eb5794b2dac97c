"""Names of the files in a release."""

from __future__ import annotations

CHECKPOINT, PCA, BASIS = "ckpt.pt", "pca.pkl", "basis.npz"
MODEL_CONFIG, PROCESSOR_CONFIG = "best/config.json", "best/preprocessor_config.json"
REQUIRED = (CHECKPOINT, PCA, BASIS, MODEL_CONFIG, PROCESSOR_CONFIG)
ENCODER_WEIGHTS = ("best/model.safetensors", "best/pytorch_model.bin")
"""Needed only where `ckpt.pt` holds no encoder; the first that exists is taken."""
