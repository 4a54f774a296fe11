"""Models as data: reading, writing, and the `Decoder` that every other package works on."""

from __future__ import annotations

from pyprune.models.decoder import FFN, MHA, Block, Decoder, Linear, Rope, TokenizerSource
from pyprune.models.load import as_decoder, load, load_sizes
from pyprune.models.transformers_model import to_transformers

__all__ = [
    "FFN",
    "MHA",
    "Block",
    "Decoder",
    "Linear",
    "Rope",
    "TokenizerSource",
    "as_decoder",
    "load",
    "load_sizes",
    "to_transformers",
]
