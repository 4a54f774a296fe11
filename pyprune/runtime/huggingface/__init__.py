"""pyprune's operators inside models of the transformers library: `accelerate` and its inverse, `restore`."""

from pyprune.runtime.huggingface.swap import accelerate, restore

__all__ = ["accelerate", "restore"]
