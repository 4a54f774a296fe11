"""What a scoring pass costs: predicted in multiplications, stated in passes. Numbers only: no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyprune.models.decoder import FFN, MHA, Decoder
from pyprune.scoring.removals import NO_REMOVAL, Removal, present_sublayers
from pyprune.scoring.schedule import Schedule


@dataclass
class Passes:
    """Forward work on all calibration samples: blocks that one state went through, a sublayer counting as half a block,
    and states that went through the head."""

    blocks: float = 0.0
    heads: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.blocks + other.blocks, self.heads + other.heads)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"block_passes": self.blocks, "head_passes": self.heads}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Passes:
        """Read the JSON form."""
        return cls(float(data["block_passes"]), float(data["head_passes"]))


@dataclass(frozen=True)
class Costs:
    """Multiplications that one token takes in each sublayer, by its index, and in the head."""

    sublayers: dict[int, int]
    head: int

    @classmethod
    def of(cls, decoder: Decoder, tokens: int) -> Costs:
        """The costs in samples of `tokens` tokens."""
        sublayers = {}
        for position, block in enumerate(decoder.sizes().blocks):
            if block.mha is not None:
                sublayers[2 * position] = _mha_cost(block.mha, tokens)
            if block.ffn is not None:
                sublayers[2 * position + 1] = _ffn_cost(block.ffn)
        return cls(sublayers, decoder.head.weight.numel())

    def of_schedule(self, schedule: Schedule) -> int:
        """What all states of a pass take."""
        sublayers = (
            len(sublayer.slots) * self.sublayers[2 * position + offset]
            for position, step in enumerate(schedule.steps)
            for offset, sublayer in enumerate(step.sublayers)
            if sublayer.slots
        )
        return sum(sublayers) + schedule.slots * self.head

    def at(self, sublayer: int | None) -> int:
        """What a sublayer takes, or the head where that is None."""
        return self.head if sublayer is None else self.sublayers[sublayer]

    def after_shared_prefix(self, removals: Iterable[Removal]) -> list[int]:
        """What each candidate takes after it has left the prefix that all of them share."""
        removals = list(removals)
        common = frozenset.intersection(*removals) if removals else NO_REMOVAL
        return [self._after(removal, min(removal - common, default=None)) for removal in removals]

    def _after(self, removal: Removal, first: int | None) -> int:
        """What a candidate takes behind the sublayer `first`, the first that it alone lacks; None: it lacks none."""
        if first is None:
            return self.head
        kept = (cost for index, cost in self.sublayers.items() if index > first and index not in removal)
        return self.head + sum(kept)


def naive_passes(decoder: Decoder, removals: Iterable[Removal]) -> Passes:
    """One forward pass of its own for every candidate."""
    present = present_sublayers(decoder)
    kept = [len(present - removal) for removal in removals]
    return Passes(sum(kept) / 2, len(kept))


def _mha_cost(mha: MHA, tokens: int) -> int:
    weights = sum(linear.weight.numel() for linear in (mha.q, mha.k, mha.v, mha.o))
    return weights + tokens * mha.heads * mha.head_dim  # a token sees half of them, in two products


def _ffn_cost(ffn: FFN) -> int:
    return sum(linear.weight.numel() for linear in (ffn.gate, ffn.up, ffn.down))
