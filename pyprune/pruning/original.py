"""The sizes of the unpruned model: the frame in which every pruning's indices are meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyprune.errors import InputError

if TYPE_CHECKING:
    from pyprune.models.decoder import Decoder


@dataclass(frozen=True)
class OriginalSizes:
    """Number of blocks, and of KV groups and FFN neurons in each."""

    blocks: int
    kv_groups: int
    width: int

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
        }
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{decoder.name}: {name} {value!r} in its configuration; from 1 is expected")
        return cls(*sizes.values())
