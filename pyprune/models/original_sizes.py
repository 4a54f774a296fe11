"""The sizes of the unpruned model: the frame in which every pruning's indices are meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pyprune.checks import is_int
from pyprune.errors import InputError


class Configured(Protocol):
    """A model by name, with its original Hugging Face configuration: a `Decoder`."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...


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
    def of(cls, decoder: Configured) -> OriginalSizes:
        """Read from the original configuration that a decoder keeps; InputError when a size is missing."""
        return cls.from_config(decoder.config, decoder.name)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> OriginalSizes:
        """Read from a Hugging Face configuration; InputError, naming `where`, when a size is missing."""
        heads = config.get("num_attention_heads")
        groups = config.get("num_key_value_heads")
        stated = {
            "num_hidden_layers": config.get("num_hidden_layers"),
            "num_key_value_heads": heads if groups is None else groups,
            "intermediate_size": config.get("intermediate_size"),
            "num_attention_heads": heads,
        }
        sizes = []
        for name, value in stated.items():
            if not is_int(value) or value < 1:
                raise InputError(f"{where}: {name} {value!r} in its configuration; from 1 is expected")
            sizes.append(value)
        return cls(*sizes)
