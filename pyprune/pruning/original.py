"""The sizes of the unpruned model: the frame in which every pruning's indices are meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyprune.checks import is_int
from pyprune.errors import InputError

if TYPE_CHECKING:
    from pyprune.models.decoder import Decoder


@dataclass(frozen=True)
class OriginalSizes:
    """Number of blocks, and of KV groups, FFN neurons and query heads in each."""

    blocks: int
    kv_groups: int
    width: int
    heads: int

    @property
    def group(self) -> int:
        """Query heads of one KV group."""
        return self.heads // self.kv_groups

    @classmethod
    def of(cls, decoder: Decoder) -> OriginalSizes:
        """Read from the original Hugging Face configuration that a decoder keeps; InputError when one is missing."""
        config = decoder.config
        heads = config.get("num_attention_heads")
        groups = config.get("num_key_value_heads")
        sizes = {
            "num_hidden_layers": config.get("num_hidden_layers"),
            "num_key_value_heads": heads if groups is None else groups,
            "intermediate_size": config.get("intermediate_size"),
            "num_attention_heads": heads,
        }
        for name, value in sizes.items():
            if not is_int(value) or value < 1:
                raise InputError(f"{decoder.name}: {name} {value!r} in its configuration; from 1 is expected")
        return cls(*sizes.values())
