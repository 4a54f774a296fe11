"""What a scoring pass costs: predicted in multiplications, stated in passes. Numbers only: no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyprune.models.blocks import FFN, MHA
from pyprune.scoring.edits import NO_EDITS, Edits, effective, first_sublayer, is_replacement, sublayer_of
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
    """Multiplications that one token takes in each sublayer, by its index, in the head, and in what stands in a
    sublayer's place, by the edit."""

    sublayers: Mapping[int, int]
    head: int
    replacements: Mapping[int, int] = field(default_factory=dict)

    def of_schedule(self, schedule: Schedule) -> int:
        """What all states of a pass take."""
        total = schedule.slots * self.head
        for position, step in enumerate(schedule.steps):
            for offset, sublayer in enumerate(step.sublayers):
                if sublayer.slots:
                    total += len(sublayer.slots) * self.at(2 * position + offset)
                total += sum(len(slots) * self.at(edit) for edit, slots in sublayer.replaced.items())
        return total

    def at(self, edit: int | None) -> int:
        """What a sublayer takes, or what an edit puts in its place, or the head where that is None."""
        if edit is None:
            return self.head
        return self.replacements[edit] if is_replacement(edit) else self.sublayers[edit]

    def after_shared_prefix(self, candidates: Iterable[Edits]) -> list[int]:
        """What each candidate takes after it has left the prefix that all of them share."""
        candidates = list(candidates)
        common = frozenset.intersection(*candidates) if candidates else NO_EDITS
        return [self._after(edits, first_sublayer(edits - common)) for edits in candidates]

    def _after(self, edits: Edits, first: int | None) -> int:
        """What a candidate takes from the sublayer `first` on, the first that it alone edits; None: it edits none."""
        if first is None:
            return self.head
        edited = {sublayer_of(edit) for edit in edits}
        kept = sum(cost for index, cost in self.sublayers.items() if index > first and index not in edited)
        replaced = sum(self.at(edit) for edit in edits if is_replacement(edit) and sublayer_of(edit) >= first)
        return self.head + kept + replaced


def naive_passes(present: frozenset[int], sublayers_per_block: int, candidates: Iterable[Edits]) -> Passes:
    """One forward pass of its own for every candidate, of a model with these sublayers."""
    runs = [_sublayers_run(present, effective(edits, present)) for edits in candidates]
    return Passes(sum(runs) / sublayers_per_block, len(runs))


def _sublayers_run(present: frozenset[int], edits: Edits) -> int:
    replaced = {sublayer_of(edit) for edit in edits if is_replacement(edit)}
    return len((present | replaced) - {edit for edit in edits if not is_replacement(edit)})


def mha_cost(mha: MHA, tokens: int) -> int:
    """Multiplications of one token in an attention sublayer."""
    weights = sum(linear.weight.numel() for linear in (mha.q, mha.k, mha.v, mha.o))
    return weights + tokens * mha.heads * mha.head_dim  # a token sees half of them, in two products


def ffn_cost(ffn: FFN) -> int:
    """Multiplications of one token in an FFN sublayer."""
    return sum(linear.weight.numel() for linear in (ffn.gate, ffn.up, ffn.down))
