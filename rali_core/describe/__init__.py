"""Descriptions of images' quality, which the training's first stage and `rali describe` write; needs the extra `train`.

`describers.describe_all` writes what a source says of images to a description file (`records`). Sources: `measured`
says what is measured on the image (`measures`, `wording`), `qinsight` asks a reasoning model, `file` reads what another
program wrote, `score` says the human score in words.
"""
