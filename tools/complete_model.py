"""Give a model file what a training's `fit` would add: probes, or domains. Encoder and head stay bit for bit.

python tools/complete_model.py CONFIG.toml MODEL.safetensors (--attributes | --domains) [-o OUT.safetensors]

CONFIG is the training whose data and work_dir are used; embeddings for probes are kept there, so an interrupted run
resumes. Domains are measured on 1,000 training images of each.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

from rali_core.attributes import to_metadata
from rali_core.checkpoint import load_model
from rali_core.files import atomic_write
from rali_core.model import RaliModel
from rali_core.training.attributes import fit_attributes
from rali_core.training.compress import domains_metadata
from rali_core.training.config import read_config
from rali_core.training.publish import git_commit, hash_config
from rali_core.training.run import Run
from rali_core.training.token_cache import Computed, SquareReader, embed_images

DOMAIN_IMAGES = 1000
"""Of each domain, drawn at random; `fit` takes all, whose embeddings it has anyway."""


def main() -> None:
    """Fit or measure, print the figures, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--attributes", action="store_true", help="probes, as [fit] attribute_images says")
    what.add_argument("--domains", action="store_true", help="the kinds of images that can be told")
    parser.add_argument("-o", "--output", help="default: the model file itself")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = read_config(options.config)
    run, loaded = Run(config), load_model(options.model)
    if run.size != loaded.model.preprocess_config.image_size:
        raise SystemExit(f"{options.model} takes other images than those of {options.config}, {run.size} pixels a side")
    with safe_open(options.model, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    training, model = loaded.info.training, loaded.model.to(run.device)
    if options.attributes:
        probes, figures = fit_attributes(run, model)
        if probes is None:
            raise SystemExit("no probe is good enough, or there are too few images: nothing is written")
        for attribute in probes.attributes:
            print(f"{attribute.name:<22} AUC {attribute.auc:.3f}  from {attribute.threshold:.2f}  {attribute.word}")
        print(f"left out: {figures['left_out'] or 'none'}")
        tensors |= {f"probes.{name}": tensor for name, tensor in probes.state_dict().items()}
        metadata["attributes"] = json.dumps(to_metadata(probes.attributes))
        training["attributes"] = {**figures, "git_commit": git_commit()}
        if "config" in training:
            training["config"]["fit"]["attribute_images"] = config.fit.attribute_images
            training["config_sha256"] = hash_config(training["config"])
    else:
        metadata |= measure_domains(run, model)
        training["domains"] = {"images": DOMAIN_IMAGES, "git_commit": git_commit()}
    metadata["training"] = json.dumps(training, sort_keys=True)
    output = Path(options.output or options.model)
    with atomic_write(output) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    load_model(output)  # checked throughout
    print(f"wrote {output}")


def measure_domains(run: Run, model: RaliModel) -> dict[str, str]:
    """The metadata `domains`."""
    embeddings = {}
    for name, data in run.domains.items():
        chosen = np.sort(np.random.default_rng(run.config.seed).permutation(len(data.training))[:DOMAIN_IMAGES])
        read = SquareReader([data.training[number].path for number in chosen], run.size)
        images: Any = Computed(read, len(chosen))
        embeddings[name] = embed_images(model, images).numpy()
    if not embeddings:
        raise SystemExit("the configuration has no domains: set_scale, and percentiles of an absolute and a mapped set")
    made = domains_metadata(model.head.cpu(), embeddings)
    print(made["domains"])
    return made


if __name__ == "__main__":
    main()
