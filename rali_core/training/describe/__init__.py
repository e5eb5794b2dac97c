"""Quality descriptions of images, the first stage of the training; needs the extra `train`.

`describers.describe_all` writes what a source says of images to a description file (`records`). Sources: `measured`
says what is measured on the image (`measures`, `wording`), `qinsight` asks a reasoning model, `file` reads what another
program wrote, `score` says the human score in words.
"""
