"""Our models beside the official recipe and other quality measures: speed and memory, measured as `rali bench` does.

`suite` says what is measured, `contenders` with what, `report` writes it down; `python -m bench` runs it.
"""
