"""Give a model file the probes of attributes that a training's `fit` would make; encoder and head stay bit for bit.

python tools/add_attributes.py CONFIG.toml MODEL.safetensors [-o OUT.safetensors] [--images N]

CONFIG is the training whose triplets and work_dir are used: embeddings are kept there, so an interrupted run resumes.
N images of it are embedded under every distortion of the probes (default: the configuration's attribute_images).
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from rali_core.attributes import to_metadata
from rali_core.checkpoint import load_model
from rali_core.files import atomic_write
from rali_core.training.attributes import fit_attributes
from rali_core.training.config import read_config
from rali_core.training.publish import git_commit, hash_config
from rali_core.training.run import Run


def main() -> None:
    """Fit, print the figures, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("model")
    parser.add_argument("-o", "--output", help="default: the model file itself")
    parser.add_argument("--images", type=int)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = read_config(options.config)
    if options.images is not None:
        config = replace(config, fit=replace(config.fit, attribute_images=options.images))
    run, loaded = Run(config), load_model(options.model)
    if run.size != loaded.model.preprocess_config.image_size:
        raise SystemExit(f"{options.model} takes other images than those of {options.config}, {run.size} pixels a side")
    probes, figures = fit_attributes(run, loaded.model.to(run.device))
    if probes is None:
        raise SystemExit("no probe is good enough, or there are too few images: nothing is written")
    for attribute in probes.attributes:
        print(f"{attribute.name:<22} AUC {attribute.auc:.3f}  threshold {attribute.threshold:.2f}  {attribute.word}")
    print(f"left out: {figures['left_out'] or 'none'}")
    with safe_open(options.model, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    tensors |= {f"probes.{name}": tensor for name, tensor in probes.state_dict().items()}
    metadata["attributes"] = json.dumps(to_metadata(probes.attributes))
    training = {**loaded.info.training, "attributes": {**figures, "git_commit": git_commit()}}
    if "config" in training:
        settings = training["config"]
        settings["fit"]["attribute_images"] = config.fit.attribute_images
        training["config_sha256"] = hash_config(settings)
    metadata["training"] = json.dumps(training, sort_keys=True)
    output = Path(options.output or options.model)
    with atomic_write(output) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    load_model(output)  # checked throughout
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
