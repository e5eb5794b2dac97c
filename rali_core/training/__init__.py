"""RALI's training, from labelled images to a model file; needs the extra `train`. Read `pipeline.py` first.

| stage | module | reads | writes into the work_dir |
|---|---|---|---|
| describe | `rali_core.describe` | images, distortion triplets | `describe/SET.jsonl` |
| align | `align.py` | backbone, descriptions, images | `align/encoder.safetensors` |
| tune | `tune.py` | `align/encoder.safetensors`, human scores, triplets | `tune/encoder.safetensors` |
| compress | `compress.py` | `tune/encoder.safetensors`, human scores | `compress/head.safetensors` |
| fit | `fit.py`, `attributes.py` | `compress/head.safetensors`, human scores, triplets | `fit/*.safetensors` |
"""
