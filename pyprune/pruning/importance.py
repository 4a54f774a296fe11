"""The importance of each KV group and FFN neuron, which width methods compute and selections read; what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pyprune.models.decoder import MHA


@dataclass(frozen=True)
class Importance:
    """Scores of a decoder's units, the highest for the most important, float64 on the CPU.

    Block index -> `groups [kv_heads]` and `neurons [width]`, in the block's present order; a block without the
    sublayer has no entry.
    """

    groups: Mapping[int, Tensor]
    neurons: Mapping[int, Tensor]


@dataclass(frozen=True)
class Kept:
    """The units that stay in each block: block index -> ascending positions in its present `groups` and `neurons`."""

    groups: Mapping[int, list[int]]
    neurons: Mapping[int, list[int]]


def by_group(channels: Tensor, mha: MHA) -> Tensor:
    """Scores of the channels of all query heads `[heads*head_dim]`, as those of each KV group `[kv_heads, channels]`.

    Query head n reads KV head n // (heads / kv_heads), so a group's channels lie side by side.
    """
    return channels.view(mha.kv_heads, -1)
