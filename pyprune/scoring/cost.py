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
    """Forward work on all calibration samples: blocks that one state went through, a half counting as one half, and
    states that went through the head."""

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
    """Multiplications that one token takes in each half, by its place, and in the head."""

    halves: dict[int, int]
    head: int

    @classmethod
    def of(cls, decoder: Decoder, tokens: int) -> Costs:
        """The costs in samples of `tokens` tokens."""
        halves = {}
        for place, block in enumerate(decoder.sizes().blocks):
            if block.mha is not None:
                halves[2 * place] = _mha_cost(block.mha, tokens)
            if block.ffn is not None:
                halves[2 * place + 1] = _ffn_cost(block.ffn)
        return cls(halves, decoder.head.weight.numel())

    def of_schedule(self, plan: Schedule) -> int:
        """What all states of a pass take."""
        halves = (
            len(half.run) * self.halves[2 * place + part]
            for place, step in enumerate(plan.steps)
            for part, half in enumerate(step.halves)
            if half.run
        )
        return sum(halves) + plan.slots * self.head

    def at(self, place: int | None) -> int:
        """What the half at a place takes, or the head where that is None."""
        return self.head if place is None else self.halves[place]

    def apart(self, removals: Iterable[Removal]) -> list[int]:
        """What each candidate takes after it has left what all of them begin with."""
        removals = list(removals)
        common = frozenset.intersection(*removals) if removals else NO_REMOVAL
        return [self._after(removal, min(removal - common, default=None)) for removal in removals]

    def _after(self, removal: Removal, leaves: int | None) -> int:
        if leaves is None:
            return self.head
        return self.head + sum(cost for place, cost in self.halves.items() if place > leaves and place not in removal)


def naive_passes(decoder: Decoder, removals: Iterable[Removal]) -> Passes:
    """One forward pass of its own for every candidate."""
    present = present_sublayers(decoder)
    kept = [len(present - removal) for removal in removals]
    return Passes(sum(kept) / 2, len(kept))


def _mha_cost(mha: MHA, tokens: int) -> int:
    weights = sum(part.weight.numel() for part in (mha.q, mha.k, mha.v, mha.o))
    return weights + tokens * mha.heads * mha.head_dim  # a token sees half of them, in two products


def _ffn_cost(ffn: FFN) -> int:
    return sum(part.weight.numel() for part in (ffn.gate, ffn.up, ffn.down))
