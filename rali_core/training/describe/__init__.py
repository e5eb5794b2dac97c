"""Quality descriptions of images, the first stage of the training; needs the extra `train`.

Three sources with one interface (`Describer`): `MeasuredDescriber` says what it measures, `QInsightDescriber` runs a
reasoning model, `FileDescriber` reads what someone else wrote. `describe_all` writes them to a description file.
"""
