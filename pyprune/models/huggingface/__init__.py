"""Models for transformers whose layers differ in size, `pyprune_llama` and so on: one for each family with `classes`.

`import pyprune` enters them in the Auto classes (`pyprune.registration`).
"""
