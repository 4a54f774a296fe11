"""How much each KV group and each FFN neuron of a model matters: what the width methods compute and selections read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pyprune.models.decoder import MHA


@dataclass(frozen=True)
class Importance:
    """Scores of what a decoder holds, the higher the more it matters, float64 on the CPU.

    Block index -> `groups [kv_heads]` and `neurons [width]`, in the block's present order; a block without the half has
    no entry.
    """

    groups: Mapping[int, Tensor]
    neurons: Mapping[int, Tensor]


@dataclass(frozen=True)
class Kept:
    """What stays of each block, as ascending places among what is there: block index -> `groups` and `neurons`."""

    groups: Mapping[int, list[int]]
    neurons: Mapping[int, list[int]]


def by_group(channels: Tensor, mha: MHA) -> Tensor:
    """Scores of the channels of all query heads `[heads*head_dim]`, as those of each KV group `[kv_heads, channels]`.

    Query head n reads KV head n // (heads / kv_heads), so a group's channels lie side by side.
    """
    return channels.view(mha.kv_heads, -1)
