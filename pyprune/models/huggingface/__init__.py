"""Models for transformers whose layers differ in size: `pyprune_llama`, `pyprune_mistral`, `pyprune_qwen2`,
`pyprune_qwen3`.

`import pyprune` enters them in the Auto classes (`pyprune.registration`).
"""
