"""Our models beside the official recipe and other quality measures: speed and memory, measured as `rali bench` does.

`suite` defines the measurements, `baselines` what it is compared with, `report` the output; `python -m bench` runs it.
"""
