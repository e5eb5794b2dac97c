"""Descriptions of images' quality, written by the training's first stage and by `rali describe`; needs the extra
`train`.

`describers.describe_all` writes a source's descriptions to a description file (`records`); `request` says what a source
gets and gives. Sources: `measured` puts
measurements of the image into words (`measures`, `wording`), `qinsight` asks a reasoning model, `file` reads another
program's descriptions, `score` puts the human score into words.
"""
