"""pyprune's operators inside models of the transformers library: `accelerate` and its inverse, `restore`.

accelerate  the swap of a model's modules for accelerated ones, and back
classes     the model families, and how an accelerated class is made
layers      what the accelerated modules compute
fallback    where transformers' own code must run instead
cache       where new keys and values go
"""

from pyprune.runtime.huggingface.accelerate import accelerate, restore

__all__ = ["accelerate", "restore"]
